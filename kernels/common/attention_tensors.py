"""`AttentionTensors`: what kernels write, in the order and encoding of a message; `LayerSpec`: what one layer writes.

The tensors are `[B, T, S, C]`: batch, queries, positions and columns. A column is what a message carries separately:
one head of one layer, one layer with its heads reduced, or everything in one. One launch a layer fills the tensors.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .reductions import REDUCTIONS, Reduction

Encoding = Literal["float32", "float16", "uint8"]
ENCODINGS: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


class LayerSpec(NamedTuple):
    """What one layer writes into `AttentionTensors`.

    Without `over_heads` each head has a column: from `column` on, or those in `columns`. With `over_heads` the heads
    are reduced into column `column`. With `over_layers` layers are reduced, too, into the only column; the
    `accumulator` holds the result until the last layer has been written.
    """

    heads: tuple[int, ...] | None = None  # query heads, in order; None: all
    column: int = 0
    columns: tuple[int, ...] | None = None
    over_heads: Reduction | None = None
    over_layers: Reduction | None = None
    weights: tuple[float, ...] | None = None  # one for each head, in a mean or sum
    divisor: float | None = None  # of a mean over heads; None: the number of heads, or the sum of their weights
    num_layers: int = 1  # the divisor of a mean over layers
    is_first: bool = True  # whether this is the first layer; matters only with over_layers
    is_last: bool = True
    # Whether the heads of all layers are reduced as if they were heads of one layer: over_layers is over_heads, and a
    # mean is divided once, after the last layer.
    pools_all_heads: bool = False
    num_pooled_heads: int = 1  # the number of these heads, of all layers; matters only for the shares of left-out keys

    def mean_divisor(self, heads: int) -> float:
        """Returns what a mean over the heads of a layer with so many heads is divided by."""
        if self.divisor is not None:
            return self.divisor
        if self.weights is not None:
            return sum(self.weights)
        return float(heads if self.heads is None else len(self.heads))

    def num_columns(self, heads: int) -> int:
        """Returns how many columns a layer with so many heads writes."""
        if self.over_heads is not None:
            return 1
        return heads if self.heads is None else len(self.heads)

    @property
    def pools_layers(self) -> bool:
        """Whether layers are reduced."""
        return self.over_layers is not None


ALL_HEADS = LayerSpec()  # all heads of one layer, a column each


class AttentionTensors(NamedTuple):
    """Tensors that kernels fill.

    Dense: `values` `[B, T, S, C]` in float32, float16 or uint8. With top-k: `[B, T, k, C]`, greatest first, and
    `positions` int32 of the same shape. With uint8: `scales` float32 `[B, T, C]`; a number is byte * scale.
    """

    values: Tensor
    scales: Tensor | None
    positions: Tensor | None
    accumulator: Tensor | None  # float32 [B, T, S]: the reduction of the layers so far, where layers are reduced
    length: int  # S
    shares: Tensor | None = None  # float32 [B, T, C]: what the keys took that a row leaves out; see KeyWeighting

    @property
    def top_k(self) -> int:
        """How many positions of a row are kept; 0: all."""
        return 0 if self.positions is None else self.values.shape[2]

    @property
    def is_dense_float(self) -> bool:
        """Whether a number can be written before the rest of its row is known."""
        return self.positions is None and self.scales is None


def new_attention_tensors(
    batch: int,
    queries: int,
    length: int,
    columns: int,
    *,
    encoding: Encoding = "float32",
    top_k: int = 0,
    pools_layers: bool = False,
    has_shares: bool = False,
    device: torch.device | str = "cpu",
) -> AttentionTensors:
    """Allocates tensors for kernels to fill. Their content is arbitrary until it is written.

    Args:
        batch: B.
        queries: T.
        length: S, the positions of a row.
        columns: C.
        encoding: The type of the numbers.
        top_k: Keep only so many positions of each row, the greatest; 0 keeps all.
        pools_layers: Whether layers will be reduced into one column.
        has_shares: Whether rows will leave out keys, so that the share of these keys is wanted.
        device: The device of the tensors.

    Raises:
        ValueError: The message begins with the argument's name.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding: must be one of {', '.join(ENCODINGS)}, not {encoding!r}")
    if top_k < 0:
        raise ValueError(f"top_k: must not be negative, not {top_k}")
    num_kept = min(top_k, length) if top_k else length
    shape = (batch, queries, num_kept, columns)
    values = torch.empty(shape, dtype=ENCODINGS[encoding], device=device)
    scales = torch.empty(batch, queries, columns, device=device) if encoding == "uint8" else None
    positions = torch.empty(shape, dtype=torch.int32, device=device) if top_k else None
    accumulator = torch.empty(batch, queries, length, device=device) if pools_layers else None
    shares = torch.empty(batch, queries, columns, device=device) if has_shares else None
    return AttentionTensors(values, scales, positions, accumulator, length, shares)


