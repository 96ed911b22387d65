"""`rows`: checks its arguments, and chooses the Triton kernel or the torch reference."""

from __future__ import annotations

from torch import Tensor

from ..common.attention_params import AttentionParams, check_attention_params, check_heads
from ..common.attention_tensors import ALL_HEADS, AttentionTensors, LayerSpec, check_layer_spec
from ..common.dispatch import Impl, select_impl
from ..common.key_weighting import PLAIN, KeyWeighting, check_key_weighting
from .reference import rows_reference


def rows(
    query: Tensor,
    key: Tensor,
    params: AttentionParams,
    out: AttentionTensors,
    spec: LayerSpec = ALL_HEADS,
    weighting: KeyWeighting = PLAIN,
    *,
    impl: Impl | None = None,
) -> None:
    """Writes the attention probabilities of one layer, from its queries and keys.

    Args:
        query: `[B, H, T, D]`: the queries whose rows are written; float32, float16 or bfloat16, any strides.
        key: `[B, Hkv, S, D]`, Hkv a divisor of H: query head h uses key head `h // (H / Hkv)`. There may be fewer keys
            than positions in `out`, as in the cache of a sliding window: the keys are then the last positions, and the
            positions before get 0.
        params: What decides probabilities besides queries and keys.
        out: From `new_attention_tensors`, for T queries. Layers that are reduced must be written from first to last.
        spec: What this layer writes.
        weighting: Which keys the rows leave out, and the factors of the others.
        impl: Forces an implementation. The default is Triton for tensors on a GPU, the reference elsewhere.

    Accumulates in float32, always in the same order: results are deterministic.

    Raises:
        ValueError: The arguments do not fit together; the message begins with the argument's name.
        ModuleNotFoundError: Triton was forced and is not installed.
    """
    check_heads(query, key)
    check_attention_params(params, query, key.shape[2])
    check_layer_spec(spec, query.shape[1], out)
    check_key_weighting(weighting, query, key.shape[2], out)
    if out.values.shape[:2] != (query.shape[0], query.shape[2]):
        raise ValueError(f"out: must be for {query.shape[2]} queries in a batch of {query.shape[0]}")
    if out.length < key.shape[2]:
        raise ValueError(f"out: has {out.length} positions, fewer than the {key.shape[2]} keys")
    if select_impl(query, impl) == "reference":
        rows_reference(query, key, params, out, spec, weighting)
        return
    from .triton_kernel import rows_triton  # slow to import: only where it is needed

    rows_triton(query, key, params, out, spec, weighting)
