"""`decode` in Triton: attention of one query for each slot, and its rows, from a single read of keys and values.

**Three launches, or two.** The probabilities of a row need the softmax denominator, which is known when the last key
has been read; and one row of a message needs the probabilities of all heads, which different programs have read. So:

1. `attend_kernel` reads the keys and values of one key head, or a split of the cache where slots and heads alone would
   not fill the GPU. It keeps a running softmax (flash decoding) and writes the output, or the part of the split, and
   each score as it is, in float32.
2. `join_kernel` combines the outputs of the splits, where there are several.
3. `row_kernel` reads the scores back, computes probabilities, reduces, encodes and writes the row.

**Bytes moved.** Keys and values are read once, the least possible. A score is written and read back, 8 bytes: 3% of the
key and value of a head at D = 64 in half precision, less where heads are wider; with four query heads to a key head of
D = 128, 6%. Scores stay in L2: 32 slots of 32 heads and 1,024 keys have 4 MB of scores, and an H100 has 50 MB of L2.
Reading the keys again instead would cost 50% more.
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
    MIN_PROGRAMS,
    STAGING_BYTES,
    heads_per_program,
    load_head,
    locate_heads,
    locate_packed_head,
    new_float_tensors,
    pack_float_tensors,
    packed_arguments,
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

_ROW_NUMBERS = 1024  # of a row at a time, however short rows are: another number would be one more kernel to compile
_MIN_SPLIT = 512  # keys of a split of the cache: fewer are not worth joining


class Sizes(NamedTuple):
    """The lengths of the axes."""

    heads: int  # H
    groups: int  # H / Hkv
    keys: int  # S of the cache
    visible_keys: int | None  # how many keys, from the first, the query may see by causality; None: all
    length: int  # positions of the result; the keys are the last of them
    missing: int  # the positions before the keys: Triton knows a 0 as a multiple of 16, but not a difference of lengths
    split: int  # keys that one program of `attend_kernel` reads


@triton.jit
def _end_of_keys(sizes):
    """The end of the keys that the query may see."""
    end = sizes.keys
    if sizes.visible_keys is not None:
        end = sizes.visible_keys
    return end


@triton.jit
def attend_kernel(
    query,  # StridedTensor [B, H, 1, D]
    key,  # StridedTensor [B, Hkv, S, D]
    value,  # StridedTensor [B, Hkv, S, D]
    score_params,
    sizes,
    scores,  # [B, H, S]
    out,  # [splits, B, H, D]: float32 if there are several splits, otherwise of the query's dtype
    denominator,  # [splits, B, H, 2], is written; see triton_scores
    slots,  # B
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr,  # numbers of a head at a time, for the scores
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,  # query heads of a group, padded to what tensor cores take
    PRECISION: tl.constexpr,
):
    """Computes output, denominators and scores of the query heads of one key head, over one split of a slot's keys."""
    split = tl.program_id(0)
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
    if CHUNK_D == BLOCK_D:  # loaded once for all keys
        q = tl.load(queries + d[None, :] * query.d, mask=is_head & is_wide, other=0.0)
    values = value.address + b * value.b + key_head * value.h + d[None, :] * value.d
    end = _end_of_keys(sizes)
    end_tile = tl.minimum(end, (split + 1) * sizes.split)

    row_max = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    exp_sum = tl.zeros((BLOCK_H,), tl.float32)
    output = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    for begin_k in range(split * sizes.split, end_tile, BLOCK_S):
        k = begin_k + tl.arange(0, BLOCK_S)
        is_key = (k >= 0) & (k < end)  # k is never below 0: the compiler needs 9 registers fewer where there is a bias
        k64 = k.to(tl.int64)
        x = tl.zeros((BLOCK_H, BLOCK_S), tl.float32)
        for begin_d in tl.static_range(0, D, CHUNK_D):
            c = (begin_d + tl.arange(0, CHUNK_D))[None, :]
            if CHUNK_D < BLOCK_D:
                q = tl.load(queries + c * query.d, mask=is_head & (c < D), other=0.0)
            kk = tl.load(keys + k64[:, None] * key.t + c * key.d, mask=is_key[:, None] & (c < D), other=0.0)
            x = tl.dot(q, tl.trans(kk), x, input_precision=PRECISION)
        x = masked_scores(score_params, x, b, h, 0, k64[None, :], is_head & is_key[None, :])
        tl.store(scores + (b * sizes.heads + h) * sizes.keys + k64[None, :], x, mask=is_head & is_key[None, :])
        new_max = tl.maximum(row_max, tl.max(x, 1))
        base = finite_max(new_max)
        p = tl.exp(x - base[:, None])
        rescale = tl.exp(row_max - base)
        exp_sum = exp_sum * rescale + tl.sum(p, 1)
        v = tl.load(values + k64[:, None] * value.t, mask=is_key[:, None] & is_wide, other=0.0)
        output = tl.dot(p.to(v.dtype), v, output * rescale[:, None], input_precision=PRECISION)
        row_max = new_max

    rows = (split.to(tl.int64) * slots + b) * sizes.heads + h
    reciprocal = inverse_sum(exp_sum)
    # The same rows as a vector, in another layout: converting one into the other would take ten registers.
    row = (split.to(tl.int64) * slots + b) * sizes.heads + key_head * sizes.groups + in_group
    tl.store(denominator + row * 2, finite_max(row_max), mask=in_group < sizes.groups)
    tl.store(denominator + row * 2 + 1, reciprocal, mask=in_group < sizes.groups)
    tl.store(out + rows * D + d[None, :], output * reciprocal[:, None], mask=is_head & is_wide)