def check_layer_spec(spec: LayerSpec, heads: int, out: AttentionTensors) -> None:
    """Raises ValueError unless a layer with so many heads can write this. The message begins with the field."""
    _check_reductions(spec, out)
    if spec.heads is not None and (not spec.heads or not all(0 <= head < heads for head in spec.heads)):
        raise ValueError(f"spec.heads: must be some of 0 to {heads - 1}, not {spec.heads}")
    num_heads = heads if spec.heads is None else len(spec.heads)
    if spec.weights is not None and (len(spec.weights) != num_heads or spec.over_heads not in ("mean", "sum")):
        raise ValueError("spec.weights: must be one for each head, in a mean or sum over heads")
    if spec.weights is not None and min(spec.weights) < 0:
        raise ValueError("spec.weights: must not be negative")
    if spec.over_heads == "mean":
        if spec.pools_all_heads and spec.divisor is None and not (spec.is_first and spec.is_last):
            raise ValueError("spec.divisor: must be given, as a mean over heads of several layers is divided once")
        if not spec.mean_divisor(heads):
            raise ValueError(f"spec.{'weights' if spec.divisor is None else 'divisor'}: a mean cannot be divided by 0")
    if spec.columns is not None and (len(spec.columns) != num_heads or spec.over_heads is not None):
        raise ValueError("spec.columns: must be one for each head, and heads must not be reduced")
    if spec.columns is not None and len(set(spec.columns)) < num_heads:
        raise ValueError(f"spec.columns: must differ, not {spec.columns}")
    name = "column" if spec.columns is None else "columns"
    columns = spec.columns or range(spec.column, spec.column + spec.num_columns(heads))
    if min(columns) < 0 or max(columns) >= out.values.shape[3]:
        named = f"{min(columns)} to {max(columns)}"
        raise ValueError(f"spec.{name}: must be within 0 to {out.values.shape[3] - 1}, not {named}")


def _check_reductions(spec: LayerSpec, out: AttentionTensors) -> None:
    for name in ("over_heads", "over_layers"):
        reduction = getattr(spec, name)
        if reduction is not None and reduction not in REDUCTIONS:
            raise ValueError(f"spec.{name}: must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
    if spec.over_layers is not None and spec.over_heads is None:
        raise ValueError("spec.over_layers: needs over_heads, since heads are reduced before layers")
    if spec.pools_all_heads and spec.over_layers != spec.over_heads:
        raise ValueError("spec.pools_all_heads: over_layers must be over_heads")
    if spec.pools_layers != (out.accumulator is not None):
        raise ValueError("spec.over_layers: the tensors must have been allocated for it, with pools_layers")


@lru_cache(maxsize=256)
def device_constant(numbers: tuple[int, ...] | tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns numbers as a tensor on a device. They are copied once, not at every step.

    The dtype is a part of the cache's key and not derived from the numbers: for a cache, 1 and 1.0 are the same.
    """
    return torch.tensor(numbers, dtype=dtype, device=device)
