"""`rows` in Triton: a softmax over tiles of keys, reduced over heads without an attention matrix in memory.

**Two launches.** `denominator_kernel` reads the keys once for each head and keeps two numbers for each row: the softmax
denominator, as the greatest score and the sum of exponentials relative to it (a running softmax, Milakov and Gimelshein
2018, arXiv:1805.02867). With the denominator, any tile of probabilities can be computed by itself: `rows_kernel`
computes a tile of one head after another and reduces the heads in registers, in float32, always in the same order; only
the result is written. Both kernels use tiles of one size, so that they compute the same scores to the last bit: the
exponential of a large score would show a difference.

**Bytes moved.** The result is written once. Queries are read again for each tile of keys, and keys for each tile of
queries and each query head, in both launches, mostly from L2: any tiled matrix product does this. It is not the limit:
at D = 64 with eight heads, one number of a reduced result takes 2,048 floating-point operations, for the 4 bytes that
are written.

**Heads apart.** Where heads are not reduced, a program computes up to four heads and writes them side by side, in the
layout of a message: 128 bits a thread.

**Encoded rows.** The scale of bytes, and the greatest positions, need the whole row: `packed_rows_kernel` owns some
queries and reads all keys, for bytes once more, since their scale must be known first.
"""
# Triton's language is untyped: tests check the kernels' bodies.
# pyright: basic, reportIndexIssue=false, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.attention_params import AttentionParams
from ..common.attention_tensors import AttentionTensors, LayerSpec, device_constant
from ..common.key_weighting import PLAIN, KeyWeighting, add_shares
from ..common.launch import Launch
from ..common.triton_output import (
    STAGING_BYTES,
    heads_per_program,
    load_head,
    locate_heads,
    locate_packed_head,
    new_float_tensors,
    pack_float_tensors,
    packed_arguments,
    query_slices,
    reduction_arguments,
    store_packed,
    to_kernel_spec,
    uses_sort,
    with_factors,
)
from ..common.triton_reduce import (
    MIN_SORT_KEY,
    byte_scale,
    fold,
    fold_layers,
    merge_top_k,
    neutral_element,
    sort_key,
    to_byte,
)
from ..common.triton_scores import (
    dot_precision,
    finite_max,
    inverse_sum,
    masked_scores,
    to_kernel_params,
    to_strided,
)

_LARGE_TILE = 2048  # numbers of a tile of scores, and of a tile of queries, above which eight warps compute it


class Sizes(NamedTuple):
    """The lengths of the axes."""

    heads: int  # H
    groups: int  # H / Hkv
    queries: int  # T
    keys: int  # S of the keys
    length: int  # positions of the result; the keys are the last of them
    missing: int  # the positions before the keys: Triton knows a 0 as a multiple of 16, but not a difference of lengths


@triton.jit
def _num_visible_keys(score_params, sizes, begin_t, BLOCK_T: tl.constexpr):
    """How many keys, from the first, the queries of a tile may see by causality."""
    end = sizes.keys
    if score_params.first_position is not None:
        end_t = tl.minimum(begin_t + BLOCK_T, sizes.queries)
        end = tl.maximum(tl.minimum(end, score_params.first_position + end_t), 0)
    return end


@triton.jit
def _scores(
    query, key, score_params, sizes, b, h, t, k, D: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr
):
    """A tile of scores of one head, for queries t and keys k: float32 `[t, k]`."""
    is_query = t < sizes.queries
    is_key = (k >= 0) & (k < sizes.keys)
    t = t.to(tl.int64)
    k = k.to(tl.int64)
    queries = query.address + b * query.b + h * query.h + t[:, None] * query.t
    keys = key.address + b * key.b + h // sizes.groups * key.h + k[:, None] * key.t
    scores = tl.zeros((t.shape[0], k.shape[0]), tl.float32)
    for begin in tl.static_range(0, D, BLOCK_D):
        d = (begin + tl.arange(0, BLOCK_D))[None, :]
        q = tl.load(queries + d * query.d, mask=is_query[:, None] & (d < D), other=0.0)
        kt = tl.trans(tl.load(keys + d * key.d, mask=is_key[:, None] & (d < D), other=0.0))
        scores = tl.dot(q, kt, scores, input_precision=PRECISION)
    return masked_scores(score_params, scores, b, h, t[:, None], k[None, :], is_query[:, None] & is_key[None, :])


