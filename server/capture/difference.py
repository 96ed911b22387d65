"""The attention of one context minus the attention of another, as Inseq's PairAggregator subtracts it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .arrays import AttentionArrays
from .plan import CapturePlan


def minuend_plan(plan: CapturePlan) -> CapturePlan:
    """The plan by which both contexts are captured: all numbers, in float32. `subtract` encodes what is left."""
    return replace(plan, encoding="float32", top_k=0)


def subtract(
    attention: AttentionArrays | None, other: AttentionArrays | None, plan: CapturePlan
) -> AttentionArrays | None:
    """Subtracts `other`, and encodes the difference as the plan says. Both are `[queries, positions, ...]`, float32.

    Top-k takes the positions whose differences are greatest without their sign. Of equal ones it takes those at the
    lowest positions, as the kernels do.
    """
    if attention is None or other is None:
        return None
    values, positions = attention.values - other.values, None
    if plan.top_k:
        order = np.argsort(-np.abs(values), axis=1, kind="stable")[:, : plan.top_k]
        values, positions = np.take_along_axis(values, order, 1), order.astype(np.int32)
    return AttentionArrays(values.astype(plan.encoding, copy=False), None, positions)
