"""`decode`: checks its arguments, and chooses the Triton kernels or the torch reference."""

from __future__ import annotations

from torch import Tensor

from ..common.attention_params import AttentionParams, check_attention_params, check_heads
from ..common.attention_tensors import ALL_HEADS, AttentionTensors, LayerSpec, check_layer_spec
from ..common.dispatch import Impl, select_impl
from ..common.key_weighting import PLAIN, KeyWeighting, check_key_weighting
from .reference import decode_reference


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    params: AttentionParams,
    out: AttentionTensors,
    spec: LayerSpec = ALL_HEADS,
    weighting: KeyWeighting = PLAIN,
    *,
    impl: Impl | None = None,
) -> Tensor:
    """Attends with one query for each slot, and writes the attention probabilities of the layer.

    Args:
        query: `[B, H, 1, D]`, one for each slot; float32, float16 or bfloat16.
        key: `[B, Hkv, S, D]`, the caches of the slots, any strides. There may be fewer keys than positions in `out`, as
            in the cache of a sliding window: the keys are then the last positions, and the positions before get 0.
        value: `[B, Hkv, S, D]`.
        params: What decides probabilities besides queries and keys. Keys and values that causality hides may be
            anything, NaN too.
        out: From `new_attention_tensors`, for one query. Layers that are reduced must be written from first to last.
        spec: What this layer writes.
        weighting: Which keys the rows leave out, and the factors of the others.
        impl: Forces an implementation. The default is Triton for tensors on a GPU, the reference elsewhere.

    Returns:
        The attention output `[B, H, 1, D]`, in the query's dtype.

    Raises:
        ValueError: The arguments do not fit together; the message begins with the argument's name.
        ModuleNotFoundError: Triton was forced and is not installed.
    """
    check_heads(query, key)
    check_attention_params(params, query, key.shape[2])
    check_layer_spec(spec, query.shape[1], out)
    check_key_weighting(weighting, query, key.shape[2], out)
    if query.shape[2] != 1:
        raise ValueError(f"query: must be one for each slot, not {query.shape[2]}")
    if value.shape != key.shape or value.dtype != key.dtype or value.device != key.device:
        raise ValueError("value: must be of the key's shape, dtype and device")
    if out.values.shape[:2] != query.shape[:3:2]:
        raise ValueError(f"out: must be for 1 query in a batch of {query.shape[0]}")
    if out.length < key.shape[2]:
        raise ValueError(f"out: has {out.length} positions, fewer than the {key.shape[2]} keys")
    if select_impl(query, impl) == "reference":
        return decode_reference(query, key, value, params, out, spec, weighting)
    from .triton_kernel import decode_triton  # slow to import: only where it is needed

    return decode_triton(query, key, value, params, out, spec, weighting)
