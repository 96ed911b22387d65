"""`layout_into` in Triton: one kernel and one launch, whatever is reduced.

**Bytes moved.** Every probability is read once and every number of the result is written once, the least possible: with
s bytes in and t bytes out, `s * B * L * H * Q * K` read, and t bytes written for each number of the result. Nothing is
stored between the two reductions, and layers are not stacked first: their addresses are kernel arguments. Bytes, whose
scale must be known first, and top-k have a kernel of their own, with a program for each row, which reads rows of more
than 4,096 positions twice.

**Tiles.** The result is a matrix of positions, `B * Q * K` of them, by columns: `L * H`, or L with heads reduced, or
one with both. A program owns a tile of it, in registers as `[columns, positions]`, and reduces heads (then layers) into
the tile one after another, in float32. There are no atomics, and the order is always the same: results are
deterministic.

**Memory access.** Loads run along K, where the input is contiguous: 128 bits for each thread where strides are
multiples of 16, the unit in which Triton knows alignment. (An odd K leaves the rows of heads unaligned: loads are then
of one number for each thread, neighbours still side by side.) Stores run along the columns, where the result is
contiguous; the tile is transposed in between, through shared memory. Without reductions, the heads of one layer are a
run of H numbers, and the layers of a position are neighbours; programs are numbered columns first, so that the runs of
a row are written at about the same time and meet in L2, also where H numbers are less than a sector of 32 bytes. A
thread stores 128 bits of float32 where H (or L, with heads reduced) is a multiple of 4, 64 bits where it is even. An
odd number cannot have more than 32 bits: no power of two divides the offsets at which its runs begin.
"""
# Triton's language is untyped: tests check the kernels' bodies.
# pyright: basic, reportIndexIssue=false, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.attention_tensors import AttentionTensors
from ..common.launch import Launch
from ..common.reductions import REDUCTIONS, Reduction
from ..common.triton_output import MAX_TOP_K, MIN_PROGRAMS, pack_rows, padded_top_k, query_slices, store_packed
from ..common.triton_reduce import (
    MIN_SORT_KEY,
    byte_scale,
    finish_fold,
    fold,
    init_fold,
    merge_top_k,
    sort_key,
    to_byte,
)

_TILE_NUMBERS = 2048  # of a tile: 16 for each thread of four warps, so four loads of 128 bits in flight
_LARGE_TILE = 1024  # numbers of a tile, above which eight warps reduce it
_MIN_BLOCK_P = 32
_MAX_BLOCK_P = 1024  # more, in one column, takes over 200 registers
_MAX_BLOCK_C = 16
_MIN_BLOCK_K = 512
_MAX_BLOCK_K = 4096  # of a row that is encoded
_NUMBERS_PER_WARP = 256  # of such a row: more for each thread spill, fewer are read in narrower loads


@triton.jit
def _select_address(layers, index):
    """The address of layer `index`, a scalar: a chain of selects, since kernel arguments have no address."""
    address = layers[0]
    for i in tl.static_range(1, len(layers)):
        address = tl.where(index == i, layers[i], address)
    return address


@triton.jit
def _select_addresses(layers, index, ALIGNED: tl.constexpr):
    """The addresses of the layers in a tensor of indices.

    Selected as integers: Triton's AMD backend cannot select between tensors of pointers that it knows to be below 2 GB.
    """
    address = layers[0].to(tl.int64)
    for i in tl.static_range(1, len(layers)):
        address = tl.where(index == i, layers[i].to(tl.int64), address)
    address = address.to(layers[0].dtype, bitcast=True)
    if ALIGNED:  # stated again, since integers lose it
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def _reduce_heads(REDUCTION: tl.constexpr, x, inside, heads, stride_h):
    """Reduces the heads of a tile to one float32 tile. `x` is the addresses of head 0."""
    value = init_fold(REDUCTION, tl.load(x, mask=inside, other=0.0).to(tl.float32))
    for _ in tl.range(1, heads, loop_unroll_factor=4):  # unrolled, so that several loads are in flight
        x += stride_h
        value = fold(REDUCTION, value, tl.load(x, mask=inside, other=0.0).to(tl.float32))
    return finish_fold(REDUCTION, value, heads)


