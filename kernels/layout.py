"""From attention probabilities as models make them to attention as messages carry it.

The public function: it checks what it is given and picks the Triton kernel or the torch reference by device.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .layout_reference import layout_reference
from .reductions import REDUCTIONS, Reduction

_INPUTS = (torch.float32, torch.float16, torch.bfloat16)
_OUTPUTS = (torch.float32, torch.float16)


def layout(
    layers: Sequence[Tensor],
    *,
    over_heads: Reduction | None = None,
    over_layers: Reduction | None = None,
    out_dtype: torch.dtype = torch.float32,
    impl: Literal["triton", "reference"] | None = None,
) -> Tensor:
    """Permutes attention to the message layout, and reduces heads and then layers where asked, in one pass over them.

    Args:
        layers: One tensor `[B, H, Q, K]` for each layer: batch, heads, queries, keys. Equal shapes; float32, float16
            or bfloat16; any strides.
        over_heads: How the heads of a layer become one.
        over_layers: How the layers then become one. Needs `over_heads`.
        out_dtype: float32 or float16. Reductions accumulate in float32 and are rounded once, at the end.
        impl: Forces an implementation; by default Triton on a GPU, the reference elsewhere.

    Returns:
        A contiguous tensor `[B, Q, K, L, H]`; with heads reduced `[B, Q, K, L]`; with both `[B, Q, K]`.

    Raises:
        ValueError: What is given does not fit together.
    """
    _check(layers, over_heads, over_layers, out_dtype)
    if impl is None:
        impl = "triton" if layers[0].is_cuda else "reference"
    if impl == "reference":
        return layout_reference(layers, over_heads, over_layers, out_dtype)
    from .layout_triton import layout_triton  # triton is not installed everywhere, and is slow to import

    return layout_triton(layers, over_heads, over_layers, out_dtype)


def _check(layers: Sequence[Tensor], over_heads: str | None, over_layers: str | None, out_dtype: torch.dtype) -> None:
    if not layers:
        raise ValueError("layers: at least one is needed")
    first = layers[0]
    if first.ndim != 4 or not all(first.shape):
        raise ValueError(f"layers: shape must be [B, H, Q, K] with nothing empty, not {list(first.shape)}")
    for layer in layers:
        if layer.shape != first.shape or layer.dtype != first.dtype or layer.device != first.device:
            raise ValueError("layers: all must have one shape, dtype and device")
    if first.dtype not in _INPUTS:
        raise ValueError(f"layers: dtype must be float32, float16 or bfloat16, not {first.dtype}")
    if out_dtype not in _OUTPUTS:
        raise ValueError(f"out_dtype: must be float32 or float16, not {out_dtype}")
    for name, reduction in (("over_heads", over_heads), ("over_layers", over_layers)):
        if reduction is not None and reduction not in REDUCTIONS:
            raise ValueError(f"{name}: must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
    if over_layers is not None and over_heads is None:
        raise ValueError("over_layers: needs over_heads, since heads are reduced before layers")
