"""FrontEnds: all front ends of a server, in the engine's process: started, again after a fault, and stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..engine import EngineConfig, HeldBack
from ..models import LoadedModel, ModelDescription
from ..operations import Identity, MethodMetrics, ModelMetrics
from .channel import make_channel_ends
from .counters import Growth, add_growth
from .engine_group import EngineGroup
from .interface import ClientCounts
from .nursery import Nursery
from .remote_engine import EngineDescription
from .session import MethodDescription, Session

log = logging.getLogger(__name__)

# Seconds beyond the grace that front ends have to send the last statuses, before they are killed.
_LAST_STATUS_SECONDS = 4.0

# A front end that has lived for fewer seconds counts as one that could not start. After so many in a row, the server
# ends. Between two, it waits this long, and twice as long each time.
_MIN_LIFE_SECONDS, _MAX_FAULTS, _FIRST_DELAY = 5.0, 6, 0.1


class FrontEndError(Exception):
    """Front ends cannot start. The message is for the person who starts the server."""


@dataclass
class _Process:
    """The process of a session."""

    index: int
    pid: int
    begun: float
    ready: asyncio.Future[None]


class FrontEnds:
    """The front ends of a server. For one event loop.

    Attributes:
        method_metrics: The counters of all methods, summed over all front ends. Empty until the first one listens.
        failed: Set when an engine has ended by itself, or when front ends cannot start any more.
    """

    def __init__(
        self, models: Sequence[LoadedModel], configs: Sequence[EngineConfig], nursery: Nursery, count: int
    ) -> None:
        """`count` is how many front ends there are."""
        self.method_metrics: list[MethodMetrics] = []
        self._group = EngineGroup(models, configs, self._set_serving, self._end_health)
        self.failed = self._group.failed
        self._nursery, self._count = nursery, count
        self._engines = {engine.loaded.name: engine for engine in self._group.engines}
        self._counts = ClientCounts()
        self._is_serving = dict.fromkeys(self._engines, False)
        self._processes: dict[Session, _Process] = {}
        self._num_listening = 0  # of the front ends
        self._num_faults = 0  # in a row
        self._is_stopping = False
        self._ended = asyncio.Event()  # set while there is no front end
        self._starting: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Starts the engines, then all front ends. Raises ModelError and FrontEndError."""
        await self._group.start()
        await asyncio.gather(*(self._start(index) for index in range(self._count)))

    async def _start(self, index: int) -> None:
        """Starts a front end, and waits until it listens. Raises FrontEndError."""
        end, other = make_channel_ends()
        try:
            pid = self._nursery.start(other)
        except OSError as error:
            end.close()
            raise FrontEndError("the process that starts front ends has ended") from error
        session = Session(self._engines, self, end)
        process = _Process(index, pid, time.monotonic(), asyncio.get_running_loop().create_future())
        self._processes[session] = process
        self._ended.clear()
        descriptions = [
            EngineDescription(ModelDescription.of(engine.loaded), engine.num_slots, engine.config.max_unread_bytes)
            for engine in self._engines.values()
        ]
        await session.open(descriptions, self._is_serving)
        await process.ready

    async def _start_again(self, index: int) -> None:
        if self._num_faults:
            await asyncio.sleep(_FIRST_DELAY * 2**self._num_faults)
        if not self._is_stopping:
            try:
                await self._start(index)
            except FrontEndError as error:
                log.error("front end %d has not started: %s", index, error)

    @property
    def model_metrics(self) -> list[ModelMetrics]:
        """The counters of all models."""
        return self._group.metrics

    @property
    def is_serving(self) -> bool:
        """Whether all models serve, by a front end that listens. For any thread."""
        has_ended = self._is_stopping or self.failed.is_set()
        return not has_ended and self._num_listening > 0 and all(self._is_serving.values())

    @property
    def is_running(self) -> bool:
        """Whether a thread of an engine runs: after `stop`, in a step that takes too long."""
        return self._group.is_running

    def _set_serving(self, model: str, is_serving: bool) -> None:
        """Says in the health checks of all front ends whether a model serves."""
        self._is_serving[model] = is_serving
        for session in self._processes:
            session.send("serving", model, is_serving)

    def _end_health(self) -> None:
        """Says in the health checks of all front ends that nothing serves any more."""
        for session in self._processes:
            session.send("failed")

    async def stop(self, grace: float) -> None:
        """Has all front ends stop, as `GrpcServer.stop` does, and waits for them. Then ends the engines."""
        self._is_stopping = True
        for task in self._starting:
            task.cancel()
        for session in self._processes:
            session.send("stop", grace)
        if self._processes:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), grace + _LAST_STATUS_SECONDS)
        for session, process in list(self._processes.items()):
            log.error("front end %d has not ended in time", process.index)
            with suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
            session.close()
        self._nursery.close()
        await self._group.stop()

    # ---- of sessions: see `Owner` ------------------------------------------------------------------------------------

    def count_request(self, identity: Identity) -> None:
        """Counts a request of a client. Raises RequestError where the client may have no more."""
        self._counts.count(identity)

    def end_requests(self, identity: Identity, count: int) -> None:
        """Counts so many requests no more."""
        self._counts.end_requests(identity, count)

    async def cancel_elsewhere(self, session: Session, request_id: str, identity: Identity | None) -> int:
        """Cancels the requests of an id that a client has sent to other sessions. Returns how many there were."""
        others = [other for other in self._processes if other is not session]
        return sum(await asyncio.gather(*(other.cancel(request_id, identity) for other in others)))

    def hold_back(self) -> None:
        """Tells the engines what all front ends say about readers."""
        for name, engine in self._engines.items():
            parts = [session.held_back[name] for session in self._processes if name in session.held_back]
            engine.hold_back(HeldBack.join(parts))

    def add_growth(self, growth: Growth) -> None:
        """Adds what a front end has counted."""
        add_growth(self.method_metrics, self._group.metrics, growth)

    def note_ready(self, session: Session, methods: Sequence[MethodDescription]) -> None:
        """Takes note that a front end listens, and of its methods."""
        if not self.method_metrics:
            self.method_metrics += [MethodMetrics(*method) for method in methods]
        process = self._processes[session]
        for model, is_serving in self._is_serving.items():  # it may have changed meanwhile
            session.send("serving", model, is_serving)
        log.info("front end %d listens, process %d", process.index, process.pid)
        if not process.ready.done():
            process.ready.set_result(None)
            self._num_listening += 1

    def note_end(self, session: Session) -> None:
        """Takes note that a front end has gone. Starts another one, unless the server ends."""
        process = self._processes.pop(session)
        if not self._processes:
            self._ended.set()
        has_started = process.ready.done()
        if has_started:
            self._num_listening -= 1
        else:
            process.ready.set_exception(FrontEndError("a front end has ended before it listened; the log says why"))
            process.ready.exception()  # nobody may wait for it
        if self._is_stopping:
            return
        self.hold_back()
        log.error(
            "front end %d has ended, process %d: its streams are cut, and another one starts",
            process.index,
            process.pid,
        )
        has_lived = has_started and time.monotonic() - process.begun >= _MIN_LIFE_SECONDS
        self._num_faults = 0 if has_lived else self._num_faults + 1
        if self._num_faults >= _MAX_FAULTS:
            log.critical("front ends cannot start any more")
            self.failed.set()
            return
        task = asyncio.ensure_future(self._start_again(process.index))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
