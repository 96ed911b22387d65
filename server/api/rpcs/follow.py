"""The Follow RPC: hands the events of a client to the engine, and streams the outputs, both at the same time.

The server reads no further events while the engine has many that wait, or while the client reads no outputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any

import grpc
from sidelight.v1 import attribution_service_pb2 as service_pb

from ...engine import (
    FollowEvent,
    SourceGrowth,
    StreamBreak,
    StreamEnd,
)
from ...errors import RequestError, idle, invalid, silent, stopped, too_old
from ...frontends import EngineClient, EngineRequest, Events, StreamPlaces
from ...request import (
    AwaitingSource,
    Output,
    Request,
    Started,
    Step,
    StepCount,
)
from ...text import TokenizerPool
from .. import converters
from ..call import EOF, Call
from ..model_catalog import ModelCatalog
from ..offsets import offsets_of
from ..parsing import parse
from ..validation import FollowValidator, paths_in_start, request_id_of
from .answer import MESSAGE_BYTES, Answer, group_outputs, validate
from .attribute import deadline_of

# Seconds for which a client may send nothing while the server is about to end.
_MAX_LAST_PAUSE_SECONDS = 1.0

# Seconds for which the rest of a client's messages is read before the status of an error: in all, and from one message
# to the next.
_MAX_REST_SECONDS, _MAX_PAUSE_SECONDS = 2.0, 0.1


class FollowMethod:
    """The Follow RPC over the engines of all models. For one event loop."""

    def __init__(self, engines: Mapping[str, EngineClient], catalog: ModelCatalog) -> None:
        """`engines` are by the names of their models."""
        self._engines = engines
        self._catalog = catalog
        self._tokenizer_pool = TokenizerPool()
        self._open = {name: _OpenStreams(engine.follow_places) for name, engine in engines.items()}

    def close(self) -> None:
        """Ends the threads."""
        self._tokenizer_pool.close()

    async def answer(self, call: Call) -> None:
        """Answers one call."""
        data = await call.read()
        arrived = time.monotonic()
        try:
            message = parse(service_pb.FollowRequest, data)
            if message.WhichOneof("event") != "start":
                raise invalid("start", "REQUIRED", "comes first")
            with paths_in_start():
                call.request_id = request_id_of(message.start)
                await call.begin_request()
            engine = self._engines[self._catalog.find(message.start.model, "start.model").name]
            pool, loaded = self._tokenizer_pool, engine.loaded
            args = (message.start, loaded, call.request_id)
            validator = await validate(pool, loaded, len(data), FollowValidator, *args)
        except RequestError:
            await _read_rest(call)
            raise
        stream = _Stream(call, engine, pool, validator, arrived)
        async with self._open[loaded.name].hold(stream):
            await stream.run()


class _OpenStreams:
    """The open streams of a model in this process: a `StreamHolder`."""

    def __init__(self, places: StreamPlaces) -> None:
        self._places = places
        self._streams: dict[int, _Stream] = {}  # by number
        self._num_numbers = 0

    @contextlib.asynccontextmanager
    async def hold(self, stream: _Stream) -> AsyncIterator[None]:
        """Counts a stream. Raises RequestError where too many are open and each has a client that sends something."""
        self._num_numbers += 1
        number = self._num_numbers
        await self._places.open(self, number)
        self._streams[number] = stream
        try:
            yield
        finally:
            self._streams.pop(number, None)
            self._places.close(self, number)

    async def find_idlest(self) -> tuple[float, int] | None:
        """Finds the stream whose client has sent nothing for longest. See `StreamHolder`."""
        return min(((stream.last_message_time, number) for number, stream in self._streams.items()), default=None)

    def end_idle(self, number: int) -> None:
        """Ends a stream, so that another one can open."""
        stream = self._streams.pop(number, None)
        if stream is not None:  # it may have ended meanwhile
            stream.give_place()


class _DrainedError(Exception):
    """The server is about to end, and the client has sent nothing for a while: no further message is read."""


class _Stream:
    """One follow stream. For the tasks that answer its call.

    Attributes:
        last_message_time: When the last message of the client came, of `time.monotonic`.
    """

    def __init__(
        self, call: Call, engine: EngineClient, pool: TokenizerPool, validator: FollowValidator, arrived: float
    ) -> None:
        self._call = call
        self._engine = engine
        self._pool = pool
        self._arrived = self.last_message_time = arrived
        self._validator = validator
        self._num_source_bytes = 0
        self._draining = asyncio.ensure_future(call.drained.wait())
        self._place_given = asyncio.get_running_loop().create_future()
        self._requests: deque[Request] = deque()  # with the sources whose Started has not been sent

    async def run(self) -> None:
        """Serves the stream to its end."""
        try:
            await self._run()
        finally:
            self._draining.cancel()

    def give_place(self) -> None:
        """Ends the stream, which waits for its client, so that another one can open."""
        self._place_given.set_result(None)

    async def _run(self) -> None:
        try:
            first = await self._read_source()
        except _DrainedError:
            raise stopped() from None
        call, engine = self._call, self._engine
        events = engine.new_events()
        with await engine.reserve(call.client) as place:
            queue = engine.new_queue()
            state = engine.submit(first, queue, deadline_of(call), place, events)
        call.requests[call.request_id] = state
        try:
            await call.send_headers()
            answer = _FollowAnswer(state, engine, self._arrived, self._requests)
            await _run_until_first_ends(self._write(answer), self._hand_over(events))
        finally:
            queue.cancel()

    # ---- events -----------------------------------------------------------------------------------------------------

    async def _read_source(self) -> Request:
        """Reads events up to the first source that has a token. Raises RequestError where there is none."""
        while (received := await self._read_events()) is not None:
            for event in received:
                assert isinstance(event, SourceGrowth)
                self._requests.append(event.request)
                return event.request
        raise invalid("source", "REQUIRED", "the stream has ended without a source")

    async def _hand_over(self, events: Events) -> None:
        """Hands all events to the engine. Where the server is about to end, up to a pause of the client."""
        try:
            while (received := await self._read_events()) is not None:
                for event in received:
                    if isinstance(event, SourceGrowth):
                        self._requests.append(event.request)
                    await events.put(event)
        except _DrainedError:
            await events.put(StreamBreak())
            return
        for event in self._validator.flush():
            await events.put(event)
        await events.put(StreamEnd())

    async def _read_events(self) -> Sequence[FollowEvent] | None:
        """Returns the events of the next message; None at the end."""
        data = await self._read_message()
        if data is EOF:
            return None
        try:
            message = parse(service_pb.FollowRequest, data)
            self._num_source_bytes += len(data) if message.HasField("source") else 0
            num_bytes = self._num_source_bytes + len(data)
            return await validate(self._pool, self._engine.loaded, num_bytes, self._validator.add, message)
        except RequestError:
            await _read_rest(self._call)
            raise

    async def _read_message(self) -> Any:
        """Returns the bytes of the next message, or EOF.

        Raises _DrainedError where the server is about to end, and the client has nothing more to send for now.
        """
        limits, age = self._call.limits, time.monotonic() - self._call.begun_at
        seconds = min(limits.stream_idle_timeout, max(0.0, limits.max_stream_age - age))
        reading = asyncio.ensure_future(self._call.context.read())
        try:
            waits = (reading, self._draining, self._place_given)
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if self._draining.done():
                await asyncio.wait((reading,), timeout=_MAX_LAST_PAUSE_SECONDS)
            if reading.done():
                self.last_message_time = time.monotonic()
                self._call.record_message(reading.result())
                return reading.result()
        except grpc.aio.InternalError:  # the client has gone
            raise asyncio.CancelledError from None
        finally:
            reading.cancel()
        if self._draining.done():
            raise _DrainedError
        if self._place_given.done():
            raise idle()
        is_old = seconds < limits.stream_idle_timeout
        raise too_old(limits.max_stream_age) if is_old else silent(limits.stream_idle_timeout)

    # ---- outputs ----------------------------------------------------------------------------------------------------

    async def _write(self, answer: _FollowAnswer) -> None:
        """Sends all outputs."""
        while outputs := await answer.queue.get(MESSAGE_BYTES):
            for group in group_outputs(outputs):
                response = service_pb.FollowResponse()
                answer.fill(response, group)
                await self._call.write(response)
            answer.queue.release_sent()
            self._engine.wake()  # which may have put off a pass meanwhile


class _FollowAnswer(Answer):
    """The messages of one stream, whose source grows, and whose steps may be taken back."""

    def __init__(self, state: EngineRequest, engine: EngineClient, arrived: float, requests: deque[Request]) -> None:
        """`requests` have the sources whose first output has not come."""
        super().__init__(state, engine, arrived)
        self._requests = requests
        self._started: Started | None = None
        self._texts: list[str] = []  # of the steps

    def fill(self, response: service_pb.AttributeResponse | service_pb.FollowResponse, group: Sequence[Output]) -> None:
        """Writes a group of outputs, as `group_outputs` yields them, into an empty message, and counts what is sent."""
        output = group[0]
        if isinstance(response, service_pb.FollowResponse) and isinstance(output, AwaitingSource):
            response.awaiting_source.CopyFrom(converters.awaiting_source_message(output))
        elif isinstance(response, service_pb.FollowResponse) and isinstance(output, StepCount):
            response.step_count = output.num_steps
            del self._texts[output.num_steps :]
            self._renew_offsets()
        else:
            if isinstance(output, Started):
                self._started, self._request = output, self._requests.popleft()
                self._offsets = offsets_of(self._request)
            super().fill(response, group)
            if isinstance(output, Started):
                self._renew_offsets()
            self._texts += [step.text for step in group if isinstance(step, Step)]

    def _record_first_step(self, seconds: float) -> None:
        """Counts nothing: the first step of a stream waits for the client, however fast the server is."""

    def _renew_offsets(self) -> None:
        """Makes offsets count in the source as it is now, and in the text of the steps that are left."""
        self._offsets = offsets_of(self._request)
        if self._offsets is not None and self._started is not None:
            self._offsets.add_started(self._started)
            self._offsets.target.append("".join(self._texts))


async def _read_rest(call: Call) -> None:
    """Reads what a client is just sending, before a status ends the stream.

    Some clients take a status before they have sent everything for an error of the connection.
    """

    async def read_all() -> None:
        while await asyncio.wait_for(call.context.read(), _MAX_PAUSE_SECONDS) is not EOF:
            pass

    with contextlib.suppress(asyncio.TimeoutError, grpc.aio.InternalError):
        await asyncio.wait_for(read_all(), _MAX_REST_SECONDS)


async def _run_until_first_ends(main: Coroutine[Any, Any, None], other: Coroutine[Any, Any, None]) -> None:
    """Runs two coroutines until the first one ends, or either one fails. Raises what has failed."""
    tasks = [asyncio.ensure_future(main), asyncio.ensure_future(other)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
