"""What the kernels write: reduced attention in the order and encoding of a message, filled by one launch a layer.

Knows shapes, encodings and how heads and layers become columns; does no arithmetic on attention.

A result is `[B, T, S, C]`: batch, queries, positions and columns. A column is what a message carries apart from others:
one head of one layer, one layer with its heads reduced, or everything in one. Which layer gives what, its `LayerSpec`
says.
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
    """What one layer gives to a result.

    Without `over_heads` its heads stay apart, in columns from `column` on, or in `columns` where they are out of order.
    With it they become one: column `column`, or, with `over_layers`, a share of the only column, in the result's
    `total` until the last layer has come.
    """

    heads: tuple[int, ...] | None = None  # query heads, in order; None: all of them
    column: int = 0
    columns: tuple[int, ...] | None = None
    over_heads: Reduction | None = None
    over_layers: Reduction | None = None
    weights: tuple[float, ...] | None = None  # for each head, in a mean or sum
    # What a mean over heads is divided by; None: the number of heads, or the sum of their weights.
    count: float | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    layer_count: int = 1  # what a mean over layers is divided by
    first: bool = True  # whether no layer came before; of use only with over_layers
    last: bool = True
    as_one: bool = False  # heads of all layers are folded as if of one: over_layers is over_heads, divided once, last

    def divisor_of(self, heads: int) -> float:
        """What a mean over the heads of a layer that has so many is divided by."""
        if self.count is not None:
            return self.count
        if self.weights is not None:
            return sum(self.weights)
        return float(heads if self.heads is None else len(self.heads))

    @property
    def pools_layers(self) -> bool:
        """Whether the layers become one."""
        return self.over_layers is not None


EVERYTHING = LayerSpec()  # all heads of one layer, apart


class AttentionTensors(NamedTuple):
    """Tensors to be filled.

    Dense: `values` `[B, T, S, C]` in float32, float16 or uint8. With top-k: `[B, T, k, C]`, greatest first, and
    `positions` int32 of the same shape. uint8 has `scales` float32 `[B, T, C]`: a number is byte * scale.
    """

    values: Tensor
    scales: Tensor | None
    positions: Tensor | None
    total: Tensor | None  # float32 [B, T, S]: what layers have become so far, where they are folded
    length: int  # S

    @property
    def top_k(self) -> int:
        """How many positions of a row are kept; 0: all."""
        return 0 if self.positions is None else self.values.shape[2]

    @property
    def is_dense_float(self) -> bool:
        """Whether a number can be written without knowing the rest of its row."""
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
    device: torch.device | str = "cpu",
) -> AttentionTensors:
    """Room for a result; what is in it is arbitrary until it is written.

    Args:
        batch: B.
        queries: T.
        length: S, the positions that a row has.
        columns: C.
        encoding: The type of the numbers.
        top_k: Keep only so many positions of each row, the greatest; 0 keeps all.
        pools_layers: Whether layers will be folded into one column.
        device: Where.

    Raises:
        ValueError: The message begins with the argument's name.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding: must be one of {', '.join(ENCODINGS)}, not {encoding!r}")
    if top_k < 0:
        raise ValueError(f"top_k: must not be negative, not {top_k}")
    kept = min(top_k, length) if top_k else length
    shape = (batch, queries, kept, columns)
    values = torch.empty(shape, dtype=ENCODINGS[encoding], device=device)
    scales = torch.empty(batch, queries, columns, device=device) if encoding == "uint8" else None
    positions = torch.empty(shape, dtype=torch.int32, device=device) if top_k else None
    total = torch.empty(batch, queries, length, device=device) if pools_layers else None
    return AttentionTensors(values, scales, positions, total, length)


def check_layer_spec(part: LayerSpec, heads: int, result: AttentionTensors) -> None:
    """Raises ValueError, beginning with `part` and the field, unless a layer of so many heads can give this part."""
    for name in ("over_heads", "over_layers"):
        reduction = getattr(part, name)
        if reduction is not None and reduction not in REDUCTIONS:
            raise ValueError(f"part.{name}: must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
    if part.over_layers is not None and part.over_heads is None:
        raise ValueError("part.over_layers: needs over_heads, since heads are reduced before layers")
    if part.as_one and part.over_layers != part.over_heads:
        raise ValueError("part.as_one: over_layers must be over_heads")
    if part.pools_layers != (result.total is not None):
        raise ValueError("part.over_layers: the result must have been made for it, with pools_layers")
    if part.heads is not None and (not part.heads or not all(0 <= head < heads for head in part.heads)):
        raise ValueError(f"part.heads: must be some of 0 to {heads - 1}, not {part.heads}")
    count = heads if part.heads is None else len(part.heads)
    if part.weights is not None and (len(part.weights) != count or part.over_heads not in ("mean", "sum")):
        raise ValueError("part.weights: must be one for each head, in a mean or sum over heads")
    if part.weights is not None and min(part.weights) < 0:
        raise ValueError("part.weights: must not be negative")
    if part.over_heads == "mean":
        if part.as_one and part.count is None and not (part.first and part.last):
            raise ValueError("part.count: must be given, as a mean over heads of several layers is divided once")
        if not part.divisor_of(heads):
            raise ValueError(f"part.{'weights' if part.count is None else 'count'}: a mean cannot be divided by 0")
    if part.columns is not None and (len(part.columns) != count or part.over_heads is not None):
        raise ValueError("part.columns: must be one for each head, and heads must stay apart")
    if part.columns is not None and len(set(part.columns)) < count:
        raise ValueError(f"part.columns: must differ, not {part.columns}")
    name = "column" if part.columns is None else "columns"
    columns = part.columns or range(part.column, part.column + (count if part.over_heads is None else 1))
    if min(columns) < 0 or max(columns) >= result.values.shape[3]:
        given = f"{min(columns)} to {max(columns)}"
        raise ValueError(f"part.{name}: must be within 0 to {result.values.shape[3] - 1}, not {given}")


@lru_cache(maxsize=256)
def constant(numbers: tuple[int, ...] | tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A part's numbers as a tensor: copied to the device once, not at every step.

    The type is in the key, and not told from the numbers: to a cache, 1 and 1.0 are the same.
    """
    return torch.tensor(numbers, dtype=dtype, device=device)
