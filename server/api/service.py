"""AttributionService over grpc.aio: thin. It parses, asks, and writes what comes.

What goes wrong becomes a status in one place, `Calls.answering`; nothing else about an exception reaches a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence

import grpc
from sidelight.v1 import attribution_service_pb2 as service_pb

from ..engine.engine import Engine, RequestState
from ..engine.output_queue import OutputQueue
from ..errors import invalid, unimplemented
from ..models import LoadedModel
from ..request import EncoderSelf, Finished, Output, Request, Started, Step
from ..text.tokenizer_pool import TokenizerPool
from . import converters
from .calls import EOF, Call, Calls
from .parsing import parse
from .validation import find_model, limits_of, request_id_of, validate_request

SERVICE = service_pb.DESCRIPTOR.services_by_name["AttributionService"]

# Steps that wait are sent together, up to about this size: a fraction of what is held for a slow reader.
_MESSAGE_BYTES = 64 * 1024

# Bytes of a request that is resolved where it is received, in a millisecond or two. Another thread takes a longer one:
# to tokenize it would hold up everybody's streams. To go there and back costs several times as much as a sentence does,
# since threads take turns with Python's lock.
_SHORT = 512

_MAX_PAGE = 1000

# Seconds for which the requests of a method of later versions are taken in, all together and one after another, before
# the status: some clients take one that comes before they have sent everything for a fault of the connection.
_POLITE, _PAUSE = 10.0, 1.0


class AttributionService:
    """The contract's service over the engines of the loaded models; the first one's is the default."""

    def __init__(self, engines: Sequence[Engine], calls: Calls) -> None:
        self._engines = {engine.loaded.name: engine for engine in engines}
        self._models = {name: engine.loaded for name, engine in self._engines.items()}
        self._calls = calls
        self._tokenizer_pool = TokenizerPool()

    def handler(self) -> grpc.GenericRpcHandler:
        """The handlers of all methods. Requests come as bytes: parsing them is ours (see `parsing`)."""
        methods = {
            "Attribute": self._attribute,
            "AttributeMany": _later_stream,
            "Follow": _later_stream,
            "Align": _later,
            "GetModel": self._get_model,
            "ListModels": self._list_models,
        }
        assert set(methods) == {method.name for method in SERVICE.methods}
        handlers = {name: self._calls.answering(method) for name, method in methods.items()}
        return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)

    def close(self) -> None:
        """Ends its threads."""
        self._tokenizer_pool.close()

    async def _attribute(self, call: Call) -> None:
        data = await call.read()
        arrived = time.monotonic()
        request = parse(service_pb.AttributeRequest, data)
        call.request_id = request_id_of(request)
        engine = self._engines[find_model(self._models, request.model).name]
        with engine.reserve(call.client) as place:  # before anything is done for it
            job = await self._resolve(request, len(data), engine.loaded, call.request_id)
            call.outbox = OutputQueue(engine.wake)
            try:
                remaining: float | None = call.context.time_remaining()
                deadline = None if remaining is None else time.monotonic() + remaining
                call.ticket = ticket = engine.submit(job, call.outbox, deadline, place)
                await call.begin()  # while the engine works
                await self._stream(call, call.outbox, job, engine, _Meter(job, arrived, ticket))
            finally:
                # Also when the client has gone or its time is up: the engine then drops the job before its next step.
                call.outbox.cancel()

    async def _resolve(
        self, request: service_pb.AttributeRequest, size: int, loaded: LoadedModel, request_id: str
    ) -> Request:
        if size <= _SHORT and not loaded.tokenizer.is_busy:
            return validate_request(request, loaded, request_id)
        return await self._tokenizer_pool.run(size, validate_request, request, loaded, request_id)

    async def _stream(self, call: Call, outbox: OutputQueue, job: Request, engine: Engine, usage: _Meter) -> None:
        while events := await outbox.get(_MESSAGE_BYTES):
            usage.count(events)
            for batch in _batches(events):
                await call.write(_response(batch, job, engine, usage))

    async def _get_model(self, call: Call) -> None:
        request = parse(service_pb.GetModelRequest, await call.read())
        loaded = find_model(self._models, request.name, "name")
        default = loaded is next(iter(self._models.values()))
        await call.write(
            service_pb.GetModelResponse(model=converters.model_message(loaded, limits_of(loaded), default=default))
        )

    async def _list_models(self, call: Call) -> None:
        request = parse(service_pb.ListModelsRequest, await call.read())
        names = sorted(self._models)
        first = 0
        if request.page_token:  # the name that the page before ended with
            first = sum(name <= request.page_token for name in names)
            if request.page_token not in names:
                raise invalid("page_token", "UNKNOWN_PAGE", "is not one that this server gave")
        page = names[first : first + min(request.page_size or _MAX_PAGE, _MAX_PAGE)]
        default = next(iter(self._models))
        response = service_pb.ListModelsResponse(
            models=[
                converters.model_message(self._models[name], limits_of(self._models[name]), default=name == default)
                for name in page
            ],
            next_page_token=page[-1] if page and page[-1] != names[-1] else "",
        )
        await call.write(response)


class _Meter:
    """What a request has cost so far."""

    def __init__(self, job: Request, arrived: float, ticket: RequestState) -> None:
        self._job = job
        self._arrived = arrived
        self._ticket = ticket
        self._first: float | None = None
        self._last = arrived
        self._bytes = 0

    def count(self, events: Sequence[Output]) -> None:
        """Takes notice of events that are about to be sent."""
        for event in events:
            if isinstance(event, Step):
                self._last = time.monotonic()
                self._first = self._first or self._last
                self._bytes += sum(array.nbytes for array in (event.cross, event.decoder_self) if array is not None)
            elif isinstance(event, EncoderSelf):
                self._bytes += event.attention.nbytes

    def message(self, finished: Finished) -> service_pb.Usage:
        """The sums."""
        started = self._ticket.start_time or self._arrived
        usage = service_pb.Usage(
            source_tokens=len(self._job.source.tokens),
            target_tokens=finished.num_steps,
            attention_bytes=self._bytes,
            queue_time=converters.duration(started - self._arrived),
            time_to_first_step=converters.duration((self._first or self._last) - self._arrived),
            total_time=converters.duration(self._last - self._arrived),
        )
        if finished.seed is not None:
            usage.seed = finished.seed
        return usage


def _batches(events: Sequence[Output]) -> Iterator[list[Output]]:
    """Events in the messages that they are sent in: steps together, everything else alone."""
    batch: list[Output] = []
    for event in events:
        if batch and not (isinstance(event, Step) and isinstance(batch[0], Step)):
            yield batch
            batch = []
        batch.append(event)
    if batch:
        yield batch


def _response(batch: Sequence[Output], job: Request, engine: Engine, usage: _Meter) -> service_pb.AttributeResponse:
    event = batch[0]
    if isinstance(event, Started):
        message = converters.started_message(job, engine.loaded, event)
        return service_pb.AttributeResponse(started=message)
    if isinstance(event, EncoderSelf):
        return service_pb.AttributeResponse(encoder_self=converters.encoder_self_message(event))
    if isinstance(event, Finished):
        finished = service_pb.Finished(
            text=event.text,
            stop_reason=converters.STOP_REASONS[event.stop_reason],
            usage=usage.message(event),
        )
        return service_pb.AttributeResponse(finished=finished)
    return converters.steps_response(event for event in batch if isinstance(event, Step))


async def _later(_: Call) -> None:
    raise unimplemented("")


async def _later_stream(call: Call) -> None:
    async def take_in() -> None:
        while await asyncio.wait_for(call.context.read(), _PAUSE) is not EOF:
            pass

    with contextlib.suppress(asyncio.TimeoutError, grpc.aio.InternalError):
        await asyncio.wait_for(take_in(), _POLITE)
    raise unimplemented("")
