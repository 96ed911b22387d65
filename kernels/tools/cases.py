"""Typical calls of the kernels: what the audit compiles and counts, and what the bench times.

Each case is one call of a kernel, with the shapes of real models: small ones for the interpreter, large ones for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..attention_rows import triton_kernel as rows_triton
from ..common.attention_params import AttentionParams
from ..common.attention_tensors import AttentionTensors, Encoding, LayerSpec, new_attention_tensors
from ..common.key_weighting import KeyWeighting
from ..common.launch import Launch
from ..common.reductions import Reduction
from ..decode_attention import triton_kernel as decode_triton
from ..message_layout import triton_kernel as layout_triton
from ..message_layout.reference import layout_floats

Device = str
Run = Callable[[], object]


class KernelCase(NamedTuple):
    """One call of a kernel."""

    kernel: str  # "layout", "rows" or "decode"
    name: str  # what is special about the case, in a few words
    launches: Callable[[Device], list[Launch]]  # from a device ("meta", "cpu" or "cuda") to launches on new tensors
    least_bytes: int  # the least that must be read and written: each input once, each out once
    flops: int = 0  # of matrix products, 2 for each multiplication and addition; 0 without matrix products
    moved_at_most: float = 1.05  # how many times the least bytes it may move; a greater number has a reason beside it
    load_bits: int = 128  # the widest global load that the shapes allow
    is_half: bool = False  # whether the inputs are of half precision
    second_pass_bytes: int = 0  # for `decode`: the least bytes of attention and then rows, in two passes
    tensor_cores: bool = False  # whether it must have tensor-core instructions
    eager: Callable[[Device], Run] | None = None  # the same by torch's operations, on new tensors
    sdpa: Callable[[Device], Run] | None = None  # the attention output alone, without rows
    two_passes: Callable[[Device], Run] | None = None  # the attention output by SDPA, then the rows by `rows`


def all_cases(*, large: bool = False) -> Iterator[KernelCase]:
    """Yields all cases, in the order of the audit's table; with `large`, at the sizes of the bench."""
    yield from (_layout(case, 512 if large else case.small) for case in LAYOUTS)
    yield from (_rows(case, 2048 if large else 128) for case in ROWS)
    yield from (_decode(case, 32 if large else 2, 1024 if large else 128) for case in DECODES)
    yield _decode(LONG, 1, 16384 if large else 2048)


class LayoutCase(NamedTuple):
    """Whole matrices of some layers, and what is computed from them."""

    name: str
    small: int  # queries, and keys except for encoded rows: the fewest that make tiles with 128 bits for each thread
    heads: int
    layers: int
    over_heads: Reduction | None
    over_layers: Reduction | None
    dtype: torch.dtype
    encoding: Encoding
    top_k: int = 0


LAYOUTS = [
    LayoutCase("apart, float32", 16, 8, 6, None, None, torch.float32, "float32"),
    LayoutCase("apart, bfloat16 to float16", 16, 16, 12, None, None, torch.bfloat16, "float16"),
    LayoutCase("heads mean", 128, 8, 6, "mean", None, torch.float32, "float32"),
    LayoutCase("heads mean, layers max", 512, 4, 4, "mean", "max", torch.float32, "float32"),
    LayoutCase("heads mean to bytes", 32, 8, 2, "mean", None, torch.float32, "uint8"),
    LayoutCase("apart, top 8", 4, 8, 2, None, None, torch.float32, "float32", 8),
]


def _layout(case: LayoutCase, length: int) -> KernelCase:
    queries, keys = length, max(length, 512)  # each encoded row is a program: few rows, but long ones for wide loads
    shape = (1, case.heads, queries, keys)
    columns = 1 if case.over_layers else case.layers if case.over_heads else case.layers * case.heads

    def inputs(device: Device) -> list[Tensor]:
        return [torch.rand(shape, device=device).to(case.dtype) for _ in range(case.layers)]

    def outputs(device: Device) -> AttentionTensors:
        return new_attention_tensors(1, queries, keys, columns, encoding=case.encoding, top_k=case.top_k, device=device)

    def launches(device: Device) -> list[Launch]:
        out = outputs(device)
        if out.is_dense_float:
            return [layout_triton.plan(inputs(device), out.values, case.over_heads, case.over_layers)]
        return [layout_triton.plan_packed(inputs(device), out, case.over_heads, case.over_layers)]

    def eager(device: Device) -> Run:
        layers = inputs(device)
        return lambda: layout_floats(layers, case.over_heads, case.over_layers)

    read = case.layers * torch.Size(shape).numel() * case.dtype.itemsize
    return KernelCase("layout", case.name, launches, read + _written(outputs("meta")), eager=eager)