@triton.jit(do_not_specialize=["heads", "count"])
def layout_kernel(
    layers,  # a tuple of addresses, each [B, H, Q, K]; `count` of them, then padding
    out,  # [B * Q * K, columns], contiguous
    positions,  # B * Q * K
    queries,  # Q
    keys,  # K
    heads,  # H
    count,  # L
    stride_b,
    stride_h,
    stride_q,
    stride_k,
    OVER_HEADS: tl.constexpr,  # a reduction, or "" to keep heads apart
    OVER_LAYERS: tl.constexpr,
    INDEX: tl.constexpr,  # the integers of positions: 32 bits, since division is slow in 64 bits, or 64
    UNIT: tl.constexpr,  # a power of two that divides the number of columns of a run, H or L
    ALIGNED: tl.constexpr,  # whether all addresses are multiples of 16
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Writes one tile, `BLOCK_P` positions by `BLOCK_C` columns, of the result."""
    # A run of columns: heads, layers, or one column. Divided and multiplied, so that the compiler knows the unit of
    # which the length of a run, and so the offset of the next run, is a multiple.
    run = 1 if OVER_LAYERS != "" else (count if OVER_HEADS != "" else heads) // UNIT * UNIT
    runs = count if OVER_HEADS == "" else 1
    run_tiles = (run + BLOCK_C - 1) // BLOCK_C
    column_tile = tl.program_id(0) % (runs * run_tiles)
    in_run = column_tile % run_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    position = (tl.program_id(0) // (runs * run_tiles)).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)

    # Addresses to read, [columns, positions]. Offsets have 64 bits: a batch of prompts passes 2^31 numbers.
    row = position // keys
    offset = (position % keys).to(tl.int64) * stride_k
    offset += (row % queries).to(tl.int64) * stride_q + (row // queries).to(tl.int64) * stride_b
    offset = offset[None, :]
    stride_h = tl.cast(stride_h, tl.int64)
    inside = (in_run < run)[:, None] & (position < positions)[None, :]

    if OVER_LAYERS != "":
        x = _select_address(layers, 0) + offset
        value = init_fold(OVER_LAYERS, _reduce_heads(OVER_HEADS, x, inside, heads, stride_h))
        for layer in range(1, count):
            x = _select_address(layers, layer) + offset
            value = fold(OVER_LAYERS, value, _reduce_heads(OVER_HEADS, x, inside, heads, stride_h))
        value = finish_fold(OVER_LAYERS, value, count)
    elif OVER_HEADS != "":
        x = _select_addresses(layers, in_run, ALIGNED)[:, None] + offset
        value = _reduce_heads(OVER_HEADS, x, inside, heads, stride_h)
    else:
        x = _select_address(layers, column_tile // run_tiles) + in_run[:, None] * stride_h + offset
        value = tl.load(x, mask=inside)

    # Addresses to write, [positions, columns]. Computed anew, since Triton sees no order in transposed addresses.
    column = column_tile // run_tiles * run + in_run
    to = out + position.to(tl.int64)[:, None] * (runs * run) + column[None, :]
    tl.store(to, tl.trans(value), mask=(position < positions)[:, None] & (in_run < run)[None, :])


@triton.jit(do_not_specialize=["heads", "count"])
def packed_layout_kernel(
    layers,  # a tuple of addresses, each [B, H, Q, K]; `count` of them, then padding
    out,  # [B, Q, K or k, columns]
    scales,  # [B, Q, columns]; None: the numbers are floats
    positions,  # int32 [B, Q, k, columns]; None: all positions are kept
    queries,  # Q
    keys,  # K
    heads,  # H
    count,  # L
    columns,
    num_kept,  # k, or K
    stride_b,
    stride_h,
    stride_q,
    stride_k,
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE: tl.constexpr,  # whether BLOCK_K is the whole row
    TOP_K: tl.constexpr,  # a power of two, at least k; 0: all
):
    """Writes the encoded row of one query, in one column."""
    row = (tl.program_id(0) // columns).to(tl.int64)
    column = tl.program_id(0) % columns
    stride_h = tl.cast(stride_h, tl.int64)
    # Added to addresses before the offsets of keys: a number for all threads needs no register of each thread.
    start = row // queries * stride_b + row % queries * stride_q
    row_max = tl.full((1,), float("-inf"), tl.float32)
    sort_keys = tl.full((1, TOP_K if TOP_K > 0 else 1), MIN_SORT_KEY, tl.int64)
    for sweep in tl.static_range(2 if TOP_K == 0 and not WHOLE else 1):
        scale = byte_scale(row_max)
        for begin in range(0, keys, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            inside = k < keys
            offset = k.to(tl.int64) * stride_k
            if OVER_LAYERS != "":
                value = _reduce_heads(OVER_HEADS, _select_address(layers, 0) + start + offset, inside, heads, stride_h)
                value = init_fold(OVER_LAYERS, value)
                for layer in range(1, count):
                    x = _reduce_heads(
                        OVER_HEADS, _select_address(layers, layer) + start + offset, inside, heads, stride_h
                    )
                    value = fold(OVER_LAYERS, value, x)
                value = finish_fold(OVER_LAYERS, value, count)
            elif OVER_HEADS != "":
                value = _reduce_heads(
                    OVER_HEADS, _select_address(layers, column) + start + offset, inside, heads, stride_h
                )
            else:
                x = _select_address(layers, column // heads) + column % heads * stride_h + start + offset
                value = tl.load(x, mask=inside, other=0.0).to(tl.float32)
            if TOP_K > 0:
                tile = tl.where(inside, sort_key(value, k), MIN_SORT_KEY)[None, :]
                sort_keys = merge_top_k(sort_keys, tile, 1, TOP_K)
            elif sweep == 0:
                row_max = tl.maximum(row_max, tl.max(tl.where(inside, value, float("-inf")), 0))
                scale = byte_scale(row_max) if WHOLE else scale
            if TOP_K == 0 and (WHOLE or sweep == 1):
                tl.store(out + (row * num_kept + k) * columns + column, to_byte(value, scale), mask=inside)
    rows = row + tl.arange(0, 1)
    store_packed(out, scales, positions, rows, None, columns, column, num_kept, sort_keys, row_max, TOP_K)


def layout_triton(
    layers: Sequence[Tensor], out: AttentionTensors, over_heads: Reduction | None, over_layers: Reduction | None
) -> None:
    """Does what `layout_into` does, with arguments that `layout_into` has checked."""
    if out.is_dense_float:
        plan(layers, out.values, over_heads, over_layers).run()
    elif out.top_k > MAX_TOP_K:
        batch, _, _, columns = out.values.shape
        for queries in query_slices(out, columns):
            count = queries.stop - queries.start
            rows = torch.empty(batch, count, out.length, columns, device=layers[0].device)
            plan([layer[:, :, queries] for layer in layers], rows, over_heads, over_layers).run()
            pack_rows(out, rows, queries)
    else:
        plan_packed(layers, out, over_heads, over_layers).run()


def plan_packed(
    layers: Sequence[Tensor], out: AttentionTensors, over_heads: Reduction | None, over_layers: Reduction | None
) -> Launch:
    """Returns the launch that writes bytes, or the greatest positions."""
    batch, _, queries, keys = layers[0].shape
    columns = out.values.shape[3]
    assert out.values.is_contiguous()
    block_k = min(_MAX_BLOCK_K, max(_MIN_BLOCK_K, triton.next_power_of_2(keys)))
    arguments = {
        **_input_arguments(layers, over_heads, over_layers),
        "out": out.values,
        "scales": out.scales,
        "positions": out.positions,
        "columns": columns,
        "num_kept": out.values.shape[2],
        "BLOCK_K": block_k,
        "WHOLE": keys <= block_k,
        "TOP_K": padded_top_k(out),
    }
    grid = (batch * queries * columns,)
    return Launch(packed_layout_kernel, grid, arguments, num_warps=block_k // _NUMBERS_PER_WARP)


def plan(layers: Sequence[Tensor], out: Tensor, over_heads: Reduction | None, over_layers: Reduction | None) -> Launch:
    """Returns the launch that fills `out` with floats. Asserts that the kernel may run on these tensors."""
    batch, heads, queries, keys = layers[0].shape
    positions = batch * queries * keys
    assert over_heads in (None, *REDUCTIONS)
    assert over_layers is None or (over_layers in REDUCTIONS and over_heads is not None)
    columns = 1 if over_layers else len(layers) if over_heads else len(layers) * heads
    assert out.is_contiguous()
    assert out.numel() == positions * columns > 0
    for layer in layers:
        assert layer.shape == layers[0].shape
        assert layer.dtype == layers[0].dtype
        assert layer.device == out.device

    run = 1 if over_layers else len(layers) if over_heads else heads
    block_c = min(_MAX_BLOCK_C, triton.next_power_of_2(run))
    column_tiles = triton.cdiv(run, block_c) * (columns // run)
    # Wide tiles once there is work for every multiprocessor; until then narrow tiles, of one line of memory.
    block_p = max(_MIN_BLOCK_P, triton.next_power_of_2(positions * column_tiles // MIN_PROGRAMS))
    block_p = min(block_p, _MAX_BLOCK_P, _TILE_NUMBERS // block_c)
    arguments = _input_arguments(layers, over_heads, over_layers)
    # Rows that follow one another in memory are one long row: loads then stay wide whatever K is.
    merged = _merge_axes(queries, keys, arguments["stride_q"], arguments["stride_k"])
    arguments |= dict(zip(("queries", "keys", "stride_q", "stride_k"), merged, strict=True))
    arguments |= {
        "out": out,
        "positions": positions,
        "INDEX": tl.int32 if positions + block_p < 2**31 else tl.int64,
        "UNIT": math.gcd(run, _MAX_BLOCK_C),
        "ALIGNED": all(layer.data_ptr() % 16 == 0 for layer in arguments["layers"]),
        "BLOCK_P": block_p,
        "BLOCK_C": block_c,
    }
    # A reduction keeps one tile in registers beside the tile that is read. Large tiles, shared by more threads, leave
    # registers for more warps, and Triton 3.6 spills nothing on sm_100. Smaller tiles would be read in narrower loads.
    num_warps = 8 if over_heads and block_p * block_c > _LARGE_TILE else 4
    return Launch(layout_kernel, (triton.cdiv(positions, block_p) * column_tiles,), arguments, num_warps=num_warps)


def _input_arguments(
    layers: Sequence[Tensor], over_heads: Reduction | None, over_layers: Reduction | None
) -> dict[str, Any]:
    """Returns the arguments that both kernels take: the layers, their shape and strides, and the reductions.

    Layers are padded to a power of two, so that a capture of 23 layers needs no other kernel than that of 32.
    """
    layers, (stride_b, stride_h, stride_q, stride_k) = _with_equal_strides(layers)
    _, heads, queries, keys = layers[0].shape
    return {
        "layers": (*layers, *[layers[-1]] * (triton.next_power_of_2(len(layers)) - len(layers))),
        "queries": queries,
        "keys": keys,
        "heads": heads,
        "count": len(layers),
        "stride_b": stride_b,
        "stride_h": stride_h,
        "stride_q": stride_q,
        "stride_k": stride_k,
        "OVER_HEADS": over_heads or "",
        "OVER_LAYERS": over_layers or "",
    }


def _with_equal_strides(layers: Sequence[Tensor]) -> tuple[Sequence[Tensor], tuple[int, ...]]:
    """Returns layers of equal strides, and the strides."""
    strides = {_strides(layer) for layer in layers}
    if len(strides) > 1:  # views of different kinds: rare, and a copy is better than four strides for each layer
        layers = [layer.contiguous() for layer in layers]
        strides = {_strides(layer) for layer in layers}
    return layers, strides.pop()


def _strides(layer: Tensor) -> tuple[int, ...]:
    """Returns a layer's strides, 0 for axes of size 1: their strides mean nothing, and may differ between layers."""
    return tuple(0 if size == 1 else stride for size, stride in zip(layer.shape, layer.stride(), strict=True))


def _merge_axes(queries: int, keys: int, stride_q: int, stride_k: int) -> tuple[int, int, int, int]:
    """Returns sizes and strides of the two last axes, merged into one axis where one stride walks both."""
    if keys == 1:
        return 1, queries, 0, stride_q
    if queries == 1 or stride_q == keys * stride_k:
        return 1, queries * keys, 0, stride_k
    return queries, keys, stride_q, stride_k
