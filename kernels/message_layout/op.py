"""From attention probabilities as models make them to attention as messages carry it.

The public function: it checks what it is given and picks the Triton kernel or the torch reference by device. Knows
neither models nor messages.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.attention_tensors import AttentionTensors
from ..common.dispatch import Impl, select_impl
from ..common.encoding_reference import pack
from ..common.reductions import REDUCTIONS, Reduction
from .reference import layout_reference

_INPUTS = (torch.float32, torch.float16, torch.bfloat16)
_OUTPUTS = (torch.float32, torch.float16)


def layout(
    layers: Sequence[Tensor],
    *,
    over_heads: Reduction | None = None,
    over_layers: Reduction | None = None,
    out_dtype: torch.dtype = torch.float32,
    impl: Impl | None = None,
) -> Tensor:
    """Permutes attention to the message layout, and reduces heads and then layers where asked, in one pass over them.

    Args:
        layers: One tensor `[B, H, Q, K]` for each layer: batch, heads, queries, keys. Equal shapes; float32, float16
            or bfloat16; any strides.
        over_heads: How the heads of a layer become one.
        over_layers: How the layers then become one. Needs `over_heads`.
        out_dtype: float32 or float16. Reductions accumulate in float32 and are rounded once, at the end.
        impl: Forces an implementation. By default Triton for tensors on a GPU, CUDA's or ROCm's, where it is installed;
            the reference elsewhere.

    Returns:
        A contiguous tensor `[B, Q, K, L, H]`; with heads reduced `[B, Q, K, L]`; with both `[B, Q, K]`.

    Raises:
        ValueError: What is given does not fit together; the message begins with the argument's name.
        ModuleNotFoundError: Triton was forced and is not installed.
    """
    _check(layers, over_heads, over_layers, out_dtype)
    if select_impl(layers[0], impl) == "reference":
        return layout_reference(layers, over_heads, over_layers, out_dtype)
    from .triton_kernel import layout_triton  # slow to import: only where it is wanted

    return layout_triton(layers, over_heads, over_layers, out_dtype)


def layout_into(
    layers: Sequence[Tensor],
    result: AttentionTensors,
    *,
    over_heads: Reduction | None = None,
    over_layers: Reduction | None = None,
    impl: Impl | None = None,
) -> None:
    """As `layout`, into a result in any encoding, from `new_attention_tensors`.

    Its columns are `L * H`, L with heads reduced, one with both. It needs no room to fold layers: they are all there.
    Numbers below 0 are 0 in bytes. NaN stays NaN where all positions are kept as floats; what else becomes of a row
    that has one is left open: its bytes, and which of its positions are the greatest.

    Raises:
        ValueError: What is given does not fit together; the message begins with the argument's name.
        ModuleNotFoundError: Triton was forced and is not installed.
    """
    _check(layers, over_heads, over_layers, torch.float32)
    batch, heads, queries, keys = layers[0].shape
    columns = 1 if over_layers else len(layers) if over_heads else len(layers) * heads
    fits = (*result.values.shape[:2], result.length, result.values.shape[3])
    if fits != (batch, queries, keys, columns):
        raise ValueError(
            f"result: must be for [B, Q, K, columns] = {[batch, queries, keys, columns]}, not {list(fits)}"
        )
    if select_impl(layers[0], impl) == "reference":
        rows = layout_reference(layers, over_heads, over_layers, torch.float32).view(fits)
        for to, made in zip(result[:3], pack(rows, result.values.dtype, result.top_k), strict=True):
            if to is not None and made is not None:
                to.copy_(made)
        return
    from .triton_kernel import layout_into_triton  # slow to import: only where it is wanted

    layout_into_triton(layers, result, over_heads, over_layers)


def _check(layers: Sequence[Tensor], over_heads: str | None, over_layers: str | None, out_dtype: torch.dtype) -> None:
    if not layers:
        raise ValueError("layers: at least one is needed")
    first = layers[0]
    shape, dtype, device = first.shape, first.dtype, first.device
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"layers: shape must be [B, H, Q, K] with nothing empty, not {list(shape)}")
    for layer in layers[1:]:
        if layer.shape != shape or layer.dtype != dtype or layer.device != device:
            raise ValueError("layers: all must have one shape, dtype and device")
    if dtype not in _INPUTS:
        raise ValueError(f"layers: dtype must be float32, float16 or bfloat16, not {dtype}")
    if out_dtype not in _OUTPUTS:
        raise ValueError(f"out_dtype: must be float32 or float16, not {out_dtype}")
    if over_heads is not None and over_heads not in REDUCTIONS:
        raise ValueError(f"over_heads: must be one of {', '.join(REDUCTIONS)}, not {over_heads!r}")
    if over_layers is not None:
        if over_layers not in REDUCTIONS:
            raise ValueError(f"over_layers: must be one of {', '.join(REDUCTIONS)}, not {over_layers!r}")
        if over_heads is None:
            raise ValueError("over_layers: needs over_heads, since heads are reduced before layers")
