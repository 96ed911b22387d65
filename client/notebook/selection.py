"""Which numbers of attention a view takes: one kind, one layer and one head, and means over what is not chosen."""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..offset_units import Span, Token
from ..parameters import AttentionKind
from ..results import Attribution, FloatArray

KINDS: tuple[AttentionKind, ...] = ("cross", "decoder_self", "encoder_self")


def find_kind(attribution: Attribution, kind: AttentionKind | None) -> AttentionKind:
    """Returns the kind, or for None the first kind that was captured. Raises ValueError if it was not captured."""
    captured: list[AttentionKind] = [name for name in KINDS if getattr(attribution, name) is not None]
    if kind is None and captured:
        return captured[0]
    if kind is None or kind not in captured:
        raise ValueError(f"{kind or 'attention'} was not captured; there is {', '.join(captured) or 'none'}")
    return kind


def get_array(attribution: Attribution, kind: AttentionKind) -> FloatArray:
    """Returns the attention of a kind, `[positions, rows, ...]`: what is looked at comes first, also of the encoder."""
    array: FloatArray | None = getattr(attribution, kind)
    assert array is not None
    return array.swapaxes(0, 1) if kind == "encoder_self" else array


def get_labels(attribution: Attribution, kind: AttentionKind) -> tuple[Sequence[Token | Span], Sequence[Token | Span]]:
    """Returns what the positions and the rows of `get_array` stand for."""
    if kind == "cross":
        return attribution.source_positions, attribution.targets
    if kind == "decoder_self":
        return attribution.decoder_positions, attribution.targets
    return attribution.source_positions, attribution.source_positions


def select(attribution: Attribution, kind: AttentionKind, layer: int | None, head: int | None) -> FloatArray:
    """Returns `[positions, rows]`: of one layer and one head, or the mean over all that were captured.

    Args:
        attribution: The result.
        kind: A kind that was captured.
        layer: The number of a layer of the model; None: all.
        head: The number of a head; None: all.

    Raises:
        ValueError: The layer or the head was not captured, or has been reduced.
    """
    array, layout = get_array(attribution, kind).astype(np.float32), attribution.layouts[kind]
    if "pair" in layout.axes:
        chosen = [i for i, pair in enumerate(layout.pairs) if layer in (None, pair[0]) and head in (None, pair[1])]
        if not chosen:
            pairs = ", ".join(f"{first}.{second}" for first, second in layout.pairs)
            raise ValueError(f"layer {layer}, head {head} was not captured; there is {pairs}")
        return array[..., chosen].mean(axis=-1)
    captured = {"layer": layout.layers, "head": tuple(range(layout.head_count))}
    for name, number in (("layer", layer), ("head", head)):
        if name not in layout.axes and number is not None:
            raise ValueError(f"{name} {number} cannot be chosen: the request has reduced the {name}s of {kind}")
        if name not in layout.axes:
            continue
        if number is not None and number not in captured[name]:
            raise ValueError(f"{name} {number} was not captured; there is {', '.join(map(str, captured[name]))}")
        # The layer's axis goes first, so that each axis is the third one when its turn comes.
        array = array.mean(axis=2) if number is None else array[:, :, captured[name].index(number)]
    return array