@triton.jit
def denominator_kernel(
    query,  # StridedTensor [B, H, T, D]
    key,  # StridedTensor [B, Hkv, S, D]
    score_params,
    sizes,
    out,  # [B, H, T, 2], see triton_scores
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes the softmax denominators of some queries of one head."""
    b = (tl.program_id(1) // sizes.heads).to(tl.int64)
    h = (tl.program_id(1) % sizes.heads).to(tl.int64)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    row_max = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    exp_sum = tl.zeros((BLOCK_T,), tl.float32)
    for begin_k in range(0, _num_visible_keys(score_params, sizes, tl.program_id(0) * BLOCK_T, BLOCK_T), BLOCK_S):
        k = begin_k + tl.arange(0, BLOCK_S)
        scores = _scores(query, key, score_params, sizes, b, h, t, k, D, BLOCK_D, PRECISION)
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        base = finite_max(new_max)
        exp_sum = exp_sum * tl.exp(row_max - base) + tl.sum(tl.exp(scores - base[:, None]), 1)
        row_max = new_max
    row = out + ((b * sizes.heads + h) * sizes.queries + t) * 2
    tl.store(row, finite_max(row_max), mask=t < sizes.queries)
    tl.store(row + 1, inverse_sum(exp_sum), mask=t < sizes.queries)


@triton.jit
def _weighted(
    query,
    key,
    score_params,
    sizes,
    spec,
    denominator,
    b,
    h,
    t,
    s,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of numbers of one head, for queries t and positions s, float32 `[t, s]`: probabilities, times factors."""
    k = s - sizes.missing
    scores = _scores(query, key, score_params, sizes, b, h, t, k, D, BLOCK_D, PRECISION)
    row = denominator + ((b * sizes.heads + h) * sizes.queries + t) * 2
    row_max = tl.load(row, mask=t < sizes.queries, other=0.0)
    reciprocal = tl.load(row + 1, mask=t < sizes.queries, other=0.0)
    x = tl.exp(scores - row_max[:, None]) * reciprocal[:, None]
    is_key = ((k >= 0) & (k < sizes.keys))[None, :]
    return with_factors(spec, x, b, h, k.to(tl.int64)[None, :], is_key)


@triton.jit
def _reduced(
    query,
    key,
    score_params,
    sizes,
    spec,
    denominator,
    accumulator,
    b,
    t,
    s,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    POOLS_ALL_HEADS: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """A tile of a layer, reduced over its heads and over the layers before it: float32 `[t, s]`."""
    value = tl.full((t.shape[0], s.shape[0]), neutral_element(OVER_HEADS), tl.float32)
    for i in range(spec.num_heads):
        x = _weighted(
            query, key, score_params, sizes, spec, denominator, b, load_head(spec, i), t, s, D, BLOCK_D, PRECISION
        )
        if spec.weights is not None:
            x *= tl.load(spec.weights + i)
        value = fold(OVER_HEADS, value, x)
    row = (b * sizes.queries + t) * sizes.length
    before = accumulator
    if not FIRST:
        before = accumulator + row[:, None] + s[None, :]
    inside = (t < sizes.queries)[:, None] & (s < sizes.length)[None, :]
    return fold_layers(OVER_HEADS, OVER_LAYERS, POOLS_ALL_HEADS, FIRST, LAST, spec, value, before, inside)


@triton.jit(do_not_specialize=["column"])  # layers have different columns, and share one kernel
def rows_kernel(
    query,  # StridedTensor [B, H, T, D]
    key,  # StridedTensor [B, Hkv, S, D]
    score_params,
    sizes,
    spec,
    denominator,  # [B, H, T, 2]
    accumulator,  # [B, T, S], the reduction of the layers before
    out,  # [B, T, S, columns], or the accumulator if more layers are to come
    columns,
    column,  # the first that is written
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,  # heads side by side: 1, 2 or 4
    PRECISION: tl.constexpr,
    OVER_HEADS: tl.constexpr,  # a reduction, or "" for a column for each head
    OVER_LAYERS: tl.constexpr,
    POOLS_ALL_HEADS: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """Writes one tile of the result: BLOCK_T queries by BLOCK_S positions, of BLOCK_C heads or of all heads reduced."""
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    b, begin, columns, column = locate_heads(spec, tl.program_id(2), columns, column, BLOCK_C, OVER_HEADS)
    to = out + ((b * sizes.queries + t.to(tl.int64)[:, None]) * sizes.length + s[None, :]) * columns
    inside = (t < sizes.queries)[:, None] & (s < sizes.length)[None, :]
    if OVER_HEADS != "":
        value = _reduced(
            query, key, score_params, sizes, spec, denominator, accumulator, b, t, s,
            D, BLOCK_D, PRECISION, OVER_HEADS, OVER_LAYERS, POOLS_ALL_HEADS, FIRST, LAST,
        )  # fmt: skip
        tl.store(to + column, value, mask=inside)
    elif BLOCK_C == 1:
        h = load_head(spec, begin)
        value = _weighted(query, key, score_params, sizes, spec, denominator, b, h, t, s, D, BLOCK_D, PRECISION)
        if spec.columns is not None:
            column = tl.load(spec.columns + begin)
        tl.store(to + column, value, mask=inside)
    else:
        # One head after another into a tile that has the heads side by side, in the order of memory.
        c = tl.arange(0, BLOCK_C)[None, None, :]
        values = tl.zeros((BLOCK_T, BLOCK_S, BLOCK_C), tl.float32)
        for i in range(BLOCK_C):
            h = load_head(spec, begin + i)
            value = _weighted(query, key, score_params, sizes, spec, denominator, b, h, t, s, D, BLOCK_D, PRECISION)
            values = tl.where(c == i, value[:, :, None], values)
        tl.store(to[:, :, None] + (column + c), values, mask=inside[:, :, None])


@triton.jit(do_not_specialize=["column"])  # layers have different columns, and share one kernel
def packed_rows_kernel(
    query,
    key,
    score_params,
    sizes,
    spec,
    denominator,
    accumulator,
    out,  # [B, T, S or k, columns]
    scales,  # [B, T, columns]; None: the numbers are floats
    positions,  # int32 [B, T, k, columns]; None: all positions are kept
    columns,
    column,  # the first that is written
    num_kept,  # k, or S
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    TOP_K: tl.constexpr,  # a power of two, at least k; 0: all
    PRECISION: tl.constexpr,
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    POOLS_ALL_HEADS: tl.constexpr,
    FIRST: tl.constexpr,
):
    """Writes the encoded rows of BLOCK_T queries: of one head, or of all heads reduced."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    b, i, column = locate_packed_head(spec, tl.program_id(1), column, OVER_HEADS)
    rows = b * sizes.queries + t.to(tl.int64)
    is_query = t < sizes.queries
    row_max = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    sort_keys = tl.full((BLOCK_T, TOP_K if TOP_K > 0 else 1), MIN_SORT_KEY, tl.int64)
    for sweep in tl.static_range(2 if TOP_K == 0 else 1):
        scale = byte_scale(row_max)
        for begin_s in range(0, sizes.length, BLOCK_S):
            s = begin_s + tl.arange(0, BLOCK_S)
            if OVER_HEADS == "":
                h = load_head(spec, i)
                value = _weighted(query, key, score_params, sizes, spec, denominator, b, h, t, s, D, BLOCK_D, PRECISION)
            else:
                value = _reduced(
                    query, key, score_params, sizes, spec, denominator, accumulator, b, t, s,
                    D, BLOCK_D, PRECISION, OVER_HEADS, OVER_LAYERS, POOLS_ALL_HEADS, FIRST, True,
                )  # fmt: skip
            is_position = (s < sizes.length)[None, :]
            if TOP_K > 0:
                tile = tl.where(is_position, sort_key(value, s[None, :]), MIN_SORT_KEY)
                sort_keys = merge_top_k(sort_keys, tile, BLOCK_T, TOP_K)
            elif sweep == 0:
                row_max = tl.maximum(row_max, tl.max(tl.where(is_position, value, float("-inf")), 1))
            else:
                to = out + (rows[:, None] * num_kept + s[None, :]) * columns + column
                tl.store(to, to_byte(value, scale[:, None]), mask=is_query[:, None] & is_position)
    store_packed(out, scales, positions, rows, is_query, columns, column, num_kept, sort_keys, row_max, TOP_K)


def rows_triton(
    query: Tensor,
    key: Tensor,
    params: AttentionParams,
    out: AttentionTensors,
    spec: LayerSpec,
    weighting: KeyWeighting,
) -> None:
    """Does what `rows` does, with arguments that `rows` has checked."""
    if not uses_sort(out, spec):
        _run(query, key, params, out, spec, weighting, out, slice(0, query.shape[2]), spec)
        return
    for queries in query_slices(out, spec.num_columns(query.shape[1])):
        floats, float_spec = new_float_tensors(out, spec, query.shape[1], queries)
        part = query[:, :, queries], key, params.for_queries(queries)
        _run(*part, floats, float_spec, weighting, out, queries, spec)
        pack_float_tensors(out, spec, floats, queries)


def _run(
    query: Tensor,
    key: Tensor,
    params: AttentionParams,
    to: AttentionTensors,
    to_spec: LayerSpec,
    weighting: KeyWeighting,
    out: AttentionTensors,
    queries: slice,
    spec: LayerSpec,
) -> None:
    """Writes rows to the tensors `to`, and the shares of left-out keys to a slice of the queries of `out`."""
    left_out = weighting.left_out
    launches = plan(query, key, params if left_out is None else params.without(left_out), to, to_spec, weighting)
    for launch in launches:
        launch.run()
    if left_out is None:
        return
    whole = plan(query, key, params, to, to_spec, weighting)[0]
    whole.run()
    before, after = whole.arguments["out"], launches[0].arguments["out"]
    # The part of the denominator that is left, in the scale of the whole.
    kept = torch.exp(after[..., 0] - before[..., 0]) * before[..., 1] / after[..., 1]
    shares = torch.where(after[..., 1] == 0, (before[..., 1] != 0).float(), (1 - kept).clamp(0, 1))
    if spec.heads is not None:
        shares = shares[:, device_constant(spec.heads, torch.int32, shares.device)]
    add_shares(shares, out, spec, queries)


def plan(
    query: Tensor,
    key: Tensor,
    params: AttentionParams,
    out: AttentionTensors,
    spec: LayerSpec,
    weighting: KeyWeighting = PLAIN,
) -> list[Launch]:
    """Returns the launches that write a layer. `params` hides the keys that are left out."""
    batch, heads, queries, width = query.shape
    assert out.values.is_contiguous()
    columns = out.values.shape[3]
    is_packed = spec.is_last and not out.is_dense_float
    block_c = (
        1 if is_packed else heads_per_program(spec, heads, columns, 4)
    )  # four float32: what a thread stores at once
    precision = dot_precision(query.dtype)
    tile = _choose_tile(query, precision, 16 if is_packed else 64 // block_c)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    common = {
        "query": to_strided(query),
        "key": to_strided(key),
        "score_params": to_kernel_params(params),
        "sizes": Sizes(heads, heads // key.shape[1], queries, key.shape[2], out.length, out.length - key.shape[2]),
        "D": width,
        "BLOCK_D": tile.block_d,
        "BLOCK_T": tile.block_t,
        "BLOCK_S": tile.block_s,
        "PRECISION": precision,
    }
    denominator = torch.empty(batch, heads, queries, 2, device=query.device)
    query_blocks = triton.cdiv(queries, tile.block_t)
    first = Launch(denominator_kernel, (query_blocks, batch * heads), {**common, "out": denominator}, **options)
    kernel_spec = to_kernel_spec(spec, heads, query.device, weighting)
    programs = kernel_spec.num_heads // block_c if spec.over_heads is None else 1  # along heads
    arguments = {**common, "spec": kernel_spec, "denominator": denominator, **reduction_arguments(spec, out)}
    if is_packed:
        arguments |= packed_arguments(spec, out)
        return [first, Launch(packed_rows_kernel, (query_blocks, batch * programs), arguments, **options)]
    arguments |= {
        "out": out.values if spec.is_last else out.accumulator,
        "columns": columns if spec.is_last else 1,
        "column": spec.column,
        "BLOCK_C": block_c,
        "LAST": spec.is_last,
    }
    if weighting.factors is not None and spec.over_heads is not None:
        # The factors of the keys of a tile take registers too: with two stages, the kernel spills on gfx942.
        options["num_stages"] = 1
    grid = (triton.cdiv(out.length, tile.block_s), query_blocks, batch * programs)
    return [first, Launch(rows_kernel, grid, arguments, **options)]


class _Tile(NamedTuple):
    block_t: int
    block_s: int
    block_d: int
    stages: int
    warps: int


def _choose_tile(query: Tensor, precision: str, max_t: int) -> _Tile:
    """Chooses how many queries (at most `max_t`), keys and numbers of a head a tile has.

    Chosen with `sidelight kernels audit`: the largest tiles that spill nowhere. Float32 that is split into parts of
    tf32 takes three times the registers.
    """
    width = query.shape[3]
    is_half = query.dtype != torch.float32
    # The same for few queries: one more kernel to compile would cost more than idle rows.
    block_t = min(max_t, 64 if is_half else 32)
    block_s = 64 if is_half and width <= 128 else 32
    max_d = 64 if is_half else 16 if precision == "tf32x3" else 32
    block_d = min(max_d, max(16, triton.next_power_of_2(width)))
    stage_bytes = (block_t + block_s) * triton.cdiv(width, block_d) * block_d * query.element_size()
    stages = max(1, min(3 if is_half else 2, STAGING_BYTES // stage_bytes))
    # Four warps spill with Triton 3.8 where a head is one piece (the audit's case of 64), eight with 3.6 where it is
    # two (128). With a smaller tile, eight warps make narrower loads where a warp has 64 lanes.
    warps = 8 if width <= block_d and block_t * min(block_s, block_d) > _LARGE_TILE else 4
    return _Tile(block_t, block_s, block_d, stages, warps)
