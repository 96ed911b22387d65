"""The attention of one context minus the attention of another, as Inseq's PairAggregator subtracts it."""

from __future__ import annotations

from dataclasses import replace

from .arrays import AttentionArrays
from .grouping import encode
from .plan import CapturePlan


def minuend_plan(plan: CapturePlan) -> CapturePlan:
    """The plan by which both contexts are captured: all numbers, in float32. `subtract` encodes what is left."""
    return replace(plan, encoding="float32", top_k=0)


def subtract(
    attention: AttentionArrays | None, other: AttentionArrays | None, plan: CapturePlan
) -> AttentionArrays | None:
    """Subtracts `other`, and encodes the difference as the plan says. Both are `[queries, positions, ...]`, float32."""
    if attention is None or other is None:
        return None
    encoded = encode(attention.values - other.values, plan.encoding, plan.top_k, axis=1, is_difference=True)
    if attention.shares is None or other.shares is None:
        return encoded
    return encoded._replace(shares=attention.shares - other.shares)
