"""One query for each slot over its cache: the attention output and the row of it that a message carries, from one read.

The public function: it checks what it is given and picks the Triton kernels or the torch reference by device. Knows
neither models nor messages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.attention_params import AttentionParams, check_attention_params, check_heads
from ..common.attention_tensors import EVERYTHING, AttentionTensors, LayerSpec, check_layer_spec
from ..common.dispatch import Impl, select_impl
from .reference import decode_reference


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: AttentionParams,
    result: AttentionTensors,
    part: LayerSpec = EVERYTHING,
    *,
    lengths: Tensor | None = None,
    impl: Impl | None = None,
) -> Tensor:
    """Attends with one query for each slot, and writes the layer's row into a result.

    Args:
        query: `[B, H, 1, D]`, one for each slot; float32, float16 or bfloat16.
        key: `[B, Hkv, S, D]`, the slots' caches, any strides. They may be fewer than the result's positions: they are
            then the last of them, as in a sliding window's cache, and the positions before them get 0.
        value: `[B, Hkv, S, D]`.
        scoring: What decides probabilities beside them. Its `first` and `window` are looked at only without `lengths`.
        result: From `new_attention_tensors`, for one query. Layers that are folded must come first to last.
        part: What this layer gives.
        lengths: int32 `[B]`, how many of its keys each slot uses, from the first; None: all. With `scoring.causal`
            and a window a slot sees the last `window` of them. A slot of length 0 gets zeros. What is above S is taken
            as S, and not refused: to look would wait for the GPU. Keys and values that a slot does not use, or that
            its window has left behind, may be anything, NaN too.
        impl: Forces an implementation. By default Triton for tensors on a GPU, the reference elsewhere.

    Returns:
        The output `[B, H, 1, D]`, in the query's dtype.

    Raises:
        ValueError: What is given does not fit together; the message begins with the argument's name.
        ModuleNotFoundError: Triton was forced and is not installed.
    """
    check_heads(query, key)
    check_attention_params(scoring, query, key.shape[2])
    check_layer_spec(part, query.shape[1], result)
    if query.shape[2] != 1:
        raise ValueError(f"query: must be one for each slot, not {query.shape[2]}")
    if value.shape != key.shape or value.dtype != key.dtype or value.device != key.device:
        raise ValueError("value: must be of the key's shape, dtype and device")
    if result.values.shape[:2] != query.shape[:3:2]:
        raise ValueError(f"result: must be for 1 query in a batch of {query.shape[0]}")
    if result.length < key.shape[2]:
        raise ValueError(f"result: has {result.length} positions, fewer than the {key.shape[2]} keys")
    if lengths is not None and (lengths.shape != query.shape[:1] or lengths.dtype != torch.int32):
        raise ValueError("lengths: must be int32 [B]")
    if select_impl(query, impl) == "reference":
        return decode_reference(query, key, value, scoring, result, part, lengths)
    from .triton_kernel import decode_triton  # slow to import: only where it is wanted

    return decode_triton(query, key, value, scoring, result, part, lengths)
