"""`Part` and `Result` as Triton kernels see them: which heads, and where their numbers go."""
# Triton's language is untyped: what the kernel's body does is checked by tests, not by pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUntypedFunctionDecorator=false
# pyright: reportIndexIssue=false, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportUnnecessaryComparison=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pack_reference import pack
from .result import Part, Result, constant, new_result

MAX_TOP_K = 32  # more would take long to compile, and registers


class Selected(NamedTuple):
    """`Part` as a kernel sees it."""

    count: int  # heads  # pyright: ignore[reportIncompatibleMethodOverride]
    heads: Tensor | None  # int32; None: all in order
    columns: Tensor | None
    weights: Tensor | None
    divisor: float
    layers: float


def selected(part: Part, heads: int, device: torch.device) -> Selected:
    """What a kernel is told of a part of a layer with so many heads."""
    return Selected(
        heads if part.heads is None else len(part.heads),
        None if part.heads is None else constant(part.heads, torch.int32, device),
        None if part.columns is None else constant(part.columns, torch.int32, device),
        None if part.weights is None else constant(part.weights, torch.float32, device),
        float(part.divisor or heads),
        float(part.layer_count),
    )


def folding(part: Part, result: Result) -> dict[str, object]:
    """The arguments that all kernels take for what becomes of heads and layers."""
    return {
        "total": result.total,
        "OVER_HEADS": part.over_heads or "",
        "OVER_LAYERS": part.over_layers or "",
        "AS_ONE": part.as_one,
        "FIRST": part.first,
    }


def side_by_side(part: Part, heads: int, columns: int, most: int) -> int:
    """How many heads one program may write side by side, at most `most`, a power of two.

    A store is aligned if the places before it, too, are multiples of their number.
    """
    if part.over_heads is not None or part.heads is not None:
        return 1
    block = most
    while heads % block or columns % block or part.column % block:
        block //= 2
    return block


@triton.jit
def head_of(part, i):
    """The query head that is i-th in a part, int64."""
    head = i
    if part.heads is not None:
        head = tl.load(part.heads + i)
    return tl.cast(head, tl.int64)


def padded_top_k(result: Result) -> int:
    """How many positions of a row a kernel picks: a power of two, at least two, as Triton picks them; 0 for all."""
    return max(2, 1 << (result.top_k - 1).bit_length()) if result.top_k else 0


def by_sorting(result: Result, part: Part) -> bool:
    """Whether the layer is written as floats first and sorted then: a top-k of hundreds is close to everything."""
    return result.top_k > MAX_TOP_K and part.last


def as_floats(result: Result, part: Part, heads: int) -> tuple[Result, Part]:
    """A dense result for this layer alone, and the part that writes into it."""
    count = (heads if part.heads is None else len(part.heads)) if part.over_heads is None else 1
    floats = new_result(*result.values.shape[:2], result.length, count, device=result.values.device)
    return floats._replace(total=result.total), part._replace(column=0, columns=None)


def sort_into(result: Result, part: Part, floats: Result) -> None:
    """Packs what `as_floats` was filled with, on the device."""
    place = slice(part.column, part.column + floats.values.shape[3])
    columns = place if part.columns is None else constant(part.columns, torch.int32, result.values.device)
    sort_all(result, floats.values, columns)


def sort_all(result: Result, rows: Tensor, columns: slice | Tensor = slice(None)) -> None:
    """Packs rows, float32 `[B, T, S, C]`, into some columns of a result, or all."""
    packed = pack(rows, result.values.dtype, result.top_k)
    for to, made in zip((result.values, result.scales, result.positions), packed, strict=True):
        if to is not None:
            to[..., columns] = made
