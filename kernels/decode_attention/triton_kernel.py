"""`decode` in Triton: attention of one query for each slot, and its row, from a single read of keys and values.

Knows tiles, pointers and strides; the numbers to be equal to are those of the reference.

**Three launches, or two.** A row's probabilities need the softmax's denominator, which is known when the last key has
been read; and one row of a message needs the probabilities of all heads, which different programs have read. So:

1. `attend_kernel` reads the keys and values of one key head, or of a share of its cache where slots and heads alone
   would not fill the GPU. It keeps a running softmax (flash decoding) and writes the output, or the share's part of it,
   and each score as it is, float32.
2. `join_kernel` makes one output of the shares, where there are several.
3. `row_kernel` reads the scores back, makes probabilities of them and folds, lays out, encodes and writes the row.

**Bytes moved.** Keys and values once, the least possible. A score is written and read back, 8 bytes: 3% of what a
head's key and value are at D = 64 in half precision, less where they are wider; with four query heads to a key head of
D = 128, 6%. They stay in L2: 32 slots of 32 heads and 1,024 keys have 4 MB of them, and an H100 has 50. Read again
instead, the keys would be 50% more.
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
    folding,
    head_of,
    padded_top_k,
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

_PROGRAMS = 256  # enough to fill a GPU: an H100 has 132 multiprocessors, an MI300X 304
_STAGED = 48 * 1024  # bytes of shared memory for tiles on their way; MI300 has 64 KiB in all
_ROW = 1024  # numbers of a row at a time, however short it is: each other number would be a kernel more to compile
_SHARE = 512  # keys at least in a share of a cache: fewer are not worth joining


class Sizes(NamedTuple):
    """How long the axes are."""

    heads: int  # H
    groups: int  # H / Hkv
    keys: int  # S of the cache
    length: int  # positions of the result; the keys are the last of them
    missing: int  # the positions before them: 0 is known as a multiple of 16, a difference of lengths would not be
    share: int  # keys that one program of `attend_kernel` reads


class Span(NamedTuple):
    """Which of its keys a slot sees. None: no such bound."""

    lengths: Tensor | None  # int32 [B]: the first so many
    first: int | None  # without lengths: those up to this one
    window: int | None  # the last so many of them


@triton.jit
def _seen(span, sizes, b):
    """From which to which key slot b sees."""
    end = sizes.keys
    begin = 0
    if span.lengths is not None:
        end = tl.minimum(tl.load(span.lengths + b), sizes.keys)
    elif span.first is not None:
        end = span.first + 1  # it may stand behind all keys: then its window does, too
    if span.window is not None:
        begin = tl.maximum(end - span.window, 0)
    return begin, tl.minimum(end, sizes.keys)


@triton.jit
def attend_kernel(
    query,  # Strided [B, H, 1, D]
    key,  # Strided [B, Hkv, S, D]
    value,  # Strided [B, Hkv, S, D]
    rule,
    span,
    sizes,
    scores,  # [B, H, S]
    out,  # [shares, B, H, D]: float32 if there are several, otherwise of the query's type
    denominator,  # [shares, B, H, 2], to be filled; see tiles
    slots,  # B
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr,  # of a head's width at a time, for the scores
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,  # query heads of a group, padded to what tensor cores take
    PRECISION: tl.constexpr,
):
    """Output, denominators and scores of one key head's query heads, over one share of a slot's keys."""
    share = tl.program_id(0)
    key_heads = sizes.heads // sizes.groups
    b = (tl.program_id(1) // key_heads).to(tl.int64)
    key_head = (tl.program_id(1) % key_heads).to(tl.int64)
    in_group = tl.arange(0, BLOCK_H)
    h = key_head * sizes.groups + in_group.to(tl.int64)[:, None]
    is_head = (in_group < sizes.groups)[:, None]
    d = tl.arange(0, BLOCK_D)
    is_wide = (d < D)[None, :]
    queries = query.address + b * query.b + h * query.h
    keys = key.address + b * key.b + key_head * key.h
    if CHUNK_D == BLOCK_D:  # once for all keys
        q = tl.load(queries + d[None, :] * query.d, mask=is_head & is_wide, other=0.0)
    values = value.address + b * value.b + key_head * value.h + d[None, :] * value.d
    begin, end = _seen(span, sizes, b)
    # Where a window begins late, tiles begin at a multiple of their size all the same: loads stay aligned.
    begin_tile = tl.maximum(begin // BLOCK_S * BLOCK_S, share * sizes.share)
    end_tile = tl.minimum(end, (share + 1) * sizes.share)

    greatest = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    mixed = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    for begin_k in range(begin_tile, end_tile, BLOCK_S):
        k = begin_k + tl.arange(0, BLOCK_S)
        is_key = (k >= begin) & (k < end)
        k64 = k.to(tl.int64)
        x = tl.zeros((BLOCK_H, BLOCK_S), tl.float32)
        for begin_d in tl.static_range(0, D, CHUNK_D):
            c = (begin_d + tl.arange(0, CHUNK_D))[None, :]
            if CHUNK_D < BLOCK_D:
                q = tl.load(queries + c * query.d, mask=is_head & (c < D), other=0.0)
            kk = tl.load(keys + k64[:, None] * key.t + c * key.d, mask=is_key[:, None] & (c < D), other=0.0)
            x = tl.dot(q, tl.trans(kk), x, input_precision=PRECISION)
        x = scored(rule, x, b, h, 0, k64[None, :], is_head & is_key[None, :])
        tl.store(scores + (b * sizes.heads + h) * sizes.keys + k64[None, :], x, mask=is_head & is_key[None, :])
        now = tl.maximum(greatest, tl.max(x, 1))
        base = finite(now)
        p = tl.exp(x - base[:, None])
        fade = tl.exp(greatest - base)
        total = total * fade + tl.sum(p, 1)
        v = tl.load(values + k64[:, None] * value.t, mask=is_key[:, None] & is_wide, other=0.0)
        mixed = tl.dot(p.to(v.dtype), v, mixed * fade[:, None], input_precision=PRECISION)
        greatest = now

    rows = (share.to(tl.int64) * slots + b) * sizes.heads + h
    reciprocal = inverse(total)
    # The same rows as a vector, in another layout: to turn one into the other would take ten registers.
    row = (share.to(tl.int64) * slots + b) * sizes.heads + key_head * sizes.groups + in_group
    tl.store(denominator + row * 2, finite(greatest), mask=in_group < sizes.groups)
    tl.store(denominator + row * 2 + 1, reciprocal, mask=in_group < sizes.groups)
    tl.store(out + rows * D + d[None, :], mixed * reciprocal[:, None], mask=is_head & is_wide)


@triton.jit
def join_kernel(
    parts,  # float32 [shares, rows, D], rows = B * H
    denominators,  # [shares, rows, 2]
    out,  # [rows, D]
    denominator,  # [rows, 2], to be filled
    rows,
    shares,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One output of the outputs over shares of the keys, each by its share of the denominator."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    greatest = float("-inf")
    for share in range(shares):
        known = denominators + (share * rows + row) * 2
        greatest = tl.where(tl.load(known + 1) != 0.0, tl.maximum(greatest, tl.load(known)), greatest)
    base = finite(greatest)
    total = 0.0
    mixed = tl.zeros((BLOCK_D,), tl.float32)
    for share in range(shares):
        known = denominators + (share * rows + row) * 2
        reciprocal = tl.load(known + 1)
        # Of a share that sees nothing the greatest score is 0, which may be far above the others'. NaN is not 0: a
        # share that has it makes the whole NaN.
        weight = tl.where(reciprocal != 0.0, tl.exp(tl.minimum(tl.load(known) - base, 0.0)) / reciprocal, 0.0)
        total += weight
        mixed += weight * tl.load(parts + (share * rows + row) * D + d, mask=d < D, other=0.0)
    tl.store(out + row * D + d, mixed * inverse(total), mask=d < D)
    tl.store(denominator + row * 2, base)
    tl.store(denominator + row * 2 + 1, inverse(total))


@triton.jit
def _probabilities(span, sizes, scores, denominator, b, h, k):
    """Probabilities of keys k: of one head, `[k]`, or of heads `[h, 1]` and keys `[1, k]`."""
    begin, end = _seen(span, sizes, b)
    # Loaded by whole 16, as far as there is memory, so that loads are wide wherever the span begins and ends.
    is_loaded = (k >= begin // 16 * 16) & (k < (end + 15) // 16 * 16) & (k >= 0) & (k < sizes.keys)
    x = tl.load(scores + (b * sizes.heads + h) * sizes.keys + k, mask=is_loaded, other=float("-inf"))
    row = denominator + (b * sizes.heads + h) * 2
    greatest, reciprocal = tl.load(row), tl.load(row + 1)
    return tl.where((k >= begin) & (k < end), tl.exp(x - greatest) * reciprocal, 0.0)


@triton.jit
def _folded(
    span,
    sizes,
    part,
    scores,
    denominator,
    total,
    b,
    s,
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    AS_ONE: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """A stretch of the row with heads folded, and the layers before it."""
    value = tl.full((s.shape[0],), neutral(OVER_HEADS), tl.float32)
    for i in range(part.count):
        x = _probabilities(span, sizes, scores, denominator, b, head_of(part, i), s - sizes.missing)
        if part.weights is not None:
            x *= tl.load(part.weights + i)
        value = fold(OVER_HEADS, value, x)
    before = value
    if not FIRST:
        before = tl.load(total + b * sizes.length + s, mask=s < sizes.length, other=0.0)
    return fold_layers(OVER_HEADS, OVER_LAYERS, AS_ONE, FIRST, LAST, value, before, part.divisor, part.layers)


@triton.jit(do_not_specialize=["column"])  # layers have columns of their own, and one kernel
def row_kernel(
    span,
    sizes,
    part,
    scores,
    denominator,
    total,
    out,  # [B, S, columns], or total if more layers are to come
    columns,
    column,  # the first that is written
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,  # heads side by side, a power of two; 1 if they are out of order
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    AS_ONE: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """Writes a stretch of a slot's row: of BLOCK_C heads, or of all in one."""
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    programs = part.count // BLOCK_C if OVER_HEADS == "" else 1  # along heads
    b = (tl.program_id(1) // programs).to(tl.int64)
    begin = tl.program_id(1) % programs * BLOCK_C
    # Divided and multiplied, so that the compiler knows that the places of heads side by side are aligned.
    columns = columns // BLOCK_C * BLOCK_C
    column = column // BLOCK_C * BLOCK_C + begin
    places = out + (b * sizes.length + s) * columns
    if OVER_HEADS != "":
        value = _folded(
            span, sizes, part, scores, denominator, total, b, s, OVER_HEADS, OVER_LAYERS, AS_ONE, FIRST, LAST
        )
        tl.store(places + column, value, mask=s < sizes.length)
    elif BLOCK_C == 1:
        value = _probabilities(span, sizes, scores, denominator, b, head_of(part, begin), s - sizes.missing)
        if part.columns is not None:
            column = tl.load(part.columns + begin)
        tl.store(places + column, value, mask=s < sizes.length)
    else:
        c = tl.arange(0, BLOCK_C)
        h = (begin + c).to(tl.int64)[:, None]
        values = _probabilities(span, sizes, scores, denominator, b, h, (s - sizes.missing)[None, :])
        # Read along positions and written along heads: turned round in between.
        tl.store(places[:, None] + (column + c)[None, :], tl.trans(values), mask=(s < sizes.length)[:, None])


@triton.jit(do_not_specialize=["column"])  # layers have columns of their own, and one kernel
def packed_row_kernel(
    span,
    sizes,
    part,
    scores,
    denominator,
    total,
    out,  # [B, S or k, columns]
    scales,  # [B, columns]; None: the numbers are floats
    positions,  # int32 [B, k, columns]; None: all positions are kept
    columns,
    column,  # the first that is written
    kept,  # k, or S
    BLOCK_S: tl.constexpr,
    TOP_K: tl.constexpr,  # a power of two, at least k; 0: all
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    AS_ONE: tl.constexpr,
    FIRST: tl.constexpr,
):
    """Writes a slot's packed row: of one head, or of all in one."""
    programs = part.count if OVER_HEADS == "" else 1
    b = (tl.program_id(0) // programs).to(tl.int64)
    i = tl.program_id(0) % programs
    if OVER_HEADS == "":
        column += i
        if part.columns is not None:
            column = tl.load(part.columns + i)
    greatest = tl.full((1,), float("-inf"), tl.float32)
    ranks = tl.full((1, TOP_K if TOP_K > 0 else 1), NO_RANK, tl.int64)
    for sweep in tl.static_range(2 if TOP_K == 0 else 1):
        scale = scale_of(greatest)
        for begin_s in range(0, sizes.length, BLOCK_S):
            s = begin_s + tl.arange(0, BLOCK_S)
            if OVER_HEADS == "":
                value = _probabilities(span, sizes, scores, denominator, b, head_of(part, i), s - sizes.missing)
            else:
                value = _folded(
                    span, sizes, part, scores, denominator, total, b, s,
                    OVER_HEADS, OVER_LAYERS, AS_ONE, FIRST, True,
                )  # fmt: skip
            is_position = s < sizes.length
            if TOP_K > 0:
                ranks = best(ranks, tl.where(is_position, rank(value, s), NO_RANK)[None, :], 1, TOP_K)
            elif sweep == 0:
                greatest = tl.maximum(greatest, tl.max(tl.where(is_position, value, float("-inf")), 0))
            else:
                tl.store(out + (b * kept + s) * columns + column, byte_of(value, scale), mask=is_position)
    if TOP_K > 0:
        j = tl.arange(0, TOP_K)[None, :]
        value = tl.where(j < kept, ranked_number(ranks), float("-inf"))  # ranks are padded to a power of two
        places = (b * kept + j) * columns + column
        tl.store(positions + places, ranked_position(ranks), mask=j < kept)
        if scales is not None:
            greatest = tl.max(value, 1)
            tl.store(out + places, byte_of(value, scale_of(greatest)[:, None]), mask=j < kept)
        else:
            tl.store(out + places, value, mask=j < kept)
    if scales is not None:
        tl.store(scales + b * columns + column + tl.arange(0, 1), scale_of(greatest))


def decode_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: AttentionParams,
    result: AttentionTensors,
    part: LayerSpec,
    lengths: Tensor | None = None,
) -> Tensor:
    """As `decode` has it, on what `decode` has checked."""
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    sorts, queries = by_sorting(result, part), slice(0, 1)
    into, share = as_floats(result, part, query.shape[1], queries) if sorts else (result, part)
    for launch in plan(query, key, value, scoring, into, share, out, lengths):
        launch.run()
    if sorts:
        sort_into(result, part, into, queries)
    return out


def plan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: AttentionParams,
    result: AttentionTensors,
    part: LayerSpec,
    out: Tensor,
    lengths: Tensor | None = None,
) -> list[Launch]:
    """The launches that fill `out` and write a layer's row into a result."""
    batch, heads, _, width = query.shape
    keys, key_heads = key.shape[2], key.shape[1]
    device = query.device
    assert out.is_contiguous()
    assert result.values.is_contiguous()
    half = query.dtype != torch.float32
    block_s = 64 if half else 32
    block_d = max(16, triton.next_power_of_2(width))
    wanted = triton.cdiv(_PROGRAMS, batch * key_heads)
    share = triton.cdiv(triton.cdiv(keys, max(1, min(wanted, keys // _SHARE))), block_s) * block_s
    shares = triton.cdiv(keys, share)
    sizes = Sizes(heads, heads // key_heads, keys, result.length, result.length - keys, share)
    lengths = None if lengths is None else lengths.contiguous()
    span = Span(lengths, scoring.first if scoring.causal else None, scoring.window)
    scores = torch.empty(batch, heads, keys, device=device)
    denominator = torch.empty(batch, heads, 2, device=device)
    parts = out if shares == 1 else torch.empty(shares, batch, heads, width, device=device)
    denominators = denominator if shares == 1 else torch.empty(shares, batch, heads, 2, device=device)
    stages = max(1, min(3, _STAGED // (2 * block_s * block_d * query.element_size())))
    launches = [
        Launch(
            attend_kernel,
            (shares, batch * key_heads),
            {
                "query": strided(query),
                "key": strided(key),
                "value": strided(value),
                # A slot's span says which keys are seen: what is left of the rule is the same for all keys.
                "rule": rule_of(scoring._replace(causal=False, window=None)),
                "span": span,
                "sizes": sizes,
                "scores": scores,
                "out": parts,
                "denominator": denominators,
                "slots": batch,
                "D": width,
                "BLOCK_D": block_d,
                # Wide float32 heads in parts: as a whole, split for tensor cores, they would not stay in registers.
                "CHUNK_D": block_d if half or width <= 128 else 64,
                "BLOCK_S": block_s,
                "BLOCK_H": max(16, triton.next_power_of_2(sizes.groups)),
                "PRECISION": precision(query.dtype),
            },
            num_warps=8 if width > 128 and not half else 4,
            num_stages=stages,
        )
    ]
    if shares > 1:
        arguments = {"parts": parts, "denominators": denominators, "out": out, "denominator": denominator}
        arguments |= {"rows": batch * heads, "shares": shares, "D": width, "BLOCK_D": block_d}
        launches.append(Launch(join_kernel, (batch * heads,), arguments, num_warps=1))
    launches.append(_row(span, sizes, scores, denominator, result, part))
    return launches


def _row(
    span: Span, sizes: Sizes, scores: Tensor, denominator: Tensor, result: AttentionTensors, part: LayerSpec
) -> Launch:
    """The launch that writes the row."""
    batch = scores.shape[0]
    chosen = selected(part, sizes.heads, scores.device)
    apart = part.over_heads is None
    columns = result.values.shape[3]
    arguments = {"span": span, "sizes": sizes, "part": chosen, "scores": scores, "denominator": denominator}
    arguments |= folding(part, result)
    if result.is_dense_float or not part.last:
        block_c = side_by_side(part, sizes.heads, columns, 16)
        block_s = _ROW // block_c
        grid = (triton.cdiv(result.length, block_s), batch * (chosen.count // block_c if apart else 1))
        arguments |= {
            "out": result.values if part.last else result.total,
            "columns": columns if part.last else 1,
            "column": part.column,
            "BLOCK_S": block_s,
            "BLOCK_C": block_c,
            "LAST": part.last,
        }
        return Launch(row_kernel, grid, arguments)
    top_k = padded_top_k(result)
    arguments |= {
        "out": result.values,
        "scales": result.scales,
        "positions": result.positions,
        "columns": columns,
        "column": part.column,
        "kept": result.values.shape[2],
        "BLOCK_S": _ROW,
        "TOP_K": top_k,
    }
    return Launch(packed_row_kernel, (batch * (chosen.count if apart else 1),), arguments)