@triton.jit
def join_kernel(
    outputs,  # float32 [splits, rows, D], rows = B * H
    denominators,  # [splits, rows, 2]
    out,  # [rows, D]
    denominator,  # [rows, 2], is written
    rows,
    splits,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Combines the outputs over the splits of the keys, each weighted by its part of the denominator."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    row_max = float("-inf")
    for split in range(splits):
        of_split = denominators + (split * rows + row) * 2
        row_max = tl.where(tl.load(of_split + 1) != 0.0, tl.maximum(row_max, tl.load(of_split)), row_max)
    base = finite_max(row_max)
    weight_sum = 0.0
    output = tl.zeros((BLOCK_D,), tl.float32)
    for split in range(splits):
        of_split = denominators + (split * rows + row) * 2
        reciprocal = tl.load(of_split + 1)
        # The greatest score of a split that sees no key is 0, which may be far above the others. NaN is not 0: a split
        # with NaN makes the whole output NaN.
        weight = tl.where(reciprocal != 0.0, tl.exp(tl.minimum(tl.load(of_split) - base, 0.0)) / reciprocal, 0.0)
        weight_sum += weight
        output += weight * tl.load(outputs + (split * rows + row) * D + d, mask=d < D, other=0.0)
    tl.store(out + row * D + d, output * inverse_sum(weight_sum), mask=d < D)
    tl.store(denominator + row * 2, base)
    tl.store(denominator + row * 2 + 1, inverse_sum(weight_sum))


@triton.jit
def _weighted(sizes, spec, scores, denominator, b, h, k):
    """Probabilities, times factors, of keys k: of one head, `[k]`, or of heads `[h, 1]` and keys `[1, k]`."""
    end = _end_of_keys(sizes)
    # Loads are rounded up to 16 keys, as far as there is memory, so that they are wide wherever the keys end.
    is_loaded = (k < (end + 15) // 16 * 16) & (k >= 0) & (k < sizes.keys)
    x = tl.load(scores + (b * sizes.heads + h) * sizes.keys + k, mask=is_loaded, other=float("-inf"))
    row = denominator + (b * sizes.heads + h) * 2
    row_max, reciprocal = tl.load(row), tl.load(row + 1)
    is_key = (k >= 0) & (k < end)
    return with_factors(
        spec, tl.where(is_key, tl.exp(x - row_max) * reciprocal, 0.0), b, h, tl.cast(k, tl.int64), is_key
    )


@triton.jit
def _reduced(
    sizes,
    spec,
    scores,
    denominator,
    accumulator,
    b,
    s,
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    POOLS_ALL_HEADS: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """A part of a row, reduced over heads and over the layers before."""
    value = tl.full((s.shape[0],), neutral_element(OVER_HEADS), tl.float32)
    for i in range(spec.num_heads):
        x = _weighted(sizes, spec, scores, denominator, b, load_head(spec, i), s - sizes.missing)
        if spec.weights is not None:
            x *= tl.load(spec.weights + i)
        value = fold(OVER_HEADS, value, x)
    before = accumulator
    if not FIRST:
        before = accumulator + b * sizes.length + s
    inside = s < sizes.length
    return fold_layers(OVER_HEADS, OVER_LAYERS, POOLS_ALL_HEADS, FIRST, LAST, spec, value, before, inside)


@triton.jit(do_not_specialize=["column"])  # layers have different columns, and share one kernel
def row_kernel(
    sizes,
    spec,
    scores,
    denominator,
    accumulator,
    out,  # [B, S, columns], or the accumulator if more layers are to come
    columns,
    column,  # the first that is written
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,  # heads side by side, a power of two; 1 if they are out of order
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    POOLS_ALL_HEADS: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """Writes a part of a slot's row: of BLOCK_C heads, or of all heads reduced."""
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    b, begin, columns, column = locate_heads(spec, tl.program_id(1), columns, column, BLOCK_C, OVER_HEADS)
    to = out + (b * sizes.length + s) * columns
    if OVER_HEADS != "":
        value = _reduced(
            sizes, spec, scores, denominator, accumulator, b, s, OVER_HEADS, OVER_LAYERS, POOLS_ALL_HEADS, FIRST, LAST
        )
        tl.store(to + column, value, mask=s < sizes.length)
    elif BLOCK_C == 1:
        value = _weighted(sizes, spec, scores, denominator, b, load_head(spec, begin), s - sizes.missing)
        if spec.columns is not None:
            column = tl.load(spec.columns + begin)
        tl.store(to + column, value, mask=s < sizes.length)
    else:
        c = tl.arange(0, BLOCK_C)
        h = (begin + c).to(tl.int64)[:, None]
        values = _weighted(sizes, spec, scores, denominator, b, h, (s - sizes.missing)[None, :])
        # Read along positions and written along heads: transposed in between.
        tl.store(to[:, None] + (column + c)[None, :], tl.trans(values), mask=(s < sizes.length)[:, None])


@triton.jit(do_not_specialize=["column"])  # layers have different columns, and share one kernel
def packed_row_kernel(
    sizes,
    spec,
    scores,
    denominator,
    accumulator,
    out,  # [B, S or k, columns]
    scales,  # [B, columns]; None: the numbers are floats
    positions,  # int32 [B, k, columns]; None: all positions are kept
    columns,
    column,  # the first that is written
    num_kept,  # k, or S
    BLOCK_S: tl.constexpr,
    TOP_K: tl.constexpr,  # a power of two, at least k; 0: all
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    POOLS_ALL_HEADS: tl.constexpr,
    FIRST: tl.constexpr,
):
    """Writes a slot's encoded row: of one head, or of all heads reduced."""
    b, i, column = locate_packed_head(spec, tl.program_id(0), column, OVER_HEADS)
    row_max = tl.full((1,), float("-inf"), tl.float32)
    sort_keys = tl.full((1, TOP_K if TOP_K > 0 else 1), MIN_SORT_KEY, tl.int64)
    for sweep in tl.static_range(2 if TOP_K == 0 else 1):
        scale = byte_scale(row_max)
        for begin_s in range(0, sizes.length, BLOCK_S):
            s = begin_s + tl.arange(0, BLOCK_S)
            if OVER_HEADS == "":
                value = _weighted(sizes, spec, scores, denominator, b, load_head(spec, i), s - sizes.missing)
            else:
                value = _reduced(
                    sizes, spec, scores, denominator, accumulator, b, s,
                    OVER_HEADS, OVER_LAYERS, POOLS_ALL_HEADS, FIRST, True,
                )  # fmt: skip
            is_position = s < sizes.length
            if TOP_K > 0:
                tile = tl.where(is_position, sort_key(value, s), MIN_SORT_KEY)[None, :]
                sort_keys = merge_top_k(sort_keys, tile, 1, TOP_K)
            elif sweep == 0:
                row_max = tl.maximum(row_max, tl.max(tl.where(is_position, value, float("-inf")), 0))
            else:
                tl.store(out + (b * num_kept + s) * columns + column, to_byte(value, scale), mask=is_position)
    row = b + tl.arange(0, 1)
    store_packed(out, scales, positions, row, None, columns, column, num_kept, sort_keys, row_max, TOP_K)


def decode_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    params: AttentionParams,
    out: AttentionTensors,
    spec: LayerSpec,
    weighting: KeyWeighting,
) -> Tensor:
    """Does what `decode` does, with arguments that `decode` has checked."""
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    to, to_spec, queries = out, spec, slice(0, 1)
    if uses_sort(out, spec):
        to, to_spec = new_float_tensors(out, spec, query.shape[1], queries)
    *attend, write_row = plan(query, key, value, params, to, to_spec, output, weighting)
    for launch in attend:
        launch.run()
    if weighting.left_out is not None:
        arguments = write_row.arguments
        shares = _leave_out(weighting.left_out, arguments["sizes"], arguments["scores"], arguments["denominator"])
        if spec.heads is not None:
            shares = shares[:, device_constant(spec.heads, torch.int32, shares.device)]
        add_shares(shares, out, spec, queries)
    write_row.run()
    if to is not out:
        pack_float_tensors(out, spec, to, queries)
    return output


def _leave_out(left_out: Tensor, sizes: Sizes, scores: Tensor, denominator: Tensor) -> Tensor:
    """Hides keys, bool `[1 or B, S]`, in the scores and in the denominators of rows whose output is computed.

    Returns the shares of these keys, float32 `[B, H, 1]`.
    """
    end = sizes.keys if sizes.visible_keys is None else sizes.visible_keys
    visible = scores[..., :end]  # later scores are arbitrary
    hidden = left_out[:, None, :end]
    probabilities = torch.exp(visible - denominator[..., :1]) * denominator[..., 1:]
    shares = probabilities.masked_fill(~hidden, 0.0).sum(-1, keepdim=True)
    visible.masked_fill_(hidden, float("-inf"))
    row_max = visible.amax(-1) if end else torch.full_like(denominator[..., 0], float("-inf"))
    row_max = row_max.masked_fill(row_max == float("-inf"), 0.0)
    exp_sum = torch.exp(visible - row_max[..., None]).sum(-1)
    denominator[..., 0] = row_max
    denominator[..., 1] = torch.where(exp_sum == 0, 0.0, 1 / exp_sum)
    return shares


def plan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    params: AttentionParams,
    out: AttentionTensors,
    spec: LayerSpec,
    output: Tensor,
    weighting: KeyWeighting = PLAIN,
) -> list[Launch]:
    """Returns the launches that fill the attention output, and write a layer's row."""
    batch, heads, _, width = query.shape
    assert output.is_contiguous()
    assert out.values.is_contiguous()
    sizes = _choose_sizes(query, key, params, out)
    splits = triton.cdiv(sizes.keys, sizes.split)
    scores = torch.empty(batch, heads, sizes.keys, device=query.device)
    denominator = torch.empty(batch, heads, 2, device=query.device)
    row = _plan_row(sizes, scores, denominator, out, spec, weighting)
    if splits == 1:
        return [_plan_attend(query, key, value, params, sizes, scores, output, denominator), row]
    outputs = torch.empty(splits, batch, heads, width, device=query.device)
    denominators = torch.empty(splits, batch, heads, 2, device=query.device)
    arguments = {"outputs": outputs, "denominators": denominators, "out": output, "denominator": denominator}
    arguments |= {"rows": batch * heads, "splits": splits, "D": width, "BLOCK_D": _block_d(width)}
    join = Launch(join_kernel, (batch * heads,), arguments, num_warps=1)
    return [_plan_attend(query, key, value, params, sizes, scores, outputs, denominators), join, row]


def _choose_sizes(query: Tensor, key: Tensor, params: AttentionParams, out: AttentionTensors) -> Sizes:
    """Chooses the splits: as many as fill the GPU, of whole tiles of keys."""
    batch, heads = query.shape[:2]
    _, key_heads, keys, _ = key.shape
    splits = max(1, min(triton.cdiv(MIN_PROGRAMS, batch * key_heads), keys // _MIN_SPLIT))
    block_s = _block_s(query)
    split = triton.cdiv(triton.cdiv(keys, splits), block_s) * block_s
    visible_keys = max(0, min(params.first_position + 1, keys)) if params.causal else None
    return Sizes(heads, heads // key_heads, keys, visible_keys, out.length, out.length - keys, split)


def _block_s(query: Tensor) -> int:
    return 32 if query.dtype == torch.float32 else 64


def _block_d(width: int) -> int:
    return max(16, int(triton.next_power_of_2(width)))


def _plan_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    params: AttentionParams,
    sizes: Sizes,
    scores: Tensor,
    output: Tensor,
    denominator: Tensor,
) -> Launch:
    """Returns the launch that attends, with one output and one denominator for each split."""
    batch, heads, _, width = query.shape
    is_half = query.dtype != torch.float32
    block_s, block_d = _block_s(query), _block_d(width)
    arguments = {
        "query": to_strided(query),
        "key": to_strided(key),
        "value": to_strided(value),
        # The sizes say which keys are visible; the other parameters are the same for all keys.
        "score_params": to_kernel_params(params._replace(causal=False)),
        "sizes": sizes,
        "scores": scores,
        "out": output,
        "denominator": denominator,
        "slots": batch,
        "D": width,
        "BLOCK_D": block_d,
        # Wide float32 heads in chunks: whole heads, split for tensor cores, would not stay in registers.
        "CHUNK_D": block_d if is_half or width <= 128 else 64,
        "BLOCK_S": block_s,
        "BLOCK_H": max(16, triton.next_power_of_2(sizes.groups)),
        "PRECISION": dot_precision(query.dtype),
    }
    return Launch(
        attend_kernel,
        (triton.cdiv(sizes.keys, sizes.split), batch * heads // sizes.groups),
        arguments,
        num_warps=8 if width > 128 and not is_half else 4,
        num_stages=max(1, min(3, STAGING_BYTES // (2 * block_s * block_d * query.element_size()))),
    )


def _plan_row(
    sizes: Sizes,
    scores: Tensor,
    denominator: Tensor,
    out: AttentionTensors,
    spec: LayerSpec,
    weighting: KeyWeighting,
) -> Launch:
    """Returns the launch that writes the row."""
    batch = scores.shape[0]
    kernel_spec = to_kernel_spec(spec, sizes.heads, scores.device, weighting)
    heads = kernel_spec.num_heads if spec.over_heads is None else 1
    arguments = {"sizes": sizes, "spec": kernel_spec, "scores": scores, "denominator": denominator}
    arguments |= reduction_arguments(spec, out)
    if spec.is_last and not out.is_dense_float:
        arguments |= {**packed_arguments(spec, out), "BLOCK_S": _ROW_NUMBERS}
        return Launch(packed_row_kernel, (batch * heads,), arguments)
    columns = out.values.shape[3]
    block_c = heads_per_program(spec, sizes.heads, columns, 16)
    block_s = _ROW_NUMBERS // block_c
    arguments |= {
        "out": out.values if spec.is_last else out.accumulator,
        "columns": columns if spec.is_last else 1,
        "column": spec.column,
        "BLOCK_S": block_s,
        "BLOCK_C": block_c,
        "LAST": spec.is_last,
    }
    return Launch(row_kernel, (triton.cdiv(out.length, block_s), batch * heads // block_c), arguments)
