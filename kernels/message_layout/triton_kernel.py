"""`layout` in Triton: one kernel, one launch, whatever is reduced.

Knows tiles, pointers and strides; what the reductions mean, `reductions` says, and the numbers to be equal to are those
of the reference. Does not know who asks, or whether a GPU is there.

**Bytes moved.** Every probability is read once and every number of the result is written once, the least possible: with
s bytes in and t bytes out, `s * B * L * H * Q * K` read and t bytes for each number of the result written. Nothing lies
between the two reductions, and the layers are not stacked first: their addresses travel as kernel arguments. Bytes,
whose scale must be known first, and the greatest positions have a kernel of their own, of a row a program, which reads
rows of more than 4,096 positions twice.

**Which tile.** The result is a matrix of positions, `B * Q * K` of them, by columns: `L * H`, or L with heads reduced,
or one with both. A program owns a tile of it, in registers as `[columns, positions]`, and folds heads (then layers)
into it one after the other, in float32. No atomics, and one order always: results are deterministic.

**What is coalesced.** Loads run along K, where the input is contiguous: 128 bits for each thread as soon as strides are
multiples of 16, the unit in which Triton knows alignment. (An odd K leaves the rows of heads unaligned: loads are then
of one number for each thread, neighbours still side by side.) Stores run along the columns, where the result is
contiguous; the tile is turned round in between, through shared memory. Unreduced, one layer's heads are a run of H
numbers, and the layers of a position are neighbours; programs are numbered columns first, so that the runs of a row are
written at about the same time and meet in L2, also where H numbers are less than a sector of 32 bytes. A thread stores
128 bits of float32 where H (or L, with heads reduced) is a multiple of 4, 64 where it is even. An odd one cannot have
more than 32: no power of two divides the places where its runs begin.
"""
# Triton's language is untyped: what the kernel's body does is checked by tests, not by pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUntypedFunctionDecorator=false
# pyright: reportIndexIssue=false, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.attention_tensors import AttentionTensors
from ..common.launch import Launch
from ..common.reductions import REDUCTIONS, Reduction
from ..common.triton_output import MAX_TOP_K, padded_top_k, query_slices, sort_all
from ..common.triton_reduce import (
    NO_RANK,
    best,
    byte_of,
    first,
    fold,
    last,
    rank,
    ranked_number,
    ranked_position,
    scale_of,
)

_TILE = 2048  # numbers in a tile: 16 for each thread of four warps, so four loads of 128 bits in flight
_SHARED_BY_MANY = 1024  # numbers of a tile, above which eight warps fold it
_MIN_BLOCK_P = 32
_MAX_BLOCK_P = 1024  # more, in one column, takes over 200 registers
_MAX_BLOCK_C = 16
_MIN_BLOCK_K = 512
_MAX_BLOCK_K = 4096  # of a row that is packed
_WARP_K = 256  # numbers of such a row for each warp: more for each thread spill, fewer are read in narrower loads
_PROGRAMS = 256  # enough to fill a GPU: an H100 has 132 multiprocessors, an MI300X 304


@triton.jit
def _pick(layers, index):
    """The address of layer `index`, a scalar: a chain of selects, as kernel arguments have no address."""
    address = layers[0]
    for i in tl.static_range(1, len(layers)):
        address = tl.where(index == i, layers[i], address)
    return address


