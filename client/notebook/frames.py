"""Results as tables of pandas, and as labelled arrays of xarray."""

# pandas and xarray are optional, and NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..alignments import Alignment
from ..offset_units import Span, Token
from ..parameters import AttentionKind
from ..results import Attribution
from .selection import KINDS, find_kind, get_array, get_labels

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def attribution_frame(attribution: Attribution, what: AttentionKind | Literal["targets"] | None) -> pd.DataFrame:
    """See `Attribution.to_pandas`."""
    import pandas as pd

    if what == "targets":
        return pd.DataFrame(_target_columns(attribution))
    kind = find_kind(attribution, what)
    array, layout = get_array(attribution, kind), attribution.layouts[kind]
    positions, rows = get_labels(attribution, kind)
    indices = np.indices(array.shape).reshape(array.ndim, -1)
    columns: dict[str, Any] = {
        "target_index": indices[1],
        "target": _labels(rows)[indices[1]],
        "source_index": indices[0],
        "source": _labels(positions)[indices[0]],
    }
    for axis, index in zip(layout.axes, indices[2:], strict=True):
        if axis == "layer":
            columns["layer"] = np.array(layout.layers)[index]
        elif axis == "head":
            columns["head"] = index
        else:
            columns["layer"], columns["head"] = np.array(layout.pairs)[index].T
    frame = pd.DataFrame({**columns, "attention": array.reshape(-1)})
    frame = frame.dropna(subset="attention").sort_values(["target_index", "source_index"], kind="stable")
    return frame.reset_index(drop=True)


def alignment_frame(alignment: Alignment) -> pd.DataFrame:
    """See `Alignment.to_pandas`."""
    import pandas as pd

    return pd.DataFrame(
        [
            (
                link.source,
                alignment.source[link.source].text,
                link.target,
                alignment.target[link.target].text,
                link.score,
            )
            for link in alignment.links
        ],
        columns=["source_index", "source", "target_index", "target", "score"],
    )


def attribution_dataset(attribution: Attribution) -> xr.Dataset:
    """See `Attribution.to_xarray`."""
    import xarray as xr

    captured: list[AttentionKind] = [kind for kind in KINDS if getattr(attribution, kind) is not None]
    layouts = [attribution.layouts[kind] for kind in captured]
    # Kinds with other layers or heads have axes of their own.
    is_shared = len({(layout.axes, layout.layers, layout.head_count, layout.pairs) for layout in layouts}) <= 1
    names: dict[AttentionKind, tuple[str, str]] = {
        "cross": ("source", "target"),
        "decoder_self": ("position", "target"),
        "encoder_self": ("source", "query"),
    }
    arrays: dict[str, Any] = {}
    for kind, layout in zip(captured, layouts, strict=True):
        names = {
            "cross": ("source", "target"),
            "decoder_self": ("position", "target"),
            "encoder_self": ("source", "query"),
        }
        dims = [*names[kind], *(axis if is_shared else f"{kind}_{axis}" for axis in layout.axes)]
        values: dict[str, Any] = {
            "layer": list(layout.layers),
            "head": list(range(layout.head_count)),
            "pair": [f"{layer}.{head}" for layer, head in layout.pairs],
        }
        coords = {dim: values[axis] for dim, axis in zip(dims[2:], layout.axes, strict=True)}
        for dim, labels in zip(dims[:2], get_labels(attribution, kind), strict=True):
            coords[f"{dim}_text"] = (dim, _labels(labels))
        arrays[kind] = xr.DataArray(get_array(attribution, kind), coords, dims)
    for name, numbers in attribution.target_scores.items():
        arrays[name] = xr.DataArray(numbers, {"target_text": ("target", _labels(attribution.targets))}, ["target"])
    started = attribution.started
    return xr.Dataset(arrays, attrs={"model": started.model, "source": started.source_text, "target": attribution.text})


def _target_columns(attribution: Attribution) -> dict[str, Any]:
    """Returns what is known of each step, or of each unit with a grouping."""
    targets = attribution.targets
    columns: dict[str, Any] = {"target": _labels(targets)}
    if attribution.started.grouping == "token":
        columns |= {
            "id": [token.id for token in attribution.steps],
            "piece": [token.piece for token in attribution.steps],
        }
    columns |= {"begin": [part.begin for part in targets], "end": [part.end for part in targets]}
    columns["special"] = [part.special for part in targets]
    return columns | dict(attribution.target_scores)


def _labels(parts: Sequence[Token | Span]) -> Any:
    return np.array([part.label for part in parts], object)
