"""The Attribute RPC: validates a request, hands it to the engine, and streams the outputs.

Steps that wait for the reader are sent together in one message.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from sidelight.v1 import attribution_service_pb2 as service_pb

from ..engine import Engine, OutputQueue, RequestState
from ..models import LoadedModel
from ..request import EncoderSelf, Finished, Output, Request, Started, Step
from ..text import TokenizerPool
from . import converters
from .calls import Call
from .model_catalog import ModelCatalog
from .offsets import RequestOffsets, offsets_of
from .parsing import parse
from .validation import request_id_of, validate_request

# The size of a message with several steps, about: a fraction of what is held for a slow reader.
_MESSAGE_BYTES = 64 * 1024

# A request of at most this many bytes is validated on the event loop, in a millisecond or two. A longer request is
# validated in another thread, since its tokenization would hold up all streams. To change to a thread and back takes
# several times as long as a sentence takes, since threads take turns with Python's lock.
_SHORT_BYTES = 512


class AttributeMethod:
    """The Attribute RPC over the engines of all models. For one event loop."""

    def __init__(self, engines: Mapping[str, Engine], catalog: ModelCatalog) -> None:
        """`engines` are by the names of their models."""
        self._engines = engines
        self._catalog = catalog
        self._tokenizer_pool = TokenizerPool()

    def close(self) -> None:
        """Ends the threads."""
        self._tokenizer_pool.close()

    async def answer(self, call: Call) -> None:
        """Answers one call."""
        data = await call.read()
        arrived = time.monotonic()
        message = parse(service_pb.AttributeRequest, data)
        call.request_id = request_id_of(message)
        engine = self._engines[self._catalog.find(message.model).name]
        with engine.reserve(call.client) as place:  # before any work is done for the request
            request = await self._validate(message, len(data), engine.loaded, call.request_id)
            call.output_queue = OutputQueue(engine.wake)
            try:
                remaining: float | None = call.context.time_remaining()
                deadline = None if remaining is None else time.monotonic() + remaining
                call.request_state = engine.submit(request, call.output_queue, deadline, place)
                await call.send_headers()  # while the engine works
                meter = UsageMeter(request, arrived, call.request_state)
                await self._stream(call, call.output_queue, request, engine.loaded, meter)
            finally:
                # If the client has gone, or its deadline has passed, the engine drops the request before its next step.
                call.output_queue.cancel()

    async def _validate(
        self, message: service_pb.AttributeRequest, num_bytes: int, loaded: LoadedModel, request_id: str
    ) -> Request:
        if num_bytes <= _SHORT_BYTES and not loaded.tokenizer.is_busy:
            return validate_request(message, loaded, request_id)
        return await self._tokenizer_pool.run(num_bytes, validate_request, message, loaded, request_id)

    async def _stream(
        self, call: Call, output_queue: OutputQueue, request: Request, loaded: LoadedModel, meter: UsageMeter
    ) -> None:
        offsets = offsets_of(request)
        while outputs := await output_queue.get(_MESSAGE_BYTES):
            meter.add(outputs)
            for group in _group_outputs(outputs):
                await call.write(_response_message(group, request, loaded, meter, offsets))


class UsageMeter:
    """What one request has cost so far. For the task that streams its outputs."""

    def __init__(self, request: Request, arrived: float, state: RequestState) -> None:
        self._request = request
        self._arrived = arrived
        self._state = state
        self._first_step: float | None = None
        self._last_step = arrived
        self._attention_bytes = 0

    def add(self, outputs: Sequence[Output]) -> None:
        """Counts outputs that are about to be sent."""
        for output in outputs:
            if isinstance(output, Step):
                self._last_step = time.monotonic()
                self._first_step = self._first_step or self._last_step
                arrays = (output.cross, output.decoder_self)
                self._attention_bytes += sum(array.nbytes for array in arrays if array is not None)
            elif isinstance(output, EncoderSelf):
                self._attention_bytes += output.attention.nbytes

    def message(self, finished: Finished) -> service_pb.Usage:
        """Returns the sums."""
        started = self._state.start_time or self._arrived
        usage = service_pb.Usage(
            source_tokens=len(self._request.source.tokens),
            target_tokens=finished.num_steps,
            attention_bytes=self._attention_bytes,
            queue_time=converters.duration_message(started - self._arrived),
            time_to_first_step=converters.duration_message((self._first_step or self._last_step) - self._arrived),
            total_time=converters.duration_message(self._last_step - self._arrived),
        )
        if finished.seed is not None:
            usage.seed = finished.seed
        return usage


def _group_outputs(outputs: Sequence[Output]) -> Iterator[list[Output]]:
    """Yields the outputs of each message: consecutive steps together, every other output alone."""
    group: list[Output] = []
    for output in outputs:
        if group and not (isinstance(output, Step) and isinstance(group[0], Step)):
            yield group
            group = []
        group.append(output)
    if group:
        yield group


def _response_message(
    group: Sequence[Output],
    request: Request,
    loaded: LoadedModel,
    meter: UsageMeter,
    offsets: RequestOffsets | None,
) -> service_pb.AttributeResponse:
    output = group[0]
    if isinstance(output, Started):
        return service_pb.AttributeResponse(started=converters.started_message(request, loaded, output, offsets))
    if isinstance(output, EncoderSelf):
        return service_pb.AttributeResponse(encoder_self=converters.encoder_self_message(output))
    if isinstance(output, Finished):
        return service_pb.AttributeResponse(finished=converters.finished_message(output, meter.message(output)))
    return converters.steps_response((step for step in group if isinstance(step, Step)), offsets)
