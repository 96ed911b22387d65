"""Attention rows straight from queries and keys: reduced, laid out and encoded, the whole matrix never in memory.

The public function: it checks what it is given and picks the Triton kernel or the torch reference by device. Knows
neither models nor messages.
"""

from __future__ import annotations

from torch import Tensor

from ..common.attention_params import AttentionParams, check_attention_params, check_heads
from ..common.attention_tensors import EVERYTHING, AttentionTensors, LayerSpec, check_layer_spec
from ..common.dispatch import Impl, select_impl
from .reference import rows_reference


def rows(
    query: Tensor,
    key: Tensor,
    scoring: AttentionParams,
    result: AttentionTensors,
    part: LayerSpec = EVERYTHING,
    *,
    impl: Impl | None = None,
) -> None:
    """Writes one layer's attention probabilities into a result.

    Args:
        query: `[B, H, T, D]`: the queries whose rows are wanted; float32, float16 or bfloat16, any strides.
        key: `[B, Hkv, S, D]`, Hkv a divisor of H: query head h uses key head `h // (H / Hkv)`. The keys may be fewer
            than the result's positions: they are then the last of them, as in a sliding window's cache, and the
            positions before them get 0.
        scoring: What decides probabilities beside them.
        result: From `new_attention_tensors`, for T queries. Layers that are folded must come first to last.
        part: What this layer gives.
        impl: Forces an implementation. By default Triton for tensors on a GPU, the reference elsewhere.

    Accumulates in float32, in one order always: results are deterministic.

    Raises:
        ValueError: What is given does not fit together; the message begins with the argument's name.
        ModuleNotFoundError: Triton was forced and is not installed.
    """
    check_heads(query, key)
    check_attention_params(scoring, query, key.shape[2])
    check_layer_spec(part, query.shape[1], result)
    if result.values.shape[:2] != (query.shape[0], query.shape[2]):
        raise ValueError(f"result: must be for {query.shape[2]} queries in a batch of {query.shape[0]}")
    if result.length < key.shape[2]:
        raise ValueError(f"result: has {result.length} positions, fewer than the {key.shape[2]} keys")
    if select_impl(query, impl) == "reference":
        rows_reference(query, key, scoring, result, part)
        return
    from .triton_kernel import rows_triton  # slow to import: only where it is wanted

    rows_triton(query, key, scoring, result, part)
