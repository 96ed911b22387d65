"""A small kernel for audits: the product of two matrices. Only `planted_audit.py` imports it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sidelight.kernels.common.launch import Launch


@triton.jit
def product_kernel(a, b, out, K, M: tl.constexpr, N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):  # noqa: N803
    """The product of `a`, [M, K], and the transpose of `b`, [N, K], in float32."""
    row, column = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    sums = tl.zeros((M, N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        x, y = tl.load(a + row * K + inner[None, :]), tl.load(b + column * K + inner[:, None])
        sums = tl.dot(x, y, sums, input_precision=PRECISION)
    tl.store(out + row * N + column, sums)


def product(device: str, dtype: torch.dtype = torch.float16, block_k: int = 64, warps: int = 4) -> list[Launch]:
    a, b = torch.rand(128, 256, device=device).to(dtype), torch.rand(64, 256, device=device).to(dtype)
    out = torch.empty(128, 64, device=device)
    arguments = {"a": a, "b": b, "out": out, "K": 256, "M": 128, "N": 64, "BLOCK_K": block_k, "PRECISION": "ieee"}
    return [Launch(product_kernel, (1,), arguments, num_warps=warps)]
