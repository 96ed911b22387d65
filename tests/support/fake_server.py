"""A fake server for tests of the client: it speaks the contract on a real socket, but has no model."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from fake_many import answer_many
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from sidelight.v1 import attention_pb2, attribution_service_pb2, model_pb2, text_pb2
from sidelight.v1.attribution_service_pb2_grpc import (
    AttributionServiceServicer,
)

LAYERS, HEADS = 2, 3
CROSS = attention_pb2.ATTENTION_KIND_CROSS
DECODER_SELF = attention_pb2.ATTENTION_KIND_DECODER_SELF
ENCODER_SELF = attention_pb2.ATTENTION_KIND_ENCODER_SELF


def make_tokens(text: str, end: str = "</s>") -> list[text_pb2.Token]:
    """Makes a token for each word. Bars separate the pieces of a word, as in "zu|hör|en"."""
    tokens: list[text_pb2.Token] = []
    begin = 0
    for word in text.split():
        for number, part in enumerate(word.split("|")):
            piece = part if number else f"▁{part}"
            tokens.append(
                text_pb2.Token(id=3 + len(tokens), piece=piece, begin=begin, end=begin + len(part), text=part)
            )
            begin += len(part)
        begin += 1
    if end:
        tokens.append(text_pb2.Token(id=0, piece=end, begin=begin, end=begin, special=True))
    return tokens


def random_rows(name: str, *shape: int) -> np.ndarray:
    """Makes random distributions over the first axis. The same name gives the same numbers."""
    raw = np.random.default_rng(zlib.crc32(name.encode())).exponential(size=shape)
    return (raw / raw.sum(0)).astype(np.float32)


def build_attention(
    values: np.ndarray, capture: attention_pb2.Capture | None = None, axis: int = 0
) -> attention_pb2.Attention:
    """Builds an Attention message in the encoding that a capture asks for. `axis` is the axis of positions."""
    capture = capture or attention_pb2.Capture()
    message = attention_pb2.Attention(encoding=capture.encoding or attention_pb2.ENCODING_FLOAT32)
    if capture.top_k:
        positions = np.argsort(-values, axis=axis, kind="stable").take(
            np.arange(min(capture.top_k, values.shape[axis])), axis=axis
        )
        values = np.take_along_axis(values, positions, axis)
        message.positions = positions.astype("<u4").tobytes()
    if message.encoding == attention_pb2.ENCODING_UINT8:
        scales = values.max(axis, keepdims=True) / 255
        message.scales = scales.astype("<f4").tobytes()
        message.values = np.rint(values / scales).astype("u1").tobytes()
    else:
        half = message.encoding == attention_pb2.ENCODING_FLOAT16
        message.values = values.astype("<f2" if half else "<f4").tobytes()
    message.shape.extend(values.shape)
    return message


@dataclass
class ExpectedAnswer:
    """What the fake server answers for a text. The arrays are shaped as in `Attribution`."""

    source: list[text_pb2.Token]
    target: list[text_pb2.Token]
    cross: np.ndarray
    decoder_self: np.ndarray
    encoder_self: np.ndarray
    probability: np.ndarray


def expected_answer(source: str, target: str = "", *, decoder_only: bool = False) -> ExpectedAnswer:
    """Builds the whole answer for a text. Without a given target, the target is each word backwards."""
    source_tokens = make_tokens(source, "" if decoder_only else "</s>")
    target_tokens = make_tokens(target or " ".join(word[::-1] for word in source.replace("|", "").split()))
    before = len(source_tokens) if decoder_only else 1
    seen = np.full((before + len(target_tokens), len(target_tokens), LAYERS, HEADS), np.nan, np.float32)
    for step in range(len(target_tokens)):
        seen[: before + step, step] = random_rows(f"self {source} {step}", before + step, LAYERS, HEADS)
    return ExpectedAnswer(
        source_tokens,
        target_tokens,
        random_rows(f"cross {source}", len(source_tokens), len(target_tokens), LAYERS, HEADS),
        seen,
        random_rows(f"encoder {source}", len(source_tokens), len(source_tokens), LAYERS, HEADS).swapaxes(0, 1),
        np.linspace(0.9, 0.4, len(target_tokens), dtype=np.float32),
    )


@dataclass
class FakeServer(AttributionServiceServicer):
    """Answers with `expected_answer`, unless the first word of the source asks for a fault.

    The request fails for the words of `abort_if_asked`. The stream stops until it is cancelled for "hang", ends early
    for "cut", has bytes that do not fill their shape for "broken", and a position out of range for "nowhere".
    """

    address: str = ""
    text: str = ""  # the text of all targets, instead of the text of their tokens
    names: list[str] = field(default_factory=lambda: ["reverser", "teller"])
    requests: list[attribution_service_pb2.AttributeRequest] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    running: int = 0
    most_running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def Attribute(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.requests.append(request)
        with self.lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        is_running = True
        try:
            for response in self._answer(request, context):
                if response.HasField("finished"):  # a client may send its next request as soon as it has this
                    is_running = False
                    self._leave()
                yield response
        finally:
            if is_running:
                self._leave()

    def AttributeMany(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        return answer_many(self.Attribute, requests, context)

    def _leave(self) -> None:
        with self.lock:
            self.running -= 1

    def _answer(self, request: Any, context: Any) -> Iterator[Any]:
        text = request.source.text or " ".join(str(number) for number in request.source.token_ids.ids)
        fault = text.split()[0] if text else ""
        abort_if_asked(request, context, fault, text)
        is_decoder_only = request.model == "teller"
        answer = expected_answer(text, request.given.text, decoder_only=is_decoder_only)
        capture = request.capture
        kinds = list(capture.kinds) or [DECODER_SELF if is_decoder_only else CROSS]
        if capture.none:
            kinds = []
        # This stands before the first response: a call that is cancelled by then goes no further.
        if fault == "hang" and not context.add_callback(self.cancelled.set):
            self.cancelled.set()
        yield build_started(request, text, answer, kinds, is_decoder_only)
        if ENCODER_SELF in kinds:  # in two parts, as for a long source
            for first, part in ((0, answer.encoder_self[:1]), (1, answer.encoder_self[1:])):
                attention = build_attention(part, capture, 1)
                message = attribution_service_pb2.EncoderSelf(first_query=first, attention=attention)
                yield attribution_service_pb2.AttributeResponse(encoder_self=message)
        steps = build_steps(request, answer, kinds, len(answer.source) if is_decoder_only else 1)
        if fault == "broken":
            steps[1].cross.values = b"odd"
        if fault == "nowhere":
            steps[1].cross.positions = (4_000_000_000).to_bytes(4, "little") + steps[1].cross.positions[4:]
        # One response with the first step, and one with all others: clients must read both.
        for part in (steps[:1], steps[1:]):
            yield attribution_service_pb2.AttributeResponse(steps=attribution_service_pb2.Steps(steps=part))
            if fault == "hang":
                self.cancelled.wait(30)
        if fault != "cut":
            yield build_finished(request, answer, self.text)

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name not in ("", "reverser", "teller"):
            abort(context, grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL", [("name", "is not loaded")], "")
        return attribution_service_pb2.GetModelResponse(model=build_model(request.name or "reverser"))

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        index = int(request.page_token or 0)
        next_page_token = str(index + 1) if index + 1 < len(self.names) else ""
        models = [build_model(self.names[index])]
        return attribution_service_pb2.ListModelsResponse(models=models, next_page_token=next_page_token)


def abort_if_asked(request: Any, context: Any, fault: str, text: str) -> None:
    """Fails the request if `fault`, the first word of its source, asks for it."""
    if fault == "fail":
        violations = [("capture.kinds", "is odd"), ("source", "is dull"), ("source", "is long")]
        abort(context, grpc.StatusCode.INVALID_ARGUMENT, "ODD", violations, request.request_id)
    if fault in ("wrong", "dear", "gone"):
        field = {"wrong": "source.text", "dear": "decoding.max_new_tokens", "gone": "name"}[fault]
        code = grpc.StatusCode.NOT_FOUND if fault == "gone" else grpc.StatusCode.INVALID_ARGUMENT
        reason = f"{field}: is wrong{text.removeprefix(fault).removesuffix(' now')}"
        abort(context, code, reason, [(field, "is wrong")], request.request_id)
    if fault == "great":
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max")
    if fault == "late":
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    if fault == "crash":
        context.abort(grpc.StatusCode.INTERNAL, "internal error")
    if fault == "busy":
        abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", [], request.request_id, 1.5)


def build_steps(request: Any, answer: ExpectedAnswer, kinds: list[Any], first_position: int) -> list[Any]:
    """Builds the steps that the request asks for. `first_position` is how many positions the first step has seen."""
    steps: list[Any] = []
    for index, token in enumerate(answer.target):
        step = attribution_service_pb2.Step(index=index, token=token, text=token.text)
        if CROSS in kinds:
            step.cross.CopyFrom(build_attention(answer.cross[:, index], request.capture))
        if DECODER_SELF in kinds:
            row = answer.decoder_self[: first_position + index, index]
            step.decoder_self.CopyFrom(build_attention(row, request.capture))
        step.scores.extend([answer.probability[index]] * len(request.scores))
        if index >= request.resume_at:
            steps.append(step)
    return steps


def build_started(request: Any, text: str, answer: ExpectedAnswer, kinds: list[Any], decoder_only: bool) -> Any:
    layouts = [
        attention_pb2.AttentionLayout(
            kind=kind,
            axes=[attention_pb2.AXIS_LAYER, attention_pb2.AXIS_HEAD],
            layers=range(LAYERS),
            head_count=HEADS,
        )
        for kind in kinds
    ]
    architectures = (model_pb2.ARCHITECTURE_ENCODER_DECODER, model_pb2.ARCHITECTURE_DECODER_ONLY)
    message = attribution_service_pb2.Started(
        request_id=request.request_id or "made-here",
        model=request.model or "reverser",
        source_text=text.replace("|", ""),
        source=answer.source,
        prefix=[] if decoder_only else [text_pb2.Token(id=9, piece="<pad>", special=True)],
        layouts=layouts,
        scores=request.scores,
        architecture=architectures[decoder_only],
    )
    message.capture.row = attention_pb2.ROW_PREDICTING
    message.capture.top_k = request.capture.top_k
    return attribution_service_pb2.AttributeResponse(started=message)


def build_finished(request: Any, answer: ExpectedAnswer, text: str = "") -> Any:
    reason = text_pb2.STOP_REASON_GIVEN if request.HasField("given") else text_pb2.STOP_REASON_END_TOKEN
    message = attribution_service_pb2.Finished(
        text=text or " ".join(token.text for token in answer.target if not token.special),
        stop_reason=reason,
        usage=attribution_service_pb2.Usage(
            source_tokens=len(answer.source), target_tokens=len(answer.target), total_time=Duration(nanos=250_000_000)
        ),
    )
    return attribution_service_pb2.AttributeResponse(finished=message)


def build_model(name: str) -> Any:
    decoder_only = name == "teller"
    kinds = [DECODER_SELF] if decoder_only else [CROSS, DECODER_SELF, ENCODER_SELF]
    return model_pb2.Model(
        name=name,
        family="fake",
        architecture=model_pb2.ARCHITECTURE_DECODER_ONLY if decoder_only else model_pb2.ARCHITECTURE_ENCODER_DECODER,
        attentions=[model_pb2.ModelAttention(kind=kind, layers=LAYERS, heads=HEADS) for kind in kinds],
        dtype="float32",
        device="cpu",
        default=not decoder_only,
    )


def abort(
    context: Any,
    code: grpc.StatusCode,
    reason: str,
    violations: list[tuple[str, str]],
    request_id: str,
    retry_after: float | None = None,
) -> None:
    """Fails a request as the contract says: with google.rpc details."""
    fields = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in violations]
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="sidelight")]
    if fields:
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    if retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(round(retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    message = reason if ":" in reason else f"{reason.lower()} request"
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    context.abort_with_status(rpc_status.to_status(status))