class AttentionCase(NamedTuple):
    """A layer of a model, and what is computed from it."""

    name: str
    dtype: torch.dtype
    heads: int
    key_heads: int
    width: int
    over_heads: Reduction | None
    encoding: Encoding = "float32"
    top_k: int = 0
    causal: bool = False
    has_bias: bool = False
    has_factors: bool = False  # of keys, as value norms have them
    moved_at_most: float = 1.05


_HALF = torch.bfloat16
ROWS = [
    AttentionCase("mean, 8 heads of 64", _HALF, 8, 8, 64, "mean", causal=True),
    AttentionCase("mean, grouped heads of 128", _HALF, 8, 2, 128, "mean", causal=True),
    AttentionCase("mean, grouped heads of 256", _HALF, 8, 4, 256, "mean", causal=True),
    AttentionCase("mean, 8 heads of 32", _HALF, 8, 8, 32, "mean", causal=True),
    AttentionCase("mean, 8 heads of 64, float32", torch.float32, 8, 8, 64, "mean", causal=True),
    AttentionCase("apart, 8 heads of 64", _HALF, 8, 8, 64, None),
    AttentionCase("apart, 8 heads of 128, float32", torch.float32, 8, 8, 128, None),
    AttentionCase("l2, with a bias (T5), float32", torch.float32, 8, 8, 64, "l2", has_bias=True),
    AttentionCase("mean to bytes", _HALF, 8, 8, 64, "mean", "uint8", causal=True),
    AttentionCase("apart, top 8", _HALF, 8, 8, 64, None, top_k=8),
    AttentionCase("mean of value norms", _HALF, 8, 8, 64, "mean", causal=True, has_factors=True),
    AttentionCase("value norms apart, float32", torch.float32, 8, 8, 64, None, causal=True, has_factors=True),
]
DECODES = [
    AttentionCase("apart, 16 heads of 64", _HALF, 16, 16, 64, None),
    AttentionCase("mean, 16 heads of 64", _HALF, 16, 16, 64, "mean"),
    AttentionCase("mean, 16 heads of 64, float32", torch.float32, 16, 16, 64, "mean"),
    AttentionCase("max, grouped heads (2) of 128", _HALF, 16, 8, 128, "max"),
    # Eight bytes for each score of four heads, beside 512 bytes of a key and a value: scores are written and read back,
    # see decode_attention. Other ways cost more: reading keys again half as much again, and with scores in half
    # precision rows would not sum to 1.
    AttentionCase("mean, grouped heads (4) of 128", _HALF, 32, 8, 128, "mean", moved_at_most=1.07),
    AttentionCase("mean, grouped heads (2) of 256", _HALF, 8, 4, 256, "mean"),
    AttentionCase("mean, 8 heads of 256, float32", torch.float32, 8, 8, 256, "mean"),
    AttentionCase("apart, with a bias (T5), float32", torch.float32, 8, 8, 64, None, has_bias=True),
    AttentionCase("mean to bytes", _HALF, 16, 16, 64, "mean", "uint8"),
    AttentionCase("apart, top 8", _HALF, 16, 16, 64, None, top_k=8),
    AttentionCase("mean of value norms", _HALF, 16, 16, 64, "mean", has_factors=True),
    AttentionCase("value norms apart, grouped heads (2) of 128", _HALF, 16, 8, 128, None, has_factors=True),
]
LONG = AttentionCase("mean, one slot, long", _HALF, 16, 8, 128, "mean")


class Inputs(NamedTuple):
    """The arguments of `rows` or `decode`."""

    query: Tensor
    key: Tensor
    value: Tensor
    params: AttentionParams
    out: AttentionTensors
    weighting: KeyWeighting


def make_inputs(case: AttentionCase, device: Device, batch: int, queries: int, keys: int) -> Inputs:
    """Makes random inputs of a case on a device, and tensors for the result, with arbitrary content."""

    def draw(heads: int, length: int) -> Tensor:
        return torch.randn(batch, heads, length, case.width, device=device).to(case.dtype)

    columns = 1 if case.over_heads else case.heads
    bias = torch.randn(1, case.heads, queries, keys, device=device).to(case.dtype) if case.has_bias else None
    return Inputs(
        draw(case.heads, queries),
        draw(case.key_heads, keys),
        draw(case.key_heads, keys),
        AttentionParams(case.width**-0.5, bias=bias, causal=case.causal),
        new_attention_tensors(batch, queries, keys, columns, encoding=case.encoding, top_k=case.top_k, device=device),
        KeyWeighting(None, torch.rand(batch, case.heads, keys, device=device) if case.has_factors else None),
    )


