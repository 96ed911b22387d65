"""The options of a `follow` call, and the messages of a follow stream built from them.

The client refuses what needs no server to judge. The server checks everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from sidelight.v1 import attribution_service_pb2 as service_pb

from .. import converters
from ..errors import field_errors, invalid_argument
from ..parameters import AlignAtt, Capture, Decoding, OffsetUnit, Score, Source, SpecialTokensInText
from ..request import fill_common, validate_timeout
from ..validation import check_fields, check_options, check_value


class FollowOptions(TypedDict, total=False):
    """The keyword arguments of `follow`. All are optional. The client refuses values of other types.

    - policy: When the target may go on before the source is complete. Each step then has a decision.
    - decoding: The server writes the target, by greedy search, as far as `policy` allows. Without it, the caller does.
    - capture, scores, score_top_p, prefix, model, source_language, target_language, special_tokens_in_text,
      add_special_tokens, offset_unit, request_id: As in `AttributeOptions`.
    - timeout: Seconds for the whole stream. Without it, there is no limit but the server's own.
    """

    policy: AlignAtt | None
    decoding: Decoding | None
    capture: Capture | None
    scores: Sequence[Score]
    score_top_p: float | None
    prefix: str | Sequence[int] | None
    model: str
    source_language: str
    target_language: str
    special_tokens_in_text: SpecialTokensInText
    add_special_tokens: bool | None
    offset_unit: OffsetUnit
    request_id: str
    timeout: float | None


def build_follow_start(options: FollowOptions) -> service_pb.FollowRequest:
    """Builds the first message of a stream.

    Raises:
        InvalidArgumentError: An option is unknown, a value is not of its option's type, or a number is out of range.
    """
    check_options(options, FollowOptions, "option of follow")
    validate_timeout(options.get("timeout"))
    request = service_pb.FollowRequest()
    request.start.SetInParent()
    start = request.start
    fill_common(start, options)
    if (policy := options.get("policy")) is not None:
        start.policy.align_att.CopyFrom(_build_align_att(policy))
    return request


def build_source(source: Source) -> service_pb.FollowRequest:
    """Builds the message that adds to the source. Raises InvalidArgumentError."""
    return service_pb.FollowRequest(source=converters.build_text(source, "source"))


def build_source_done() -> service_pb.FollowRequest:
    """Builds the message that completes the source."""
    return service_pb.FollowRequest(source_done=service_pb.SourceDone())


def build_target(target: str | Sequence[int]) -> service_pb.FollowRequest:
    """Builds the message that adds to the target. Raises InvalidArgumentError."""
    return service_pb.FollowRequest(target=converters.build_text(target, "target"))


def build_flush() -> service_pb.FollowRequest:
    """Builds the message that completes the last word of the target."""
    return service_pb.FollowRequest(flush=service_pb.Flush())


def build_take_back(count: int) -> service_pb.FollowRequest:
    """Builds the message that removes tokens from the end of the target. Raises InvalidArgumentError."""
    check_value(count, int, "take_back")
    with field_errors("take_back"):
        return service_pb.FollowRequest(take_back=count)


def _build_align_att(policy: AlignAtt) -> service_pb.AlignAtt:
    check_fields(policy, "policy")
    if (policy.tokens is None) == (policy.words is None):
        raise invalid_argument("policy", "needs either tokens or words")
    message = service_pb.AlignAtt()
    for name in ("tokens", "words"):
        if (count := getattr(policy, name)) is not None:
            with field_errors(f"policy.{name}"):
                setattr(message, name, count)
    capture = converters.build_capture(Capture(heads=policy.heads, layers=policy.layers, row=policy.row))
    message.row = capture.row
    if capture.HasField("heads"):
        message.heads.CopyFrom(capture.heads)
    return message
