"""The output of Triton kernels: `LayerSpec` as kernels see it, where numbers go, and how encoded rows are stored."""
# Triton's language is untyped: tests check the kernels' bodies.
# pyright: basic, reportIndexIssue=false, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_tensors import AttentionTensors, LayerSpec, device_constant, new_attention_tensors
from .encoding_reference import pack
from .key_weighting import KeyWeighting
from .triton_reduce import byte_scale, sort_key_position, sort_key_value, to_byte
from .triton_scores import StridedTensor, to_strided

MAX_TOP_K = 32  # a larger k would take long to compile, and many registers
MIN_PROGRAMS = 256  # enough to fill a GPU: an H100 has 132 multiprocessors, an MI300X 304
STAGING_BYTES = 48 * 1024  # of shared memory for tiles that are being loaded; MI300 has 64 KiB in all
_FLOAT_BYTES = 32 * 1024**2  # of rows that are written as floats at once, to be sorted
_SLICE_MULTIPLE = 16  # queries of a slice: a slice that begins at a multiple needs no other kernel than the first


# ---- on the host ----------------------------------------------------------------------------------------------------


class KernelSpec(NamedTuple):
    """`LayerSpec` as a kernel sees it."""

    num_heads: int
    heads: Tensor | None  # int32; None: all, in order
    columns: Tensor | None
    weights: Tensor | None
    divisor: float
    num_layers: float
    factors: StridedTensor | None  # [1 or B, H, 1, S]; None: all are 1


def to_kernel_spec(spec: LayerSpec, heads: int, device: torch.device, weighting: KeyWeighting) -> KernelSpec:
    """Returns the spec of a layer with so many heads for a kernel, with the factors of its keys."""
    return KernelSpec(
        heads if spec.heads is None else len(spec.heads),
        None if spec.heads is None else device_constant(spec.heads, torch.int32, device),
        None if spec.columns is None else device_constant(spec.columns, torch.int32, device),
        None if spec.weights is None else device_constant(spec.weights, torch.float32, device),
        spec.mean_divisor(heads),
        float(spec.num_layers),
        None if weighting.factors is None else to_strided(weighting.factors[:, :, None]),
    )


def reduction_arguments(spec: LayerSpec, out: AttentionTensors) -> dict[str, object]:
    """Returns the arguments that all kernels take for the reduction of heads and layers."""
    return {
        "accumulator": out.accumulator,
        "OVER_HEADS": spec.over_heads or "",
        "OVER_LAYERS": spec.over_layers or "",
        "POOLS_ALL_HEADS": spec.pools_all_heads,
        "FIRST": spec.is_first,
    }


def packed_arguments(spec: LayerSpec, out: AttentionTensors) -> dict[str, object]:
    """Returns the arguments that kernels take for encoded rows."""
    return {
        "out": out.values,
        "scales": out.scales,
        "positions": out.positions,
        "columns": out.values.shape[3],
        "column": spec.column,
        "num_kept": out.values.shape[2],
        "TOP_K": padded_top_k(out),
    }


def heads_per_program(spec: LayerSpec, heads: int, columns: int, max_heads: int) -> int:
    """Returns how many heads one program may write side by side: a power of two, at most `max_heads`.

    A store is aligned if the columns before it, too, are multiples of this number.
    """
    if spec.over_heads is not None or spec.heads is not None or spec.columns is not None:
        return 1
    block = max_heads
    while heads % block or columns % block or spec.column % block:
        block //= 2
    return block


def padded_top_k(out: AttentionTensors) -> int:
    """Returns how many positions a kernel selects: a power of two, at least two, as tl.topk needs it; 0 for all."""
    return max(2, 1 << (out.top_k - 1).bit_length()) if out.top_k else 0


def uses_sort(out: AttentionTensors, spec: LayerSpec) -> bool:
    """Returns whether the layer is written as floats first and sorted then, a slice of queries at a time.

    A top-k of hundreds is close to all positions: a kernel that never writes the rest would save nothing.
    """
    return out.top_k > MAX_TOP_K and spec.is_last