def _bytes(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _written(out: AttentionTensors) -> int:
    return _bytes(out.values, out.scales, out.positions)


def _rows(case: AttentionCase, length: int) -> KernelCase:
    spec = LayerSpec(over_heads=case.over_heads)

    def launches(device: Device) -> list[Launch]:
        query, key, _, params, out, weighting = make_inputs(case, device, 1, length, length)
        return rows_triton.plan(query, key, params, out, spec, weighting)

    def eager(device: Device) -> Run:
        query, key, _, params, _, weighting = make_inputs(case, device, 1, length, length)
        return lambda: _eager(query, key, params, case, weighting)

    def sdpa(device: Device) -> Run:
        return _sdpa(make_inputs(case, device, 1, length, length))

    def two_passes(device: Device) -> Run:
        return _two_passes(make_inputs(case, device, 1, length, length), spec)

    query, key, _, params, out, weighting = make_inputs(case, "meta", 1, length, length)
    products = case.heads * length * length * case.width * 2
    sweeps = 3 if case.encoding == "uint8" and not case.top_k else 2  # denominators, rows, and for bytes rows again
    return KernelCase(
        "rows",
        case.name,
        launches,
        _bytes(query, key, params.bias, weighting.factors) + _written(out),
        flops=sweeps * products // (2 if case.causal else 1),
        is_half=case.dtype != torch.float32,
        # Tiles read keys and queries again: the table shows it, and attention_rows.triton_kernel says why.
        moved_at_most=float("inf"),
        tensor_cores=True,
        eager=eager,
        sdpa=sdpa,
        two_passes=two_passes,
    )


def _decode(case: AttentionCase, slots: int, length: int) -> KernelCase:
    spec = LayerSpec(over_heads=case.over_heads)

    def launches(device: Device) -> list[Launch]:
        query, key, value, params, out, weighting = make_inputs(case, device, slots, 1, length)
        return decode_triton.plan(query, key, value, params, out, spec, torch.empty_like(query), weighting)

    def eager(device: Device) -> Run:
        query, key, value, params, _, weighting = make_inputs(case, device, slots, 1, length)

        def run() -> object:
            row = _eager(query, key, params, case, weighting)
            return row, _output(query, key, value, params)

        return run

    def sdpa(device: Device) -> Run:
        return _sdpa(make_inputs(case, device, slots, 1, length))

    def two_passes(device: Device) -> Run:
        return _two_passes(make_inputs(case, device, slots, 1, length), spec)

    query, key, value, params, out, weighting = make_inputs(case, "meta", slots, 1, length)
    least = _bytes(query, key, value, params.bias, query, weighting.factors) + _written(out)
    return KernelCase(
        "decode",
        case.name,
        launches,
        least,
        flops=4 * slots * case.heads * length * case.width,
        is_half=case.dtype != torch.float32,
        # Fused attention reads keys and values, a second pass queries and keys once more.
        second_pass_bytes=least + _bytes(query, key),
        moved_at_most=case.moved_at_most,
        tensor_cores=True,
        eager=eager,
        sdpa=sdpa,
        two_passes=two_passes,
    )


def _eager(query: Tensor, key: Tensor, params: AttentionParams, case: AttentionCase, weighting: KeyWeighting) -> object:
    """Eager attention of a model, then a permutation and a reduction, in the model's precision."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ key.transpose(2, 3) * params.scale
    if params.bias is not None:
        scores = scores + params.bias
    if params.causal:
        hidden = torch.ones(scores.shape[2:], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    probabilities = scores.softmax(-1, dtype=torch.float32)
    if weighting.factors is not None:
        probabilities = probabilities * weighting.factors[:, :, None]
    probabilities = probabilities.permute(0, 2, 3, 1)
    if case.over_heads == "mean":
        probabilities = probabilities.mean(3, keepdim=True)
    elif case.over_heads == "max":
        probabilities = probabilities.amax(3, keepdim=True)
    elif case.over_heads == "l2":
        probabilities = probabilities.square().sum(3, keepdim=True).sqrt()
    return probabilities.topk(case.top_k, dim=2) if case.top_k else probabilities.contiguous()


def _sdpa(inputs: Inputs) -> Run:
    query, key, value, params, _, _ = inputs
    return lambda: _output(query, key, value, params)


def _two_passes(inputs: Inputs, spec: LayerSpec) -> Run:
    """Fused attention without probabilities, then queries and keys once more for the rows."""
    query, key, value, params, out, weighting = inputs
    launches = rows_triton.plan(query, key, params, out, spec, weighting)

    def run() -> None:
        _output(query, key, value, params)
        for launch in launches:
            launch.run()

    return run


def _output(query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> Tensor:
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=params.bias,
        is_causal=params.causal,
        scale=params.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
