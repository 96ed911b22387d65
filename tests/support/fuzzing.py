"""Mutated requests for every RPC, in process or over a socket, and what their errors say.

In process, a mutant goes through the functions that parse and validate a request, without gRPC and without a model's
work. Over a socket, it goes to a real server.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import exchanges
import grpc
from drawn_requests import RequestDrawer
from error_details import find_problem
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from mutations import MessageMutator
from rpc_mix import draw_call
from sidelight.server.alignment import parse_markup
from sidelight.server.api import status
from sidelight.server.api.converters import model_message
from sidelight.server.api.parsing import parse
from sidelight.server.api.rpcs import aligner
from sidelight.server.api.validation import FollowValidator, request_id_of, validate_align, validate_request
from sidelight.server.errors import RequestError
from sidelight.server.models import LoadedModel
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import model_pb2

_OURS = "/sidelight.v1.AttributionService/"
# The message of each method.
REQUESTS: dict[str, type[Message]] = {
    **{
        f"{_OURS}{method.name}": getattr(pb, method.input_type.name)
        for method in pb.DESCRIPTOR.services_by_name["AttributionService"].methods
    },
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest,
    "/grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest,
}
# Seconds for a call over the socket. A mutant that is valid may run for long.
_DEADLINE = 2.0
# What a mutant that names one does to the server's other calls is another matter.
REFERENCE_ID = "the reference request"


class Fuzzer:
    """Mutants of valid requests, by method. A seed gives the same mutants again."""

    def __init__(self, loaded: LoadedModel, chance: random.Random) -> None:
        """`loaded` is the model that is served."""
        self._loaded = loaded
        self._chance = chance
        self._mutator = MessageMutator(chance)
        self._valid = _valid_requests(loaded)
        self._bytes = [message.SerializeToString() for messages in self._valid.values() for message in messages]

    def with_chance(self, chance: random.Random) -> Fuzzer:
        """Returns a fuzzer of the same requests that chooses by `chance`."""
        other = copy.copy(self)
        other._chance, other._mutator = chance, MessageMutator(chance)
        return other

    def draw(self) -> tuple[str, list[bytes]]:
        """Returns the path of a method and the messages of a call, of which one or all are mutants."""
        path = self._chance.choice(_WEIGHTED)
        messages = [self._chance.choice(self._valid[path])]
        if path.endswith("Follow"):
            messages = list(_follow_messages(self._chance))
        elif path.endswith("AttributeMany"):
            messages = self._chance.choices(self._valid[path], k=self._chance.randrange(1, 4))
        mutated = self._chance.randrange(len(messages))
        is_all = self._chance.random() < 0.2
        return path, [
            self._mutator.mutate(message, self._bytes) if is_all or number == mutated else message.SerializeToString()
            for number, message in enumerate(messages)
        ]

    def validate(self, path: str, messages: Sequence[bytes]) -> str:
        """Parses and validates a call's messages. Returns how it ended. Raises AssertionError for a bad error."""
        try:
            _validate(path, messages, self._loaded)
        except RequestError as error:
            code = grpc.StatusCode[error.code.name]
            problem = find_problem(code, str(error), status._details(error, "r"), messages)
            assert not problem, (problem, path, messages)
            return code.name
        return "OK"


def _validate(path: str, messages: Sequence[bytes], loaded: LoadedModel) -> None:
    """Does what the server does with the messages of a call before a model works. Raises RequestError."""
    cls = REQUESTS[path]
    parsed: list[Any] = [parse(cls, data) for data in messages]
    if cls is pb.FollowRequest:
        validator: FollowValidator | None = None
        for message in parsed:
            if validator is None:
                request_id_of(message.start)
                validator = FollowValidator(message.start, loaded, "r")
            else:
                validator.add(message)
    for message in parsed:
        if isinstance(message, pb.AttributeManyRequest):
            message = message.align if message.HasField("align") else message.attribute
        if isinstance(message, pb.AttributeRequest):
            request_id_of(message)
            validate_request(message, loaded, "r")
        elif isinstance(message, pb.AlignRequest):
            _validate_align(message)


