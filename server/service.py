"""AttributionService over grpc.aio: thin. It parses, asks, and writes what comes.

What can go wrong becomes a status in one place, `_answering`; nothing else about an exception reaches a client.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from sidelight.v1 import attribution_service_pb2 as service_pb

from . import converters
from .engine import Engine, Ticket
from .errors import RequestError, details, internal, invalid, unimplemented
from .jobs import EncoderSelf, Event, Finished, Job, Started, Step
from .outbox import Outbox, size_of
from .requests import find_model, request_id_of, resolve
from .wire import parse

log = logging.getLogger(__name__)

SERVICE = service_pb.DESCRIPTOR.services_by_name["AttributionService"]

# Steps that wait are sent together, up to about this size, well below gRPC's usual limit of 4 MiB.
_BATCH_BYTES = 1024 * 1024

# Bytes of a request that is resolved where it is received, in a millisecond or two. Another thread takes a longer one:
# to tokenize it would hold up everybody's streams. To go there and back costs several times as much as a sentence does,
# since threads take turns with Python's lock.
_SHORT = 1024

_MAX_PAGE = 1000

Context = grpc.aio.ServicerContext[bytes, Any]


class AttributionService:
    """The contract's service over the engines of the loaded models; the first one's is the default."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = {engine.loaded.name: engine for engine in engines}
        self._models = {name: engine.loaded for name, engine in self._engines.items()}

    def handler(self) -> grpc.GenericRpcHandler:
        """The handlers of all methods. Requests come as bytes: parsing them is ours (see `wire`)."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        both = grpc.stream_stream_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Attribute": stream(self._attribute, response_serializer=_serialize),
            "AttributeMany": both(_later_stream, response_serializer=_serialize),
            "Follow": both(_later_stream, response_serializer=_serialize),
            "Align": unary(_later, response_serializer=_serialize),
            "GetModel": unary(_answering(self._get_model), response_serializer=_serialize),
            "ListModels": unary(_answering(self._list_models), response_serializer=_serialize),
        }
        assert set(handlers) == {method.name for method in SERVICE.methods}
        return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)

    async def _attribute(self, data: bytes, context: Context) -> AsyncIterator[service_pb.AttributeResponse]:
        request_id = ""
        try:
            request = parse(service_pb.AttributeRequest, data)
            request_id = request_id_of(request)
            loaded = find_model(self._models, request.model)
            arrived = time.monotonic()
            if len(data) <= _SHORT and not loaded.codec.is_busy:
                job = resolve(request, loaded, request_id)
            else:
                job = await asyncio.to_thread(resolve, request, loaded, request_id)
            async for response in self._stream(job, self._engines[loaded.name], arrived, context):
                yield response
        except RequestError as error:
            await _abort(context, error, request_id)
        except Exception:
            log.exception("request %s failed", request_id)
            await _abort(context, internal(), request_id)

    async def _stream(
        self, job: Job, engine: Engine, arrived: float, context: Context
    ) -> AsyncIterator[service_pb.AttributeResponse]:
        outbox = Outbox(engine.wake)
        remaining: float | None = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        ticket = engine.submit(job, outbox, deadline)
        usage = _Meter(job, arrived, ticket)
        try:
            while events := await outbox.take():
                usage.count(events)
                for batch in _batches(events):
                    yield _response(batch, job, engine, usage)
        finally:
            # Also when the client has gone or its time is up: the engine then drops the job before its next step.
            outbox.abandon()

    async def _get_model(self, data: bytes) -> Message:
        request = parse(service_pb.GetModelRequest, data)
        loaded = find_model(self._models, request.name, "name")
        default = loaded is next(iter(self._models.values()))
        return service_pb.GetModelResponse(model=converters.model_message(loaded, default=default))

    async def _list_models(self, data: bytes) -> Message:
        request = parse(service_pb.ListModelsRequest, data)
        names = sorted(self._models)
        first = 0
        if request.page_token:  # the name that the page before ended with
            first = sum(name <= request.page_token for name in names)
            if request.page_token not in names:
                raise invalid("page_token", "UNKNOWN_PAGE", "is not one that this server gave")
        page = names[first : first + min(request.page_size or _MAX_PAGE, _MAX_PAGE)]
        default = next(iter(self._models))
        return service_pb.ListModelsResponse(
            models=[converters.model_message(self._models[name], default=name == default) for name in page],
            next_page_token=page[-1] if page and page[-1] != names[-1] else "",
        )


class _Meter:
    """What a request has cost so far."""

    def __init__(self, job: Job, arrived: float, ticket: Ticket) -> None:
        self._job = job
        self._arrived = arrived
        self._ticket = ticket
        self._first: float | None = None
        self._last = arrived
        self._bytes = 0

    def count(self, events: Sequence[Event]) -> None:
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
        started = self._ticket.started or self._arrived
        usage = service_pb.Usage(
            source_tokens=len(self._job.source.tokens),
            target_tokens=finished.steps,
            attention_bytes=self._bytes,
            queue_time=converters.duration(started - self._arrived),
            time_to_first_step=converters.duration((self._first or self._last) - self._arrived),
            total_time=converters.duration(self._last - self._arrived),
        )
        if finished.seed is not None:
            usage.seed = finished.seed
        return usage


def _batches(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Events in the messages that they are sent in: steps together up to a size, everything else alone."""
    batch: list[Event] = []
    size = 0
    for event in events:
        bytes_ = size_of(event)
        if batch and not (isinstance(event, Step) and isinstance(batch[0], Step) and size + bytes_ <= _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += bytes_
    if batch:
        yield batch


def _response(batch: Sequence[Event], job: Job, engine: Engine, usage: _Meter) -> service_pb.AttributeResponse:
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


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _answering(method: Callable[[bytes], Awaitable[Message]]) -> Callable[[bytes, Context], Awaitable[Message]]:
    """A unary handler that turns whatever goes wrong into a status."""

    async def handler(data: bytes, context: Context) -> Message:
        try:
            return await method(data)
        except RequestError as error:
            await _abort(context, error, "")
        except Exception:
            log.exception("request failed")
            await _abort(context, internal(), "")

    return handler


async def _later(data: bytes, context: Context) -> Message:  # noqa: ARG001
    await _abort(context, unimplemented(""), "")


async def _later_stream(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:  # noqa: ARG001
    await _abort(context, unimplemented(""), "")
    yield service_pb.AttributeManyResponse()  # makes this a generator; never reached


async def _abort(context: Context, error: RequestError, request_id: str) -> NoReturn:
    trailers = (("grpc-status-details-bin", details(error, request_id)),)
    await context.abort(error.code, str(error), trailers)
    raise AssertionError("abort does not return")
