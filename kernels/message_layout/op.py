"""`layout_into`: checks its arguments, and chooses the Triton kernels or the torch reference."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.attention_tensors import AttentionTensors
from ..common.dispatch import Impl, select_impl
from ..common.reductions import REDUCTIONS, Reduction
from .reference import layout_reference

_INPUTS = (torch.float32, torch.float16, torch.bfloat16)


def layout_into(
    layers: Sequence[Tensor],
    out: AttentionTensors,
    *,
    over_heads: Reduction | None = None,
    over_layers: Reduction | None = None,
    impl: Impl | None = None,
) -> None:
    """Permutes attention matrices to the layout of a message, and reduces heads and then layers, in one pass over them.

    Numbers below 0 are 0 in bytes. NaN stays NaN where all positions are kept as floats. Otherwise the bytes of a row
    with NaN, and which of its positions are the greatest, are undefined.

    Args:
        layers: One tensor `[B, H, Q, K]` for each layer: batch, heads, queries, keys. Equal shapes; float32, float16
            or bfloat16; any strides.
        out: From `new_attention_tensors`, in any encoding. Its columns are `L * H`, L with heads reduced, one with both
            reduced. It needs no accumulator: all layers are there at once.
        over_heads: How the heads of a layer are reduced.
        over_layers: How the layers are then reduced. Needs `over_heads`. Reductions accumulate in float32.
        impl: Forces an implementation. The default is Triton for tensors on a GPU, CUDA or ROCm, where it is installed;
            the reference elsewhere.

    Raises:
        ValueError: The arguments do not fit together; the message begins with the argument's name.
        ModuleNotFoundError: Triton was forced and is not installed.
    """
    _check(layers, over_heads, over_layers)
    batch, heads, queries, keys = layers[0].shape
    columns = 1 if over_layers else len(layers) if over_heads else len(layers) * heads
    shape = (*out.values.shape[:2], out.length, out.values.shape[3])
    if shape != (batch, queries, keys, columns):
        raise ValueError(f"out: must be for [B, Q, K, columns] = {[batch, queries, keys, columns]}, not {list(shape)}")
    if select_impl(layers[0], impl) == "reference":
        layout_reference(layers, out, over_heads, over_layers)
        return
    from .triton_kernel import layout_triton  # slow to import: only where it is needed

    layout_triton(layers, out, over_heads, over_layers)


def _check(layers: Sequence[Tensor], over_heads: str | None, over_layers: str | None) -> None:
    if not layers:
        raise ValueError("layers: at least one is needed")
    first = layers[0]
    shape, dtype, device = first.shape, first.dtype, first.device
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"layers: shape must be [B, H, Q, K] with no empty axis, not {list(shape)}")
    for layer in layers[1:]:
        if layer.shape != shape or layer.dtype != dtype or layer.device != device:
            raise ValueError("layers: all must have one shape, dtype and device")
    if dtype not in _INPUTS:
        raise ValueError(f"layers: dtype must be float32, float16 or bfloat16, not {dtype}")
    if over_heads is not None and over_heads not in REDUCTIONS:
        raise ValueError(f"over_heads: must be one of {', '.join(REDUCTIONS)}, not {over_heads!r}")
    if over_layers is not None:
        if over_layers not in REDUCTIONS:
            raise ValueError(f"over_layers: must be one of {', '.join(REDUCTIONS)}, not {over_layers!r}")
        if over_heads is None:
            raise ValueError("over_layers: needs over_heads, since heads are reduced before layers")
