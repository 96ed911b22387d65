"""`rows` in plain torch: the definition of right, and what runs on a CPU."""

from __future__ import annotations

from torch import Tensor

from ..common.attention_params import AttentionParams
from ..common.attention_reference import probabilities, query_tiles
from ..common.attention_tensors import AttentionTensors, LayerSpec
from ..common.key_weighting import KeyWeighting
from ..common.write_reference import write_heads


def rows_reference(
    query: Tensor,
    key: Tensor,
    params: AttentionParams,
    out: AttentionTensors,
    spec: LayerSpec,
    weighting: KeyWeighting,
) -> None:
    """Does what `rows` does, with arguments that `rows` has checked."""
    for tile in query_tiles(query, key):
        write_heads(probabilities(query, key, params, tile, spec.heads), out, spec, tile, weighting)
