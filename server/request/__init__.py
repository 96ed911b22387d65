"""A request, and the outputs that answer it: plain data, without protobuf.

request    Request: what a validated request asks for
targets    its target: written by the model, or given
outputs    Started, Step, Finished and the other outputs, in the order in which they come
"""

from .outputs import (
    AwaitingSource,
    EncoderSelf,
    EncoderStates,
    Finished,
    Hypothesis,
    Output,
    Started,
    Step,
    StepCount,
    StopReason,
    TextSpan,
    Unit,
)
from .request import (
    CONTRAST_SCORES,
    MAX_PART_BYTES,
    OBSERVERS,
    Contrast,
    ContrastScore,
    Observer,
    Request,
    Score,
    SourceFeatures,
    UnitPlan,
)
from .targets import (
    BeamParams,
    DecodingParams,
    EarlyStopping,
    EncodedTarget,
    FollowedTarget,
    GivenTarget,
)

__all__ = [
    "CONTRAST_SCORES",
    "MAX_PART_BYTES",
    "OBSERVERS",
    "AwaitingSource",
    "BeamParams",
    "Contrast",
    "ContrastScore",
    "DecodingParams",
    "EarlyStopping",
    "EncodedTarget",
    "EncoderSelf",
    "EncoderStates",
    "Finished",
    "FollowedTarget",
    "GivenTarget",
    "Hypothesis",
    "Observer",
    "Output",
    "Request",
    "Score",
    "SourceFeatures",
    "Started",
    "Step",
    "StepCount",
    "StopReason",
    "TextSpan",
    "Unit",
    "UnitPlan",
]
