"""A request that the engine works on, and the messages of its outputs. What all RPCs that run requests share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sidelight.v1 import attribution_service_pb2 as service_pb

from ...engine import ReadyQueues
from ...errors import RequestError
from ...frontends import EngineClient, EngineRequest, Place
from ...models import ModelInfo
from ...operations import log_text
from ...request import EncoderSelf, Finished, Output, Request, Started, Step, Unit
from ...text import TokenizerPool
from .. import converters
from ..model_catalog import ModelCatalog
from ..offsets import offsets_of
from ..validation import validate_request

# The size of a message with several outputs, about: a fraction of what is held for a slow reader.
MESSAGE_BYTES = 64 * 1024

# A request of at most this many bytes is validated on the event loop, in a millisecond or two. A longer request is
# validated in another thread, since its tokenization would hold up all streams. To change to a thread and back takes
# several times as long as a sentence takes, since threads take turns with Python's lock.
_SHORT_BYTES = 512

T = TypeVar("T")

# Makes the engine's request of a message to a model, with its id. Raises RequestError.
Validator = Callable[[service_pb.AttributeRequest, ModelInfo, str], Request]


async def validate(pool: TokenizerPool, loaded: ModelInfo, num_bytes: int, function: Callable[..., T], *args: Any) -> T:
    """Calls a function that validates a message of so many bytes. Returns what the function returns."""
    if num_bytes <= _SHORT_BYTES and not loaded.tokenizer.is_busy:
        return function(*args)
    return await pool.run(num_bytes, function, *args)


class AnswerStarter:
    """Validates requests and hands them to the engines of their models. For one event loop."""

    def __init__(self, engines: Mapping[str, EngineClient], catalog: ModelCatalog) -> None:
        """`engines` are by the names of their models."""
        self._engines = engines
        self._catalog = catalog
        self._tokenizer_pool = TokenizerPool()

    def close(self) -> None:
        """Ends the threads."""
        self._tokenizer_pool.close()

    def find(self, name: str, field: str = "model") -> ModelInfo:
        """Returns the model of a name; the default model for an empty name. Raises RequestError with the field."""
        return self._catalog.find(name, field)

    async def reserve(self, loaded: ModelInfo, client: Hashable) -> Place:
        """Takes a place in the queue of a model, before work is done for a client's request. Raises RequestError."""
        return await self._engines[loaded.name].reserve(client)

    async def run(self, num_bytes: int, function: Callable[..., T], *args: object) -> T:
        """Does work on texts of so many bytes: on the event loop if they are short, otherwise in another thread."""
        if num_bytes <= _SHORT_BYTES:
            return function(*args)
        return await self._tokenizer_pool.run(num_bytes, function, *args)

    async def start(
        self,
        message: service_pb.AttributeRequest,
        num_bytes: int,
        request_id: str,
        client: Hashable,
        deadline: float | None,
        ready: ReadyQueues | None = None,
        validator: Validator | None = None,
    ) -> Answer:
        """Starts the answer to a message. Raises RequestError.

        Args:
            message: The message.
            num_bytes: The size of the serialized message.
            request_id: The id of the request.
            client: The client's connection.
            deadline: When the outputs are not wanted any more, by `time.monotonic`; None: no deadline.
            ready: For a task that reads several answers: where the answer's queue is announced.
            validator: Makes the engine's request of the message, and raises RequestError; None: `validate_request`.
        """
        messages = [(message, validator or validate_request)]
        (answer,) = await self.start_all(messages, num_bytes, request_id, client, deadline, ready)
        return answer

    async def start_all(
        self,
        messages: Sequence[tuple[service_pb.AttributeRequest, Validator]],
        num_bytes: int,
        request_id: str,
        client: Hashable,
        deadline: float | None,
        ready: ReadyQueues | None = None,
        check: Callable[[Sequence[Request]], None] | None = None,
    ) -> list[Answer]:
        """Starts the answers to several messages to one model: all of them, or none. Raises RequestError.

        `messages` have a validator each. `check` sees all requests before the engine has any, and raises RequestError.
        The other arguments are those of `start`.
        """
        arrived = time.monotonic()
        engine = self._engines[self._catalog.find(messages[0][0].model).name]
        with contextlib.ExitStack() as places:
            # Before any work is done for the request.
            reservations = [
                places.enter_context(await engine.reserve(client, _feature_bytes(message))) for message, _ in messages
            ]
            for message, _ in messages:
                log_text(request_id, message.source.text)

            def validate_all() -> list[Request]:
                return [validator(message, engine.loaded, request_id) for message, validator in messages]

            requests = await validate(self._tokenizer_pool, engine.loaded, num_bytes, validate_all)
            if check is not None:
                check(requests)
            answers: list[Answer] = []
            try:
                for request, place in zip(requests, reservations, strict=True):
                    state = engine.submit(request, engine.new_queue(ready), deadline, place)
                    answers.append(Answer(state, engine, arrived))
            except RequestError:
                for answer in answers:
                    answer.queue.cancel()
                raise
            return answers


