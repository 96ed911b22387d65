"""The first message of a follow stream: all that can be checked before the source is known. Raises RequestError.

A person may speak the source, minutes later: until then a client would not learn of its mistake.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from sidelight.v1 import attention_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from ...alignment import PRESET_NAME
from ...capture import AttentionKind, CapturePlan
from ...errors import RequestError, invalid
from ...models import ModelInfo
from ...request import CONTRAST_SCORES
from ...text import TokenizedText
from ..enums import ATTENTION_KINDS, GROUPINGS, SCORES, number_of
from .capture import validate_capture
from .decoding import validate_decoding
from .request import validate_offset_unit, validate_score_top_p, validate_scores
from .texts import find_room, validate_languages, validate_prefix, validate_text_options
from .units import check_units

# Fields that FollowStart has in common with AttributeRequest, apart from the texts.
_COMMON = (
    "request_id",
    "model",
    "source_language",
    "target_language",
    "scores",
    "score_top_p",
    "offset_unit",
    "special_tokens_in_text",
    "add_special_tokens",
)
_FIELDS = frozenset(service_pb.FollowStart.DESCRIPTOR.fields_by_name)

# A source has at least one position. What is too large with one position is too large with any source.
_LEAST_POSITIONS: Mapping[AttentionKind, int] = {"cross": 1, "encoder_self": 1, "decoder_self": 1}


@contextmanager
def paths_in_start() -> Generator[None, None, None]:
    """Makes the path of a field of AttributeRequest the path of the same field of FollowStart."""
    try:
        yield
    except RequestError as error:
        root = error.field.partition(".")[0].partition("[")[0]
        if root in _FIELDS:
            error.field = f"start.{error.field}"
        raise


def options_message(start: service_pb.FollowStart) -> service_pb.AttributeRequest:
    """Returns the options of a stream as a message for one text, without a source."""
    message = service_pb.AttributeRequest()
    values = {field.name: value for field, value in start.ListFields()}
    for name in _COMMON:
        if name in values:
            if name == "scores":
                message.scores.extend(start.scores)
            else:
                setattr(message, name, values[name])
    for name in ("capture", "prefix", "decoding"):
        if start.HasField(name):
            getattr(message, name).CopyFrom(getattr(start, name))
    if start.HasField("decoding"):
        message.decoding.greedy.SetInParent()
    return message


def check_start(start: service_pb.FollowStart, loaded: ModelInfo) -> None:
    """Checks the options of a stream. Raises RequestError for what is wrong whatever the source is."""
    _check_served(start)
    with paths_in_start():
        _check_options(options_message(start), loaded)
    if start.HasField("policy"):
        _check_policy(start.policy, loaded)


def policy_plan(
    policy: service_pb.AlignAtt, loaded: ModelInfo, num_positions: Mapping[AttentionKind, int]
) -> CapturePlan:
    """Returns the capture of the row that says where a step looks: the mean over the policy's heads."""
    capture = attention_pb2.Capture(
        row=policy.row,
        over_heads=attention_pb2.REDUCTION_MEAN,
        special_tokens=attention_pb2.SPECIAL_TOKENS_KEEP,  # the policy passes over them, whatever a preset says
    )
    kind: AttentionKind = "cross" if loaded.is_encoder_decoder else "decoder_self"
    capture.kinds.append(number_of(ATTENTION_KINDS, kind))
    if policy.HasField("heads"):
        capture.heads.CopyFrom(policy.heads)
    elif loaded.alignment is not None:
        capture.heads.preset = PRESET_NAME
    else:
        num_layers = loaded.attention_layers.num_layers(kind)
        capture.heads.layers.layers.extend(range(num_layers // 3, num_layers))
    if capture.heads.WhichOneof("selection") == "layers":
        capture.over_layers = attention_pb2.REDUCTION_MEAN
    try:
        return validate_capture(capture, loaded, num_positions, 1)
    except RequestError as error:
        error.field = error.field.replace("capture", "start.policy.align_att", 1)
        raise


def _check_served(start: service_pb.FollowStart) -> None:
    """Refuses what goes with whole texts, and not with a source or a target that grows."""
    has_units = start.capture.HasField("units")
    if has_units or GROUPINGS.get(start.capture.grouping, "token") != "token":
        problem = "goes with whole texts: while the source of a follow stream grows, its units change"
        raise invalid(f"start.capture.{'units' if has_units else 'grouping'}", "CONTRADICTION", problem)
    for index, score in enumerate(start.scores):
        if SCORES.get(score) in CONTRAST_SCORES:
            problem = "goes with whole texts: a follow stream has no second context"
            raise invalid(f"start.scores[{index}]", "CONTRADICTION", problem)
    if not start.HasField("decoding"):
        return
    strategy = start.decoding.WhichOneof("strategy")
    if strategy not in (None, "greedy"):
        problem = "a follow stream is written by greedy search: what was committed stays"
        raise invalid(f"start.decoding.{strategy}", "CONTRADICTION", problem)
    if not start.HasField("policy"):
        raise invalid("start.policy", "REQUIRED", "is needed with decoding: it says how far the target may go")


def _check_options(message: service_pb.AttributeRequest, loaded: ModelInfo) -> None:
    """Checks the options that a stream and a request for one text have in common."""
    validate_offset_unit(message)
    check_units(message)
    validate_scores(message)
    validate_score_top_p(message)
    validate_capture(message.capture, loaded, _LEAST_POSITIONS, 1)
    languages, options = validate_languages(message, loaded), validate_text_options(message, loaded)
    source = TokenizedText("", ())
    prefix_ids, _ = validate_prefix(message, loaded, languages, source, options)
    prompt_ids = [*loaded.tokenizer.start_ids(languages), *prefix_ids]
    room = find_room(message, loaded, source, prompt_ids, is_follow=True)
    if message.HasField("decoding"):
        validate_decoding(message.decoding, loaded, languages, len(prompt_ids), room)


def _check_policy(policy: service_pb.Policy, loaded: ModelInfo) -> None:
    if loaded.feature_shape is not None:
        raise invalid("start.policy", "CONTRADICTION", "goes with models that read texts: a recording has no tokens")
    if policy.WhichOneof("policy") is None:
        raise invalid("start.policy", "REQUIRED", "align_att must be set")
    held_back = policy.align_att.WhichOneof("held_back")
    if held_back is None:
        raise invalid("start.policy.align_att", "REQUIRED", "one of tokens and words must be set")
    if not getattr(policy.align_att, held_back):
        raise invalid(f"start.policy.align_att.{held_back}", "OUT_OF_RANGE", "must be at least 1")
    policy_plan(policy.align_att, loaded, _LEAST_POSITIONS)