@triton.jit
def _pick_each(layers, index, ALIGNED: tl.constexpr):
    """The addresses of the layers that a tensor of indices names.

    Selected as numbers: Triton's AMD backend cannot select between tensors of pointers that it knows to be below 2 GB.
    """
    address = layers[0].to(tl.int64)
    for i in tl.static_range(1, len(layers)):
        address = tl.where(index == i, layers[i].to(tl.int64), address)
    address = address.to(layers[0].dtype, bitcast=True)
    if ALIGNED:  # said again, as numbers lose it
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def _reduce_heads(REDUCTION: tl.constexpr, x, inside, heads, stride_h):
    """The heads of a tile of addresses `x`, that of head 0, as one float32 tile."""
    value = first(REDUCTION, tl.load(x, mask=inside, other=0.0).to(tl.float32))
    for _ in tl.range(1, heads, loop_unroll_factor=4):  # unrolled, so that several loads are in flight
        x += stride_h
        value = fold(REDUCTION, value, tl.load(x, mask=inside, other=0.0).to(tl.float32))
    return last(REDUCTION, value, heads)


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
    INDEX: tl.constexpr,  # the integers that hold a position: 32 bits, as division is slow in 64, or 64
    UNIT: tl.constexpr,  # a power of two that the number of columns side by side, H or L, is a multiple of
    ALIGNED: tl.constexpr,  # whether all addresses are multiples of 16
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Writes one tile, `BLOCK_P` positions by `BLOCK_C` columns, of the result."""
    # What a run of columns is made of: heads, layers, or nothing. Divided and multiplied, so that the compiler knows
    # the unit that the length of a run, hence the place of the next one, is a multiple of.
    run = 1 if OVER_LAYERS != "" else (count if OVER_HEADS != "" else heads) // UNIT * UNIT
    runs = count if OVER_HEADS == "" else 1
    run_tiles = (run + BLOCK_C - 1) // BLOCK_C
    column_tile = tl.program_id(0) % (runs * run_tiles)
    in_run = column_tile % run_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    position = (tl.program_id(0) // (runs * run_tiles)).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)

    # Addresses of what is read, [columns, positions]. Offsets are of 64 bits: a batch of prompts passes 2^31 numbers.
    row = position // keys
    offset = (position % keys).to(tl.int64) * stride_k
    offset += (row % queries).to(tl.int64) * stride_q + (row // queries).to(tl.int64) * stride_b
    offset = offset[None, :]
    stride_h = tl.cast(stride_h, tl.int64)
    inside = (in_run < run)[:, None] & (position < positions)[None, :]

    if OVER_LAYERS != "":
        x = _pick(layers, 0) + offset
        value = first(OVER_LAYERS, _reduce_heads(OVER_HEADS, x, inside, heads, stride_h))
        for layer in range(1, count):
            x = _pick(layers, layer) + offset
            value = fold(OVER_LAYERS, value, _reduce_heads(OVER_HEADS, x, inside, heads, stride_h))
        value = last(OVER_LAYERS, value, count)
    elif OVER_HEADS != "":
        x = _pick_each(layers, in_run, ALIGNED)[:, None] + offset
        value = _reduce_heads(OVER_HEADS, x, inside, heads, stride_h)
    else:
        x = _pick(layers, column_tile // run_tiles) + in_run[:, None] * stride_h + offset
        value = tl.load(x, mask=inside)

    # Turned round for writing, [positions, columns]. Made anew, since Triton sees no order in transposed addresses.
    column = column_tile // run_tiles * run + in_run
    places = out + position.to(tl.int64)[:, None] * (runs * run) + column[None, :]
    tl.store(places, tl.trans(value), mask=(position < positions)[:, None] & (in_run < run)[None, :])


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
    kept,  # k, or K
    stride_b,
    stride_h,
    stride_q,
    stride_k,
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE: tl.constexpr,  # whether that is the whole row
    TOP_K: tl.constexpr,  # a power of two, at least k; 0: all
):
    """Writes the packed row of one query, in one column."""
    row = (tl.program_id(0) // columns).to(tl.int64)
    column = tl.program_id(0) % columns
    stride_h = tl.cast(stride_h, tl.int64)
    # Added to addresses before the places of keys are: a number for all threads needs no register of each.
    start = row // queries * stride_b + row % queries * stride_q
    greatest = tl.full((1,), float("-inf"), tl.float32)
    ranks = tl.full((1, TOP_K if TOP_K > 0 else 1), NO_RANK, tl.int64)
    for sweep in tl.static_range(2 if TOP_K == 0 and not WHOLE else 1):
        scale = scale_of(greatest)
        for begin in range(0, keys, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            inside = k < keys
            offset = k.to(tl.int64) * stride_k
            if OVER_LAYERS != "":
                value = _reduce_heads(OVER_HEADS, _pick(layers, 0) + start + offset, inside, heads, stride_h)
                value = first(OVER_LAYERS, value)
                for layer in range(1, count):
                    x = _reduce_heads(OVER_HEADS, _pick(layers, layer) + start + offset, inside, heads, stride_h)
                    value = fold(OVER_LAYERS, value, x)
                value = last(OVER_LAYERS, value, count)
            elif OVER_HEADS != "":
                value = _reduce_heads(OVER_HEADS, _pick(layers, column) + start + offset, inside, heads, stride_h)
            else:
                x = _pick(layers, column // heads) + column % heads * stride_h + start + offset
                value = tl.load(x, mask=inside, other=0.0).to(tl.float32)
            if TOP_K > 0:
                ranks = best(ranks, tl.where(inside, rank(value, k), NO_RANK)[None, :], 1, TOP_K)
            elif sweep == 0:
                greatest = tl.maximum(greatest, tl.max(tl.where(inside, value, float("-inf")), 0))
                scale = scale_of(greatest) if WHOLE else scale
            if TOP_K == 0 and (WHOLE or sweep == 1):
                tl.store(out + (row * kept + k) * columns + column, byte_of(value, scale), mask=inside)
    if TOP_K > 0:
        j = tl.arange(0, TOP_K)[None, :]
        value = tl.where(j < kept, ranked_number(ranks), float("-inf"))  # ranks are padded to a power of two
        places = (row * kept + j) * columns + column
        tl.store(positions + places, ranked_position(ranks), mask=j < kept)
        if scales is not None:
            greatest = tl.max(value, 1)
            tl.store(out + places, byte_of(value, scale_of(greatest)[:, None]), mask=j < kept)
        else:
            tl.store(out + places, value, mask=j < kept)
    if scales is not None:
        tl.store(scales + row * columns + column + tl.arange(0, 1), scale_of(greatest))


def layout_triton(
    layers: Sequence[Tensor], over_heads: Reduction | None, over_layers: Reduction | None, out_dtype: torch.dtype
) -> Tensor:
    """As `layout` has it, on what `layout` has checked."""
    batch, heads, queries, keys = layers[0].shape
    shape = (batch, queries, keys)
    if over_layers is None:
        shape += (len(layers),)
    if over_heads is None:
        shape += (heads,)
    out = torch.empty(shape, dtype=out_dtype, device=layers[0].device)
    plan(layers, out, over_heads, over_layers).run()
    return out


def layout_into_triton(
    layers: Sequence[Tensor], result: AttentionTensors, over_heads: Reduction | None, over_layers: Reduction | None
) -> None:
    """As `layout_into` has it, on what it has checked."""
    if result.is_dense_float:
        plan(layers, result.values, over_heads, over_layers).run()
    elif result.top_k > MAX_TOP_K:
        batch, _, _, columns = result.values.shape
        for queries in query_slices(result, columns):
            count = queries.stop - queries.start
            floats = torch.empty(batch, count, result.length, columns, device=layers[0].device)
            plan([layer[:, :, queries] for layer in layers], floats, over_heads, over_layers).run()
            sort_all(result, floats, queries)
    else:
        plan_packed(layers, result, over_heads, over_layers).run()


def plan_packed(
    layers: Sequence[Tensor], result: AttentionTensors, over_heads: Reduction | None, over_layers: Reduction | None
) -> Launch:
    """The launch that fills a result of bytes, or of the greatest positions."""
    batch, heads, queries, keys = layers[0].shape
    columns = result.values.shape[3]
    assert result.values.is_contiguous()
    layers, (stride_b, stride_h, stride_q, stride_k) = _alike(layers)
    block_k = min(_MAX_BLOCK_K, max(_MIN_BLOCK_K, triton.next_power_of_2(keys)))
    return Launch(
        packed_layout_kernel,
        (batch * queries * columns,),
        {
            "layers": _padded(layers),
            "out": result.values,
            "scales": result.scales,
            "positions": result.positions,
            "queries": queries,
            "keys": keys,
            "heads": heads,
            "count": len(layers),
            "columns": columns,
            "kept": result.values.shape[2],
            "stride_b": stride_b,
            "stride_h": stride_h,
            "stride_q": stride_q,
            "stride_k": stride_k,
            "OVER_HEADS": over_heads or "",
            "OVER_LAYERS": over_layers or "",
            "BLOCK_K": block_k,
            "WHOLE": keys <= block_k,
            "TOP_K": padded_top_k(result),
        },
        num_warps=block_k // _WARP_K,
    )


def plan(layers: Sequence[Tensor], out: Tensor, over_heads: Reduction | None, over_layers: Reduction | None) -> Launch:
    """Chooses tiles for a launch that fills `out`, and asserts that the kernel may run on these tensors."""
    batch, heads, queries, keys = layers[0].shape
    count = len(layers)
    positions = batch * queries * keys
    assert over_heads in (None, *REDUCTIONS)
    assert over_layers is None or (over_layers in REDUCTIONS and over_heads is not None)
    columns = 1 if over_layers else count if over_heads else count * heads
    assert out.is_contiguous()
    assert out.numel() == positions * columns
    assert positions
    assert columns
    for layer in layers:
        assert layer.shape == layers[0].shape
        assert layer.dtype == layers[0].dtype
        assert layer.device == out.device

    layers, (stride_b, stride_h, stride_q, stride_k) = _alike(layers)
    # Rows that follow one another in memory are one long row: loads then stay wide whatever K is.
    queries, keys, stride_q, stride_k = _merge(queries, keys, stride_q, stride_k)

    run = 1 if over_layers else count if over_heads else heads
    block_c = min(_MAX_BLOCK_C, triton.next_power_of_2(run))
    column_tiles = triton.cdiv(run, block_c) * (columns // run)
    # Wide tiles once there is work for every multiprocessor, narrow ones, of a line of memory, until then.
    block_p = max(_MIN_BLOCK_P, triton.next_power_of_2(positions * column_tiles // _PROGRAMS))
    block_p = min(block_p, _MAX_BLOCK_P, _TILE // block_c)
    return Launch(
        layout_kernel,
        (triton.cdiv(positions, block_p) * column_tiles,),
        {
            "layers": _padded(layers),
            "out": out,
            "positions": positions,
            "queries": queries,
            "keys": keys,
            "heads": heads,
            "count": count,
            "stride_b": stride_b,
            "stride_h": stride_h,
            "stride_q": stride_q,
            "stride_k": stride_k,
            "OVER_HEADS": over_heads or "",
            "OVER_LAYERS": over_layers or "",
            "INDEX": tl.int32 if positions + block_p < 2**31 else tl.int64,
            "UNIT": math.gcd(run, _MAX_BLOCK_C),
            "ALIGNED": all(layer.data_ptr() % 16 == 0 for layer in layers),
            "BLOCK_P": block_p,
            "BLOCK_C": block_c,
        },
        # A fold keeps a tile in registers beside the one that is read: large ones, shared by more threads, leave room
        # for more warps, and Triton 3.6 spills nothing on sm_100. Smaller tiles would be read in narrower loads.
        num_warps=8 if over_heads and block_p * block_c > _SHARED_BY_MANY else 4,
    )


def _alike(layers: Sequence[Tensor]) -> tuple[Sequence[Tensor], tuple[int, ...]]:
    """Layers of the same strides, and these."""
    strides = {_strides(layer) for layer in layers}
    if len(strides) > 1:  # views of different kinds: rare, and worth a copy rather than four strides for each layer
        layers = [layer.contiguous() for layer in layers]
        strides = {_strides(layer) for layer in layers}
    return layers, strides.pop()


def _padded(layers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Padded to a power of two, so that a capture of 23 layers needs no kernel but that of 32."""
    return (*layers, *[layers[-1]] * (triton.next_power_of_2(len(layers)) - len(layers)))


def _strides(layer: Tensor) -> tuple[int, ...]:
    """A layer's strides, 0 for axes of size 1: theirs mean nothing, and two layers may differ in them."""
    return tuple(0 if size == 1 else stride for size, stride in zip(layer.shape, layer.stride(), strict=True))


def _merge(queries: int, keys: int, stride_q: int, stride_k: int) -> tuple[int, int, int, int]:
    """Sizes and strides of the two last axes, made one wherever one stride walks both."""
    if keys == 1:
        return 1, queries, 0, stride_q
    if queries == 1 or stride_q == keys * stride_k:
        return 1, queries * keys, 0, stride_k
    return queries, keys, stride_q, stride_k
