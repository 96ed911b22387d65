"""The arguments of BertViz' `head_view` and `model_view`, which want square matrices of each layer and head."""

# torch comes with BertViz; the client does not need it otherwise.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import numpy as np

from ..parameters import AttentionKind
from ..results import Attribution, FloatArray
from .selection import KINDS, get_array, get_labels

# The names of the arguments for an encoder-decoder model.
_NAMES: dict[AttentionKind, str] = {
    "cross": "cross_attention",
    "decoder_self": "decoder_attention",
    "encoder_self": "encoder_attention",
}


def to_bertviz(attribution: Attribution) -> dict[str, Any]:
    """See `Attribution.to_bertviz`."""
    import torch

    captured: list[AttentionKind] = [kind for kind in KINDS if getattr(attribution, kind) is not None]
    if not captured:
        raise ValueError("BertViz needs attention, and none was captured")
    for kind in captured:
        if attribution.layouts[kind].axes != ("layer", "head"):
            raise ValueError(f"BertViz needs all layers and heads of {kind}: the request has reduced or chosen them")
    arguments: dict[str, Any] = {}
    for kind in captured:
        matrices = _square(attribution, kind).transpose(2, 3, 1, 0)  # layers, heads, queries, keys
        arguments[_NAMES[kind]] = [
            torch.from_numpy(np.ascontiguousarray(layer[None], np.float32)) for layer in matrices
        ]
    decoder_tokens = [part.label for part in attribution.decoder_positions]
    if not attribution.started.is_encoder_decoder:
        return {"attention": arguments["decoder_attention"], "tokens": decoder_tokens}
    if "encoder_self" in captured or "cross" in captured:
        arguments["encoder_tokens"] = [part.label for part in attribution.source_positions]
    if "decoder_self" in captured or "cross" in captured:
        arguments["decoder_tokens"] = decoder_tokens
    return arguments


def _square(attribution: Attribution, kind: AttentionKind) -> FloatArray:
    """Returns `[keys, queries, layers, heads]` with a query for each token of the text that looks.

    The decoder's queries are the tokens that it reads. The row of a step belongs to the token that the step writes, or,
    with the row "predicting", to the token before it. The tokens whose rows were not captured have 0.
    """
    array = np.nan_to_num(get_array(attribution, kind))
    if kind == "encoder_self":
        return array
    keys, rows = get_labels(attribution, kind)
    first = len(attribution.decoder_positions) - len(rows) - (attribution.started.row == "predicting")
    square = np.zeros((len(keys), len(attribution.decoder_positions), *array.shape[2:]), np.float32)
    square[:, first : first + len(rows)] = array
    return square
