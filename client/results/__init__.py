"""The results of requests. Plain data, without protobuf, gRPC or files; attention is in NumPy arrays.

attributions    tokens, steps and whole attributions
observations    links between words, and signals
conversions     what notebooks make of a result
"""

from .attributions import (
    AttentionLayout,
    Attribution,
    EncoderSelf,
    Finished,
    FloatArray,
    Hypothesis,
    PolicyDecision,
    Started,
    Step,
    StopReason,
    Unit,
    Usage,
)
from .observations import HeadSource, Link, Signals, WordAlignment

__all__ = [
    "AttentionLayout",
    "Attribution",
    "EncoderSelf",
    "Finished",
    "FloatArray",
    "HeadSource",
    "Hypothesis",
    "Link",
    "PolicyDecision",
    "Signals",
    "Started",
    "Step",
    "StopReason",
    "Unit",
    "Usage",
    "WordAlignment",
]