def _validate_align(message: pb.AlignRequest) -> None:
    request_id_of(message)
    plan = validate_align(message)
    document = None if plan.markup is None else parse_markup(plan.source_text, plan.markup)
    segments = aligner._list_segments(plan, document)
    if plan.links is not None:
        aligner._place(document, [aligner._link_by_client(plan, segments[0])])


def call_server(channel: grpc.Channel, path: str, messages: Sequence[bytes]) -> str:
    """Sends a call to a server. Returns how it ended. Raises AssertionError for a bad error."""
    call = channel.stream_stream(path)(iter(messages), timeout=_DEADLINE)
    try:
        for response in call:
            if path.endswith("AttributeMany"):
                _check_texts(pb.AttributeManyResponse.FromString(response), messages)
    except grpc.RpcError as error:
        code, message = error.code(), error.details() or ""
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        problem = find_problem(code, message, details, messages)
        assert not problem, (problem, path, messages)
        return code.name
    return "OK"


def _check_texts(message: pb.AttributeManyResponse, sent: Sequence[bytes]) -> None:
    """Checks the errors of single texts."""
    for response in (message, *message.batch.responses):
        if response.HasField("error"):
            code = next(code for code in grpc.StatusCode if code.value[0] == response.error.code)
            problem = find_problem(code, str(response.error), b"", sent)
            assert not problem, (problem, sent)


def reference_answer(channel: grpc.Channel) -> list[bytes]:
    """What the server answers to one valid request, which no mutant may change."""
    message = pb.AttributeRequest(request_id=REFERENCE_ID)
    message.source.text = "My grandmother is still vigorous at 82 years old."
    message.capture.kinds.extend([1, 2])
    call = channel.unary_stream(f"{_OURS}Attribute")(message.SerializeToString(), timeout=120)
    answers = exchanges.normal([pb.AttributeResponse.FromString(response) for response in call])
    return [answer.SerializeToString(deterministic=True) for answer in answers]


def fuzz(fuzzer: Fuzzer, count: int, end: Callable[[str, Sequence[bytes]], str]) -> Counter[str]:
    """Draws `count` calls and hands each to `end`. Returns how they ended."""
    return Counter(end(*fuzzer.draw()) for _ in range(count))


# The methods, those with large requests more often.
_LARGE = [f"{_OURS}{name}" for name in ("Attribute", "AttributeMany", "Follow", "Align")]
_WEIGHTED = [*REQUESTS, *_LARGE * 4]


def _valid_requests(loaded: LoadedModel) -> dict[str, list[Message]]:
    """Valid requests of each method: recorded ones, drawn ones, and empty ones."""
    valid: dict[str, list[Message]] = {path: [cls()] for path, cls in REQUESTS.items()}
    for recorded in exchanges.read().exchanges.values():
        path = f"{_OURS}{recorded.method}"
        message: Any = REQUESTS[path].FromString(recorded.request)
        if isinstance(message, pb.AttributeRequest):
            message.ClearField("model")  # another one than is served here
        valid[path].append(message)
    described = model_message(loaded, model_pb2.RequestLimits(), default=True)
    drawer = RequestDrawer(described, 0)
    valid[f"{_OURS}Attribute"] += [drawer.draw() for _ in range(200)]
    chance = random.Random(0)
    for _ in range(400):
        call = draw_call(chance)
        if not call.path.endswith("Follow"):
            valid[call.path] += call.messages
    for number, message in enumerate(valid[f"{_OURS}Attribute"]):
        many = pb.AttributeManyRequest(attribute=message)
        many.attribute.request_id = f"text {number}"
        valid[f"{_OURS}AttributeMany"].append(many)
    valid[f"{_OURS}CancelAttribution"].append(pb.CancelAttributionRequest(request_id="r"))
    valid[f"{_OURS}ListModels"].append(pb.ListModelsRequest(page_size=1))
    return valid


def _follow_messages(chance: random.Random) -> list[Message]:
    """The messages of a follow stream."""
    while True:
        call = draw_call(chance)
        if call.path.endswith("Follow"):
            return call.messages
