"""The kernels as they are used in practice: what the audit compiles and counts, and what the bench runs.

Each case is one call of a kernel, with the shapes of real models. Knows shapes and launches; does not run anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import layout_triton
from .launch import Launch
from .reductions import Reduction


class Variant(NamedTuple):
    """One call of a kernel."""

    kernel: str  # "layout", "rows" or "decode"
    case: str  # what is special about it, for people: a few words
    launches: Callable[[str], list[Launch]]  # from a device ("meta", "cpu", "cuda") to launches with new tensors on it
    least_bytes: int  # what must at least be read and written: every input once, every result once
    flops: int = 0  # multiplications and additions of the matrix products, 2 for each pair; 0 where there are none
    moved_at_most: float = 1.05  # how many times the least bytes the kernel may move; more than 1.05 is justified there
    load_bits: int = 128  # the widest global load that the shapes allow
    tensor_cores: bool = False  # whether tensor-core instructions are to be found


def variants() -> Iterator[Variant]:
    """All cases, in the order of the audit's table."""
    yield from _layout()


def _layout() -> Iterator[Variant]:
    cases: list[tuple[str, tuple[int, ...], int, Reduction | None, Reduction | None, torch.dtype, torch.dtype]] = [
        ("unreduced", (1, 8, 64, 64), 6, None, None, torch.float32, torch.float32),
        ("unreduced, half", (1, 16, 64, 64), 12, None, None, torch.bfloat16, torch.float16),
        ("heads mean", (1, 8, 64, 64), 6, "mean", None, torch.float32, torch.float32),
        ("heads mean, layers max", (1, 8, 64, 64), 6, "mean", "max", torch.float32, torch.float32),
    ]
    for case, shape, count, over_heads, over_layers, dtype, out_dtype in cases:

        def launches(
            device: str,
            shape: tuple[int, ...] = shape,
            count: int = count,
            over_heads: Reduction | None = over_heads,
            over_layers: Reduction | None = over_layers,
            dtype: torch.dtype = dtype,
            out_dtype: torch.dtype = out_dtype,
        ) -> list[Launch]:
            layers = [torch.rand(shape, device=device).to(dtype) for _ in range(count)]
            out = _result(shape, count, over_heads, over_layers, out_dtype, device)
            return [layout_triton.plan(layers, out, over_heads, over_layers)]

        read = count * torch.Size(shape).numel() * dtype.itemsize
        written = _result(shape, count, over_heads, over_layers, out_dtype, "meta").nbytes
        yield Variant("layout", case, launches, read + written)


def _result(
    shape: tuple[int, ...],
    count: int,
    over_heads: Reduction | None,
    over_layers: Reduction | None,
    out_dtype: torch.dtype,
    device: str,
) -> Tensor:
    batch, heads, queries, keys = shape
    columns = () if over_layers else (count,) if over_heads else (count, heads)
    return torch.empty(batch, queries, keys, *columns, dtype=out_dtype, device=device)
