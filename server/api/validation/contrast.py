"""A Contrast message becomes a Contrast: the request in a second context, and what is compared. Raises RequestError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from sidelight.v1 import attention_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from ...capture import AttentionKind, CapturePlan, minuend_plan
from ...errors import ErrorCode, RequestError, invalid
from ...models import ModelInfo
from ...request import CONTRAST_SCORES, Contrast, GivenTarget, Request
from ...text import Languages, TextOptions
from .capture import check_size
from .decoding import validate_probability
from .texts import validate_features, validate_given, validate_prefix, validate_source

_CONTEXT_FIELDS = ("source", "prefix", "given")

# With a given target, each context is read in one pass: the mask of a pass grows with the square of its tokens. The
# logits of both contexts are in memory together.
MAX_PASS_TOKENS = 8192
MAX_LOGITS_BYTES = 1024**3


def validate_contrast(
    message: service_pb.AttributeRequest,
    loaded: ModelInfo,
    languages: Languages,
    options: TextOptions,
    request: Request,
    max_positions: Mapping[AttentionKind, int],
) -> Contrast | None:
    """Returns the second context of a request; None if there is none. Raises RequestError.

    `request` is what the rest of the message asks for; `max_positions` is as `validate_capture` has it.
    """
    if not message.HasField("contrast"):
        if CONTRAST_SCORES.intersection(request.scores):
            raise invalid("contrast", "REQUIRED", "is needed by the contrast scores")
        return None
    contrast = message.contrast
    if not any(contrast.HasField(field) for field in _CONTEXT_FIELDS):
        raise invalid("contrast", "REQUIRED", "one of source, prefix and given must be set")
    if not (contrast.subtract_attention or CONTRAST_SCORES.intersection(request.scores)):
        raise invalid("contrast", "CONTRADICTION", "needs a contrast score or subtract_attention: nothing else uses it")
    _check_contradictions(message, request)
    kl_top_p = validate_probability(contrast, "kl_top_p", "contrast.kl_top_p", 1.0)
    if contrast.kl_top_k > loaded.vocabulary_size:
        problem = f"is more than the vocabulary has tokens, {loaded.vocabulary_size:,}"
        raise invalid("contrast.kl_top_k", "OUT_OF_RANGE", problem)
    other = _validate_context(message, loaded, languages, options, request)
    _check_passes((request, other), loaded)
    steps = _validate_alignments(contrast, request, other)
    if contrast.subtract_attention:
        plan = minuend_plan(request.capture)
        _check_positions(plan, request, other, loaded)
        assert isinstance(request.target, GivenTarget)
        num_steps, num_positions = len(request.target.text.tokens), max_positions["encoder_self"]
        check_size(plan, loaded.limits, max_positions, num_steps, num_positions, num_contexts=2)
        other = replace(other, capture=plan)
    return Contrast(other, steps, contrast.subtract_attention, kl_top_p, contrast.kl_top_k)


def _check_contradictions(message: service_pb.AttributeRequest, request: Request) -> None:
    contrast = message.contrast
    is_given = isinstance(request.target, GivenTarget)
    if contrast.HasField("given") and not is_given:
        raise invalid("contrast.given", "CONTRADICTION", "goes with a given target: a target that is decoded has none")
    if "kl_divergence" not in request.scores and (contrast.HasField("kl_top_p") or contrast.kl_top_k):
        field = "kl_top_p" if contrast.HasField("kl_top_p") else "kl_top_k"
        raise invalid(f"contrast.{field}", "CONTRADICTION", "goes with SCORE_KL_DIVERGENCE: no other score uses it")
    if contrast.alignments and not contrast.HasField("given"):
        raise invalid("contrast.alignments", "CONTRADICTION", "goes with contrast.given")
    if not contrast.subtract_attention:
        return
    field = "contrast.subtract_attention"
    if not is_given:
        raise invalid(field, "CONTRADICTION", "goes with a given target, whose steps are known in both contexts")
    if not request.capture.kinds:
        raise invalid(field, "CONTRADICTION", "the capture asks for no attention")
    if contrast.alignments:
        raise invalid("contrast.alignments", "CONTRADICTION", "goes without subtract_attention: rows of other steps")
    if message.capture.encoding == attention_pb2.ENCODING_UINT8:
        raise invalid("capture.encoding", "CONTRADICTION", "bytes hold no negative numbers, which differences may be")


def _validate_context(
    message: service_pb.AttributeRequest,
    loaded: ModelInfo,
    languages: Languages,
    options: TextOptions,
    request: Request,
) -> Request:
    """The request in the second context, which captures nothing. What the contrast leaves unset is as in the request.

    The texts are read as if they stood in the request's own fields. They are never truncated.
    """
    contrast = message.contrast
    context = service_pb.AttributeRequest()
    context.CopyFrom(message)
    context.ClearField("target")
    source, target, prompt_ids = request.source, request.target, request.decoder_prompt_ids
    features = request.features
    with _in_contrast():
        if contrast.HasField("source"):
            context.source.CopyFrom(contrast.source)
            source = validate_source(context, loaded, languages, options)
            features = validate_features(context.source, loaded)
        if contrast.HasField("prefix"):
            context.prefix.CopyFrom(contrast.prefix)
            prefix_ids, _ = validate_prefix(context, loaded, languages, source, options)
            prompt_ids = (*loaded.tokenizer.start_ids(languages), *prefix_ids)
        num_before = len(prompt_ids) + (0 if loaded.is_encoder_decoder else len(source.tokens))
        room = loaded.max_target_tokens - num_before
        if contrast.HasField("given") and room > 0:
            context.given.CopyFrom(contrast.given)
            target = validate_given(context, loaded, languages, source, options, room)
        num_steps = len(target.text.tokens) if isinstance(target, GivenTarget) else target.max_new_tokens
        if num_steps > room:
            field = next(field for field in ("prefix", "source", "given") if contrast.HasField(field))
            problem = f"leaves room for {max(0, room):,} tokens of the target, which may have {num_steps:,}"
            raise invalid(field, "TEXT_TOO_LONG", problem)
    return replace(
        request,
        source=source,
        decoder_prompt_ids=prompt_ids,
        target=target,
        capture=CapturePlan(kinds=(), layers={}),
        scores=(),
        prefix=None,
        features=features,
    )


@contextmanager
def _in_contrast() -> Iterator[None]:
    """A context in which errors name fields of the contrast."""
    try:
        yield
    except RequestError as error:
        raise replace(error, field=f"contrast.{error.field}") from error


def _check_passes(contexts: tuple[Request, Request], loaded: ModelInfo) -> None:
    """Refuses given targets that are too long to be read at once in both contexts."""
    num_logits = 0
    for context in contexts:
        if not isinstance(context.target, GivenTarget):
            return
        num_steps = len(context.target.text.tokens)
        num_source = 0 if loaded.is_encoder_decoder else len(context.source.tokens)
        num_tokens = num_source + len(context.decoder_prompt_ids) + num_steps
        if num_tokens > MAX_PASS_TOKENS:
            raise _too_large(f"a context has {num_tokens:,} tokens; at most {MAX_PASS_TOKENS:,} are read at once")
        num_logits += num_steps * loaded.vocabulary_size
    if (num_bytes := 4 * num_logits) > MAX_LOGITS_BYTES:
        problem = f"the logits of both targets take {num_bytes / 1024**2:,.0f} MiB, more than"
        raise _too_large(f"{problem} {MAX_LOGITS_BYTES // 1024**2:,}: give shorter targets")


def _too_large(problem: str) -> RequestError:
    return RequestError(ErrorCode.RESOURCE_EXHAUSTED, "CONTRAST_TOO_LARGE", problem, "contrast")


def _validate_alignments(contrast: service_pb.Contrast, request: Request, other: Request) -> tuple[int, ...] | None:
    """The step of the contrast target for each step of the target; None: the step of the same number."""
    if not contrast.HasField("given"):
        return None
    assert isinstance(request.target, GivenTarget)
    assert isinstance(other.target, GivenTarget)
    count, other_count = len(request.target.text.tokens), len(other.target.text.tokens)
    if not contrast.alignments:
        if count != other_count:
            problem = f"has {other_count:,} tokens and the target {count:,}: alignments must say which are compared"
            raise invalid("contrast.given", "DIFFERENT_LENGTH", problem)
        return None
    # As in Inseq, steps without a pair are counted from the ends of both targets.
    steps = [step if step >= 0 else other_count - 1 for step in range(other_count - count, other_count)]
    last = -1
    for index, pair in enumerate(contrast.alignments):
        path = f"contrast.alignments[{index}]"
        for name, value, limit in (("target", pair.target, count), ("contrast", pair.contrast, other_count)):
            if value >= limit:
                raise invalid(f"{path}.{name}", "OUT_OF_RANGE", f"{value} is out of range: steps are 0 to {limit - 1}")
        if pair.target <= last:
            raise invalid(f"{path}.target", "OUT_OF_ORDER", "must be greater than in the pair before")
        last = pair.target
        steps[last] = pair.contrast
    return tuple(steps)


def _check_positions(plan: CapturePlan, request: Request, other: Request, loaded: ModelInfo) -> None:
    """Refuses contexts whose rows have different positions."""
    lengths = [("source", request.source_length, other.source_length)]
    if "decoder_self" in plan.kinds:
        lengths.append(("prefix", len(request.decoder_prompt_ids), len(other.decoder_prompt_ids)))
        if plan.kinds == ("decoder_self",) and loaded.is_encoder_decoder:
            del lengths[0]
    for field, ours, theirs in lengths:
        if ours != theirs:
            problem = f"gives {theirs:,} positions and the request has {ours:,}: only equal numbers can be subtracted"
            raise invalid(f"contrast.{field}", "DIFFERENT_LENGTH", problem)