def query_slices(out: AttentionTensors, columns: int) -> list[slice]:
    """Returns slices of the queries whose floats, with so many columns, are bounded in memory."""
    batch, queries = out.values.shape[:2]
    step = max(1, _FLOAT_BYTES // (4 * batch * out.length * columns))
    if step > _SLICE_MULTIPLE:
        step -= step % _SLICE_MULTIPLE
    return [slice(begin, min(begin + step, queries)) for begin in range(0, queries, step)]


def new_float_tensors(
    out: AttentionTensors, spec: LayerSpec, heads: int, queries: slice
) -> tuple[AttentionTensors, LayerSpec]:
    """Allocates dense tensors for a slice of queries of this layer alone. Returns them and the spec for them."""
    count = queries.stop - queries.start
    shape = (out.values.shape[0], count, out.length, spec.num_columns(heads))
    # Kernels read the accumulator without strides: it must be contiguous.
    accumulator = None if out.accumulator is None else out.accumulator[:, queries].contiguous()
    floats = new_attention_tensors(*shape, device=out.values.device)
    return floats._replace(accumulator=accumulator), spec._replace(column=0, columns=None)


def pack_float_tensors(out: AttentionTensors, spec: LayerSpec, floats: AttentionTensors, queries: slice) -> None:
    """Encodes the rows of `new_float_tensors` into `out`, on the device."""
    columns: slice | Tensor = slice(spec.column, spec.column + floats.values.shape[3])
    if spec.columns is not None:
        columns = device_constant(spec.columns, torch.int32, out.values.device)
    pack_rows(out, floats.values, queries, columns)


def pack_rows(out: AttentionTensors, rows: Tensor, queries: slice, columns: slice | Tensor = slice(None)) -> None:
    """Encodes rows, float32 `[B, queries, S, C]`, into some columns of `out`, or all."""
    packed = pack(rows, out.values.dtype, out.top_k)
    for to, source in zip((out.values, out.scales, out.positions), packed, strict=True):
        if to is not None:
            to[:, queries][..., columns] = source


# ---- in kernels -----------------------------------------------------------------------------------------------------


@triton.jit
def load_head(spec, i):
    """The i-th query head of a spec, int64."""
    head = i
    if spec.heads is not None:
        head = tl.load(spec.heads + i)
    return tl.cast(head, tl.int64)


@triton.jit
def with_factors(spec, x, b, h, k, inside):
    """The numbers x of the keys k of head h, multiplied by the factors of these keys."""
    if spec.factors is not None:
        factors = spec.factors.address + b * spec.factors.b + h * spec.factors.h + k * spec.factors.d
        x *= tl.load(factors, mask=inside, other=0.0)
    return x


@triton.jit
def locate_heads(spec, program, columns, column, BLOCK_C: tl.constexpr, OVER_HEADS: tl.constexpr):
    """The batch row of a program, its first head, the number of columns, and the column of the first head.

    The number of columns and the column are divided and multiplied by BLOCK_C, so that the compiler knows that the
    addresses of heads side by side are aligned.
    """
    programs = spec.num_heads // BLOCK_C if OVER_HEADS == "" else 1  # along heads
    begin = program % programs * BLOCK_C
    columns = columns // BLOCK_C * BLOCK_C
    column = column // BLOCK_C * BLOCK_C + begin
    return (program // programs).to(tl.int64), begin, columns, column


@triton.jit
def locate_packed_head(spec, program, column, OVER_HEADS: tl.constexpr):
    """The batch row of a program that stores encoded rows, its head, and the column of the head."""
    programs = spec.num_heads if OVER_HEADS == "" else 1
    i = program % programs
    if OVER_HEADS == "":
        column += i
        if spec.columns is not None:
            column = tl.load(spec.columns + i)
    return (program // programs).to(tl.int64), i, column


@triton.jit
def store_packed(
    out,  # [rows, S or k, columns]
    scales,  # [rows, columns]; None: the numbers are floats
    positions,  # int32 [rows, k, columns]; None: all positions are kept, and written already
    rows,  # int64 [R]
    is_row,  # bool [R]: whether there is such a row; None: all
    columns,
    column,
    num_kept,  # k
    sort_keys,  # [R, TOP_K], greatest first; see sort_key
    row_max,  # [R]: without top-k, the greatest number of each row
    TOP_K: tl.constexpr,  # a power of two, at least k; 0: all positions are kept
):
    """Stores what remains of encoded rows once all their numbers are known: the top k, and the scales of bytes."""
    if TOP_K > 0:
        j = tl.arange(0, TOP_K)[None, :]
        value = tl.where(j < num_kept, sort_key_value(sort_keys), float("-inf"))  # k is padded to a power of two
        offsets = (rows[:, None] * num_kept + j) * columns + column
        inside = j < num_kept
        if is_row is not None:
            inside = inside & is_row[:, None]
        tl.store(positions + offsets, sort_key_position(sort_keys), mask=inside)
        if scales is not None:
            row_max = tl.max(value, 1)
            tl.store(out + offsets, to_byte(value, byte_scale(row_max)[:, None]), mask=inside)
        else:
            tl.store(out + offsets, value, mask=inside)
    if scales is not None:
        tl.store(scales + rows * columns + column, byte_scale(row_max), mask=is_row)
