"""`rows` in Triton: a softmax over keys that come in tiles, folded over heads without a matrix of them in memory.

Knows tiles, pointers and strides; the numbers to be equal to are those of the reference.

**Two launches.** `denominator_kernel` sweeps the keys once for each head and keeps two numbers for each row: the
softmax's denominator, as the greatest score and the sum of powers below it (a running softmax, Milakov and Gimelshein
2018, arXiv:1805.02867). With that, any tile of probabilities can be made by itself: `rows_kernel` makes a tile of one
head after another and folds them in registers, float32, in one order always; only the result is written. Both take
tiles of one size, so that they make the same scores to the last bit: the exponential of a large one shows it.

**Bytes moved.** The result once. Queries are read again for each tile of keys, and keys for each tile of queries and
each query head, in both launches, mostly from L2: what any tiled matrix product does. It does not bind: at D = 64 and
eight heads, a number of a reduced result takes 2,048 floating point operations, for the 4 bytes it is written as.

**Apart.** With heads kept apart, a program makes up to four heads and writes them side by side, as a message has them:
128 bits a thread.

**Packing.** A byte's scale, and which positions are a row's greatest, need the whole row: `packed_rows_kernel` owns
some queries and sweeps the keys, once more for bytes, since their scale must be known first.
"""
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

from ..common.attention_params import AttentionParams
from ..common.attention_tensors import AttentionTensors, LayerSpec
from ..common.launch import Launch
from ..common.triton_output import (
    as_floats,
    by_sorting,
    columns_of,
    folding,
    head_of,
    padded_top_k,
    query_slices,
    selected,
    side_by_side,
    sort_into,
)
from ..common.triton_reduce import (
    NO_RANK,
    best,
    byte_of,
    fold,
    fold_layers,
    neutral,
    rank,
    ranked_number,
    ranked_position,
    scale_of,
)
from ..common.triton_scores import finite, inverse, precision, rule_of, scored, strided

_SHARED_BY_MANY = 2048  # numbers of a tile of scores, and of queries, above which eight warps make it
_STAGED = 48 * 1024  # bytes of shared memory for tiles on their way; MI300 has 64 KiB in all


class Sizes(NamedTuple):
    """How long the axes are."""

    heads: int  # H
    groups: int  # H / Hkv
    queries: int  # T
    keys: int  # S of the keys
    length: int  # positions of the result; the keys are the last of them
    missing: int  # the positions before them: 0 is known as a multiple of 16, a difference of lengths would not be


