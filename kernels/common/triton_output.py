"""`LayerSpec` and `AttentionTensors` as Triton kernels see them: which heads, and where their numbers go."""
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

from .attention_tensors import AttentionTensors, LayerSpec, constant, new_attention_tensors
from .encoding_reference import pack

MAX_TOP_K = 32  # more would take long to compile, and registers
_FLOATS_BYTES = 32 * 1024**2  # of rows that are written as floats at once, to be sorted
_MULTIPLE = 16  # of queries in a slice: where a multiple begins, Triton needs no kernel but that of the first


class Selected(NamedTuple):
    """`LayerSpec` as a kernel sees it."""

    count: int  # heads  # pyright: ignore[reportIncompatibleMethodOverride]
    heads: Tensor | None  # int32; None: all in order
    columns: Tensor | None
    weights: Tensor | None
    divisor: float
    layers: float


def selected(part: LayerSpec, heads: int, device: torch.device) -> Selected:
    """What a kernel is told of a part of a layer with so many heads."""
    return Selected(
        heads if part.heads is None else len(part.heads),
        None if part.heads is None else constant(part.heads, torch.int32, device),
        None if part.columns is None else constant(part.columns, torch.int32, device),
        None if part.weights is None else constant(part.weights, torch.float32, device),
        part.divisor_of(heads),
        float(part.layer_count),
    )


def folding(part: LayerSpec, result: AttentionTensors) -> dict[str, object]:
    """The arguments that all kernels take for what becomes of heads and layers."""
    return {
        "total": result.total,
        "OVER_HEADS": part.over_heads or "",
        "OVER_LAYERS": part.over_layers or "",
        "AS_ONE": part.as_one,
        "FIRST": part.first,
    }


def side_by_side(part: LayerSpec, heads: int, columns: int, most: int) -> int:
    """How many heads one program may write side by side, at most `most`, a power of two.

    A store is aligned if the places before it, too, are multiples of their number.
    """
    if part.over_heads is not None or part.heads is not None or part.columns is not None:
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


def padded_top_k(result: AttentionTensors) -> int:
    """How many positions of a row a kernel picks: a power of two, at least two, as Triton picks them; 0 for all."""
    return max(2, 1 << (result.top_k - 1).bit_length()) if result.top_k else 0


def by_sorting(result: AttentionTensors, part: LayerSpec) -> bool:
    """Whether the layer is written as floats first and sorted then, some queries at a time.

    A top-k of hundreds is close to everything: nothing is saved by never writing the rest.
    """
    return result.top_k > MAX_TOP_K and part.last


def query_slices(result: AttentionTensors, columns: int) -> list[slice]:
    """The queries of a result, in slices whose floats, of so many columns, are bounded in memory."""
    batch, queries = result.values.shape[:2]
    step = max(1, _FLOATS_BYTES // (4 * batch * result.length * columns))
    if step > _MULTIPLE:
        step -= step % _MULTIPLE
    return [slice(begin, min(begin + step, queries)) for begin in range(0, queries, step)]


def columns_of(part: LayerSpec, heads: int) -> int:
    """How many columns a part of a layer with so many heads has."""
    if part.over_heads is not None:
        return 1
    return heads if part.heads is None else len(part.heads)


def as_floats(
    result: AttentionTensors, part: LayerSpec, heads: int, queries: slice
) -> tuple[AttentionTensors, LayerSpec]:
    """A dense result for some queries of this layer alone, and the part that writes into it."""
    count = queries.stop - queries.start
    shape = (result.values.shape[0], count, result.length, columns_of(part, heads))
    # Kernels take what the layers before have become as it was made: without gaps.
    total = None if result.total is None else result.total[:, queries].contiguous()
    floats = new_attention_tensors(*shape, device=result.values.device)
    return floats._replace(total=total), part._replace(column=0, columns=None)


def sort_into(result: AttentionTensors, part: LayerSpec, floats: AttentionTensors, queries: slice) -> None:
    """Packs what `as_floats` was filled with, on the device."""
    place = slice(part.column, part.column + floats.values.shape[3])
    columns = place if part.columns is None else constant(part.columns, torch.int32, result.values.device)
    sort_all(result, floats.values, queries, columns)


def sort_all(result: AttentionTensors, rows: Tensor, queries: slice, columns: slice | Tensor = slice(None)) -> None:
    """Packs rows, float32 `[B, queries, S, C]`, into some columns of a result, or all."""
    packed = pack(rows, result.values.dtype, result.top_k)
    for to, made in zip((result.values, result.scales, result.positions), packed, strict=True):
        if to is not None:
            to[:, queries][..., columns] = made
