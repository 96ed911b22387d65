"""A server that says what tests want to hear: the contract on a real socket, without a model."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from sidelight.v1 import attention_pb2, attribution_service_pb2, model_pb2, text_pb2
from sidelight.v1.attribution_service_pb2_grpc import (
    AttributionServiceServicer,
    add_AttributionServiceServicer_to_server,
)

LAYERS, HEADS = 2, 3
CROSS = attention_pb2.ATTENTION_KIND_CROSS
DECODER_SELF = attention_pb2.ATTENTION_KIND_DECODER_SELF
ENCODER_SELF = attention_pb2.ATTENTION_KIND_ENCODER_SELF


def tokens(text: str, end: str = "</s>") -> list[text_pb2.Token]:
    """A token for each word; pieces of one word stand with a bar between them, as in "zu|hör|en"."""
    made: list[text_pb2.Token] = []
    place = 0
    for word in text.split():
        for number, part in enumerate(word.split("|")):
            piece = part if number else f"▁{part}"
            made.append(text_pb2.Token(id=3 + len(made), piece=piece, begin=place, end=place + len(part), text=part))
            place += len(part)
        place += 1
    if end:
        made.append(text_pb2.Token(id=0, piece=end, begin=place, end=place, special=True))
    return made


def shares(name: str, *shape: int) -> np.ndarray:
    """Distributions over the first axis, the same for the same name."""
    raw = np.random.default_rng(zlib.crc32(name.encode())).exponential(size=shape)
    return (raw / raw.sum(0)).astype(np.float32)


def attention(
    values: np.ndarray, capture: attention_pb2.Capture | None = None, axis: int = 0
) -> attention_pb2.Attention:
    """FloatArray as they travel: float32, or as a capture asks for. The axis is that of positions."""
    capture = capture or attention_pb2.Capture()
    message = attention_pb2.Attention(encoding=capture.encoding or attention_pb2.ENCODING_FLOAT32)
    if capture.top_k:
        kept = np.argsort(-values, axis=axis, kind="stable").take(
            np.arange(min(capture.top_k, values.shape[axis])), axis=axis
        )
        values = np.take_along_axis(values, kept, axis)
        message.positions = kept.astype("<u4").tobytes()
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
class Truth:
    """What the fake answers a text with; arrays as `Attribution` has them."""

    source: list[text_pb2.Token]
    target: list[text_pb2.Token]
    cross: np.ndarray
    decoder_self: np.ndarray
    encoder_self: np.ndarray
    probability: np.ndarray


def truth(source: str, target: str = "", *, decoder_only: bool = False) -> Truth:
    """The whole answer to a text. Without a target, each word backwards."""
    read = tokens(source, "" if decoder_only else "</s>")
    written = tokens(target or " ".join(word[::-1] for word in source.replace("|", "").split()))
    before = len(read) if decoder_only else 1
    seen = np.full((before + len(written), len(written), LAYERS, HEADS), np.nan, np.float32)
    for step in range(len(written)):
        seen[: before + step, step] = shares(f"self {source} {step}", before + step, LAYERS, HEADS)
    return Truth(
        read,
        written,
        shares(f"cross {source}", len(read), len(written), LAYERS, HEADS),
        seen,
        shares(f"encoder {source}", len(read), len(read), LAYERS, HEADS).swapaxes(0, 1),
        np.linspace(0.9, 0.4, len(written), dtype=np.float32),
    )


@dataclass
class FakeServer(AttributionServiceServicer):
    """Answers with `truth`. A source's first word may ask for trouble: "fail", "hang", "cut", "broken",
    "nowhere", "busy", "wrong", "dear", "gone", "great", "late", "crash"."""

    address: str = ""
    text: str = ""  # what a target's text is, in place of its tokens' texts
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
                if response.HasField("finished"):  # with which a client may send its next request
                    is_running = False
                    self._leave()
                yield response
        finally:
            if is_running:
                self._leave()

    def _leave(self) -> None:
        with self.lock:
            self.running -= 1

    def _answer(self, request: Any, context: Any) -> Iterator[Any]:
        text = request.source.text or " ".join(str(number) for number in request.source.token_ids.ids)
        trouble = text.split()[0] if text else ""
        if trouble == "fail":
            violations = [("capture.kinds", "is odd"), ("source", "is dull"), ("source", "is long")]
            abort(context, grpc.StatusCode.INVALID_ARGUMENT, "ODD", violations, request.request_id)
        if trouble in ("wrong", "dear", "gone"):
            field = {"wrong": "source.text", "dear": "decoding.max_new_tokens", "gone": "name"}[trouble]
            code = grpc.StatusCode.NOT_FOUND if trouble == "gone" else grpc.StatusCode.INVALID_ARGUMENT
            said = f"{field}: is wrong{text.removeprefix(trouble).removesuffix(' now')}"
            abort(context, code, said, [(field, "is wrong")], request.request_id)
        if trouble == "great":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max")
        if trouble == "late":
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        if trouble == "crash":
            context.abort(grpc.StatusCode.INTERNAL, "internal error")
        if trouble == "busy":
            abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", [], request.request_id, 1.5)
        decoder_only = request.model == "teller"
        answer = truth(text, request.given.text, decoder_only=decoder_only)
        capture = request.capture
        kinds = list(capture.kinds) or [DECODER_SELF if decoder_only else CROSS]
        if capture.none:
            kinds = []
        # Before anything is sent: a call that is cancelled then gets no further here.
        if trouble == "hang" and not context.add_callback(self.cancelled.set):
            self.cancelled.set()
        yield started(request, text, answer, kinds, decoder_only)
        if ENCODER_SELF in kinds:  # in two parts, as for a long source
            for first, part in ((0, answer.encoder_self[:1]), (1, answer.encoder_self[1:])):
                message = attribution_service_pb2.EncoderSelf(first_query=first, attention=attention(part, capture, 1))
                yield attribution_service_pb2.AttributeResponse(encoder_self=message)
        steps: list[Any] = []
        for index, token in enumerate(answer.target):
            step = attribution_service_pb2.Step(index=index, token=token, text=token.text)
            if CROSS in kinds:
                step.cross.CopyFrom(attention(answer.cross[:, index], capture))
            if DECODER_SELF in kinds:
                seen = (len(answer.source) if decoder_only else 1) + index
                step.decoder_self.CopyFrom(attention(answer.decoder_self[:seen, index], capture))
            step.scores.extend([answer.probability[index]] * len(request.scores))
            if index >= request.resume_at:
                steps.append(step)
        if trouble == "broken":
            steps[1].cross.values = b"odd"
        if trouble == "nowhere":
            steps[1].cross.positions = (4_000_000_000).to_bytes(4, "little") + steps[1].cross.positions[4:]
        # The first alone, the rest together: both must do.
        for part in (steps[:1], steps[1:]):
            yield attribution_service_pb2.AttributeResponse(steps=attribution_service_pb2.Steps(steps=part))
            if trouble == "hang":
                self.cancelled.wait(30)
        if trouble != "cut":
            yield finished(request, answer, self.text)

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name not in ("", "reverser", "teller"):
            abort(context, grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL", [("name", "is not loaded")], "")
        return attribution_service_pb2.GetModelResponse(model=model(request.name or "reverser"))

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        place = int(request.page_token or 0)
        following = str(place + 1) if place + 1 < len(self.names) else ""
        return attribution_service_pb2.ListModelsResponse(models=[model(self.names[place])], next_page_token=following)


def started(request: Any, text: str, answer: Truth, kinds: list[Any], decoder_only: bool) -> Any:
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


def finished(request: Any, answer: Truth, text: str = "") -> Any:
    reason = text_pb2.STOP_REASON_GIVEN if request.HasField("given") else text_pb2.STOP_REASON_END_TOKEN
    message = attribution_service_pb2.Finished(
        text=text or " ".join(token.text for token in answer.target if not token.special),
        stop_reason=reason,
        usage=attribution_service_pb2.Usage(
            source_tokens=len(answer.source), target_tokens=len(answer.target), total_time=Duration(nanos=250_000_000)
        ),
    )
    return attribution_service_pb2.AttributeResponse(finished=message)


def model(name: str) -> Any:
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
    """Fails as the contract says: with google.rpc details."""
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


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A fake server of this test's own; see `FakeServer` and the fixture `truth_of`."""
    servicer = FakeServer()
    with ThreadPoolExecutor(16) as pool:
        server = grpc.server(pool)
        add_AttributionServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        servicer.address = f"127.0.0.1:{port}"
        server.start()
        try:
            yield servicer
        finally:
            servicer.cancelled.set()
            server.stop(0).wait()


@pytest.fixture
def truth_of() -> Any:
    """`truth`, for tests: they cannot import this file."""
    return truth