@triton.jit
def _sweep(rule, sizes, begin_t, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    """From which to which key the queries of a tile see anything; the first is a multiple of BLOCK_S."""
    begin = 0
    end = sizes.keys
    if rule.first is not None:
        end_t = tl.minimum(begin_t + BLOCK_T, sizes.queries)
        end = tl.maximum(tl.minimum(end, rule.first + end_t), 0)
        if rule.window is not None:
            begin = tl.maximum(rule.first + begin_t - rule.window + 1, 0) // BLOCK_S * BLOCK_S
    return begin, end


@triton.jit
def _scores(query, key, rule, sizes, b, h, t, k, D: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr):
    """A tile of scores of one head, queries t and keys k: float32 `[t, k]`."""
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
    return scored(rule, scores, b, h, t[:, None], k[None, :], is_query[:, None] & is_key[None, :])


@triton.jit
def denominator_kernel(
    query,  # Strided [B, H, T, D]
    key,  # Strided [B, Hkv, S, D]
    rule,
    sizes,
    out,  # [B, H, T, 2], see tiles
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The softmax denominators of some queries of one head."""
    b = (tl.program_id(1) // sizes.heads).to(tl.int64)
    h = (tl.program_id(1) % sizes.heads).to(tl.int64)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    greatest = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    begin, end = _sweep(rule, sizes, tl.program_id(0) * BLOCK_T, BLOCK_T, BLOCK_S)
    for begin_k in range(begin, end, BLOCK_S):
        k = begin_k + tl.arange(0, BLOCK_S)
        scores = _scores(query, key, rule, sizes, b, h, t, k, D, BLOCK_D, PRECISION)
        now = tl.maximum(greatest, tl.max(scores, 1))
        base = finite(now)
        total = total * tl.exp(greatest - base) + tl.sum(tl.exp(scores - base[:, None]), 1)
        greatest = now
    row = out + ((b * sizes.heads + h) * sizes.queries + t) * 2
    tl.store(row, finite(greatest), mask=t < sizes.queries)
    tl.store(row + 1, inverse(total), mask=t < sizes.queries)


@triton.jit
def _probabilities(
    query, key, rule, sizes, denominator, b, h, t, s, D: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr
):
    """A tile of one head's probabilities, of queries t and positions s: float32 `[t, s]`."""
    k = s - sizes.missing
    scores = _scores(query, key, rule, sizes, b, h, t, k, D, BLOCK_D, PRECISION)
    row = denominator + ((b * sizes.heads + h) * sizes.queries + t) * 2
    greatest = tl.load(row, mask=t < sizes.queries, other=0.0)
    reciprocal = tl.load(row + 1, mask=t < sizes.queries, other=0.0)
    return tl.exp(scores - greatest[:, None]) * reciprocal[:, None]


@triton.jit
def _folded(
    query,
    key,
    rule,
    sizes,
    part,
    denominator,
    total,
    b,
    t,
    s,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    AS_ONE: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """A tile of a layer with its heads folded, and the layers before it: float32 `[t, s]`."""
    value = tl.full((t.shape[0], s.shape[0]), neutral(OVER_HEADS), tl.float32)
    for i in range(part.count):
        x = _probabilities(query, key, rule, sizes, denominator, b, head_of(part, i), t, s, D, BLOCK_D, PRECISION)
        if part.weights is not None:
            x *= tl.load(part.weights + i)
        value = fold(OVER_HEADS, value, x)
    before = value
    if not FIRST:
        inside = (t < sizes.queries)[:, None] & (s < sizes.length)[None, :]
        row = (b * sizes.queries + t) * sizes.length
        before = tl.load(total + row[:, None] + s[None, :], mask=inside, other=0.0)
    return fold_layers(OVER_HEADS, OVER_LAYERS, AS_ONE, FIRST, LAST, value, before, part.divisor, part.layers)


@triton.jit(do_not_specialize=["column"])  # layers have columns of their own, and one kernel
def rows_kernel(
    query,  # Strided [B, H, T, D]
    key,  # Strided [B, Hkv, S, D]
    rule,
    sizes,
    part,
    denominator,  # [B, H, T, 2]
    total,  # [B, T, S], what the layers before have become
    out,  # [B, T, S, columns], or total if more layers are to come
    columns,
    column,  # the first that is written
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,  # heads side by side: 1, 2 or 4
    PRECISION: tl.constexpr,
    OVER_HEADS: tl.constexpr,  # a reduction, or "" to keep heads apart
    OVER_LAYERS: tl.constexpr,
    AS_ONE: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """Writes one tile of the result: BLOCK_T queries by BLOCK_S positions, of BLOCK_C heads or of all in one."""
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    programs = part.count // BLOCK_C if OVER_HEADS == "" else 1  # along heads
    b = (tl.program_id(2) // programs).to(tl.int64)
    begin = tl.program_id(2) % programs * BLOCK_C
    # Divided and multiplied, so that the compiler knows that the places of heads side by side are aligned.
    columns = columns // BLOCK_C * BLOCK_C
    column = column // BLOCK_C * BLOCK_C + begin
    places = out + ((b * sizes.queries + t.to(tl.int64)[:, None]) * sizes.length + s[None, :]) * columns
    inside = (t < sizes.queries)[:, None] & (s < sizes.length)[None, :]
    if OVER_HEADS != "":
        value = _folded(
            query, key, rule, sizes, part, denominator, total, b, t, s,
            D, BLOCK_D, PRECISION, OVER_HEADS, OVER_LAYERS, AS_ONE, FIRST, LAST,
        )  # fmt: skip
        tl.store(places + column, value, mask=inside)
    elif BLOCK_C == 1:
        h = head_of(part, begin)
        value = _probabilities(query, key, rule, sizes, denominator, b, h, t, s, D, BLOCK_D, PRECISION)
        if part.columns is not None:
            column = tl.load(part.columns + begin)
        tl.store(places + column, value, mask=inside)
    else:
        # One head after another into a tile that has them side by side, in the order of memory.
        c = tl.arange(0, BLOCK_C)[None, None, :]
        values = tl.zeros((BLOCK_T, BLOCK_S, BLOCK_C), tl.float32)
        for i in range(BLOCK_C):
            h = head_of(part, begin + i)
            value = _probabilities(query, key, rule, sizes, denominator, b, h, t, s, D, BLOCK_D, PRECISION)
            values = tl.where(c == i, value[:, :, None], values)
        tl.store(places[:, :, None] + (column + c), values, mask=inside[:, :, None])


@triton.jit(do_not_specialize=["column"])  # layers have columns of their own, and one kernel
def packed_rows_kernel(
    query,
    key,
    rule,
    sizes,
    part,
    denominator,
    total,
    out,  # [B, T, S or k, columns]
    scales,  # [B, T, columns]; None: the numbers are floats
    positions,  # int32 [B, T, k, columns]; None: all positions are kept
    columns,
    column,  # the first that is written
    kept,  # k, or S
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    TOP_K: tl.constexpr,  # a power of two, at least k; 0: all
    PRECISION: tl.constexpr,
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    AS_ONE: tl.constexpr,
    FIRST: tl.constexpr,
):
    """Writes the packed rows of BLOCK_T queries: of one head, or of all in one."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    programs = part.count if OVER_HEADS == "" else 1
    b = (tl.program_id(1) // programs).to(tl.int64)
    i = tl.program_id(1) % programs
    if OVER_HEADS == "":
        column += i
        if part.columns is not None:
            column = tl.load(part.columns + i)
    rows = b * sizes.queries + t.to(tl.int64)
    is_query = (t < sizes.queries)[:, None]
    greatest = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    ranks = tl.full((BLOCK_T, TOP_K if TOP_K > 0 else 1), NO_RANK, tl.int64)
    for sweep in tl.static_range(2 if TOP_K == 0 else 1):
        scale = scale_of(greatest)
        for begin_s in range(0, sizes.length, BLOCK_S):
            s = begin_s + tl.arange(0, BLOCK_S)
            if OVER_HEADS == "":
                h = head_of(part, i)
                value = _probabilities(query, key, rule, sizes, denominator, b, h, t, s, D, BLOCK_D, PRECISION)
            else:
                value = _folded(
                    query, key, rule, sizes, part, denominator, total, b, t, s,
                    D, BLOCK_D, PRECISION, OVER_HEADS, OVER_LAYERS, AS_ONE, FIRST, True,
                )  # fmt: skip
            is_position = (s < sizes.length)[None, :]
            if TOP_K > 0:
                ranks = best(ranks, tl.where(is_position, rank(value, s[None, :]), NO_RANK), BLOCK_T, TOP_K)
            elif sweep == 0:
                greatest = tl.maximum(greatest, tl.max(tl.where(is_position, value, float("-inf")), 1))
            else:
                places = out + (rows[:, None] * kept + s[None, :]) * columns + column
                tl.store(places, byte_of(value, scale[:, None]), mask=is_query & is_position)
    if TOP_K > 0:
        j = tl.arange(0, TOP_K)[None, :]
        value = tl.where(j < kept, ranked_number(ranks), float("-inf"))  # ranks are padded to a power of two
        places = (rows[:, None] * kept + j) * columns + column
        inside = is_query & (j < kept)
        tl.store(positions + places, ranked_position(ranks), mask=inside)
        if scales is not None:
            greatest = tl.max(value, 1)
            tl.store(out + places, byte_of(value, scale_of(greatest)[:, None]), mask=inside)
        else:
            tl.store(out + places, value, mask=inside)
    if scales is not None:
        tl.store(scales + rows * columns + column, scale_of(greatest), mask=t < sizes.queries)


def rows_triton(
    query: Tensor, key: Tensor, scoring: AttentionParams, result: AttentionTensors, part: LayerSpec
) -> None:
    """As `rows` has it, on what `rows` has checked."""
    if not by_sorting(result, part):
        for launch in plan(query, key, scoring, result, part):
            launch.run()
        return
    for queries in query_slices(result, columns_of(part, query.shape[1])):
        floats, share = as_floats(result, part, query.shape[1], queries)
        for launch in plan(query[:, :, queries], key, scoring.of_queries(queries), floats, share):
            launch.run()
        sort_into(result, part, floats, queries)


def plan(
    query: Tensor, key: Tensor, scoring: AttentionParams, result: AttentionTensors, part: LayerSpec
) -> list[Launch]:
    """The launches that write a layer into a result."""
    batch, heads, queries, width = query.shape
    sizes = Sizes(heads, heads // key.shape[1], queries, key.shape[2], result.length, result.length - key.shape[2])
    product = precision(query.dtype)
    apart = part.over_heads is None
    columns = result.values.shape[3]
    is_packed = part.last and not result.is_dense_float
    block_c = 1 if is_packed else side_by_side(part, heads, columns, 4)  # four float32: what a thread stores at once
    tile = _tile(query, product, 16 if is_packed else 64 // block_c)
    common = {
        "query": strided(query),
        "key": strided(key),
        "rule": rule_of(scoring),
        "sizes": sizes,
        "D": width,
        "BLOCK_D": tile.block_d,
        "BLOCK_T": tile.block_t,
        "BLOCK_S": tile.block_s,
        "PRECISION": product,
    }
    denominator = torch.empty(batch, heads, queries, 2, device=query.device)
    launches = [
        Launch(
            denominator_kernel,
            (triton.cdiv(queries, tile.block_t), batch * heads),
            {**common, "out": denominator},
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    ]
    assert result.values.is_contiguous()
    chosen = selected(part, heads, query.device)
    arguments = {**common, "part": chosen, "denominator": denominator, **folding(part, result)}
    if not is_packed:
        out = result.values if part.last else result.total
        assert out is not None
        grid = (triton.cdiv(result.length, tile.block_s), triton.cdiv(queries, tile.block_t))
        launches.append(
            Launch(
                rows_kernel,
                (*grid, batch * (chosen.count // block_c if apart else 1)),
                {
                    **arguments,
                    "out": out,
                    "columns": columns if part.last else 1,
                    "column": part.column,
                    "BLOCK_C": block_c,
                    "LAST": part.last,
                },
                num_warps=tile.warps,
                num_stages=tile.stages,
            )
        )
        return launches
    launches.append(
        Launch(
            packed_rows_kernel,
            (triton.cdiv(queries, tile.block_t), batch * (chosen.count if apart else 1)),
            {
                **arguments,
                "out": result.values,
                "scales": result.scales,
                "positions": result.positions,
                "columns": columns,
                "column": part.column,
                "kept": result.values.shape[2],
                "TOP_K": padded_top_k(result),
            },
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    )
    return launches


class _Tile(NamedTuple):
    block_t: int
    block_s: int
    block_d: int
    stages: int
    warps: int


def _tile(query: Tensor, product: str, most_t: int) -> _Tile:
    """How many queries (at most `most_t`), keys and numbers of a head's width at a time.

    Chosen with `sidelight kernels audit`: the largest that spill nowhere. Float32 that is split into parts of tf32
    takes three times the registers.
    """
    width = query.shape[3]
    half = query.dtype != torch.float32
    # The same for few queries: a kernel more to compile would cost more than idle rows.
    block_t = min(most_t, 64 if half else 32)
    block_s = 64 if half and width <= 128 else 32
    most_d = 64 if half else 16 if product == "tf32x3" else 32
    block_d = min(most_d, max(16, triton.next_power_of_2(width)))
    bytes_a_stage = (block_t + block_s) * triton.cdiv(width, block_d) * block_d * query.element_size()
    stages = max(1, min(3 if half else 2, _STAGED // bytes_a_stage))
    # Four warps spill with Triton 3.8 where a head is one piece (the audit's case of 64), eight with 3.6 where it is
    # two (128). Of a smaller tile, eight make narrower loads where a warp has 64 lanes.
    warps = 8 if width <= block_d and block_t * min(block_s, block_d) > _SHARED_BY_MANY else 4
    return _Tile(block_t, block_s, block_d, stages, warps)
