"""`rows` in plain torch: the definition of right, and what runs on a CPU."""

from __future__ import annotations

from torch import Tensor

from ..common.attention_params import AttentionParams
from ..common.attention_reference import probabilities, tiles
from ..common.attention_tensors import AttentionTensors, LayerSpec
from ..common.write_reference import write


def rows_reference(
    query: Tensor, key: Tensor, scoring: AttentionParams, result: AttentionTensors, part: LayerSpec
) -> None:
    """As `rows` has it, on what `rows` has checked."""
    for tile in tiles(query, key):
        write(probabilities(query, key, scoring, tile, part.heads), result, part, tile)