def _feature_bytes(message: service_pb.AttributeRequest) -> int:
    return len(message.source.features.values) + len(message.contrast.source.features.values)


class Answer:
    """One request that the engine works on. For the task that sends its outputs.

    Attributes:
        state: The engine's state of the request.
        queue: Where the outputs come from.
    """

    def __init__(self, state: EngineRequest, engine: EngineClient, arrived: float) -> None:
        """`arrived` is when the request arrived, by the monotonic clock."""
        self.state = state
        self.queue = state.queue
        self._request = state.request
        self._offsets = offsets_of(state.request)
        self._loaded = engine.loaded
        self._metrics = engine.metrics
        self._arrived = arrived
        self._first_step: float | None = None
        self._last_step = arrived
        self._attention_bytes = 0

    def fill(self, response: service_pb.AttributeResponse | service_pb.FollowResponse, group: Sequence[Output]) -> None:
        """Writes a group of outputs, as `group_outputs` yields them, into an empty message, and counts what is sent."""
        num_sent = self._attention_bytes
        self._fill(response, group)
        self._metrics.num_attention_bytes += self._attention_bytes - num_sent

    def _fill(
        self, response: service_pb.AttributeResponse | service_pb.FollowResponse, group: Sequence[Output]
    ) -> None:
        output = group[0]
        if isinstance(output, Step):  # what comes most often
            self._fill_steps(response, group)
        elif isinstance(output, Started):
            response.started.CopyFrom(converters.started_message(self._request, self._loaded, output, self._offsets))
        elif isinstance(output, EncoderSelf):
            self._attention_bytes += output.attention.nbytes
            response.encoder_self.CopyFrom(converters.encoder_self_message(output))
        elif isinstance(output, Finished):
            response.finished.CopyFrom(
                converters.finished_message(output, self._usage_message(output), self._request, self._loaded)
            )
        elif isinstance(output, Unit) and isinstance(response, service_pb.AttributeResponse):
            self._fill_units(response, group)

    def _fill_steps(
        self, response: service_pb.AttributeResponse | service_pb.FollowResponse, group: Sequence[Output]
    ) -> None:
        self._note_time()
        steps = response.steps.steps
        for step in group:
            if isinstance(step, Step):
                self._count(step)
                converters.fill_step(steps.add(), step, self._offsets)

    def _fill_units(self, response: service_pb.AttributeResponse, group: Sequence[Output]) -> None:
        self._note_time()
        for unit in group:
            if isinstance(unit, Unit):
                self._count(unit)
                converters.fill_unit(response.units.units.add(), unit, self._offsets)

    def _note_time(self) -> None:
        """Takes note of the time, when steps or units are ready to send."""
        self._last_step = time.monotonic()
        if self._first_step is None:
            self._first_step = self._last_step
            self._record_first_step(self._first_step - self._arrived)

    def _record_first_step(self, seconds: float) -> None:
        """Counts the time from the arrival of the request to its first step or unit."""
        self._metrics.record_first_step(seconds)

    def _count(self, output: Step | Unit) -> None:
        if output.cross is not None:
            self._attention_bytes += output.cross.nbytes
        if output.decoder_self is not None:
            self._attention_bytes += output.decoder_self.nbytes

    def _usage_message(self, finished: Finished) -> service_pb.Usage:
        """Returns what the request has cost."""
        started = self.state.start_time or self._arrived
        usage = service_pb.Usage(
            source_tokens=self._request.source_length,
            target_tokens=finished.num_steps,
            attention_bytes=self._attention_bytes,
            queue_time=converters.duration_message(started - self._arrived),
            time_to_first_step=converters.duration_message((self._first_step or self._last_step) - self._arrived),
            total_time=converters.duration_message(self._last_step - self._arrived),
        )
        if finished.seed is not None:
            usage.seed = finished.seed
        return usage


def group_outputs(outputs: Sequence[Output]) -> Iterator[Sequence[Output]]:
    """Yields the outputs of each event: consecutive steps or units together, every other output alone."""
    if len(outputs) == 1:  # of a step of the batch, as a rule
        yield outputs
        return
    begin = 0
    for end in range(1, len(outputs) + 1):
        is_row = isinstance(outputs[begin], Step | Unit)
        if is_row and end < len(outputs) and type(outputs[begin]) is type(outputs[end]):
            continue
        yield outputs[begin:end]
        begin = end
