"""The pairs that are linked on one AttributeMany stream: a task for each, and what the tasks have returned."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sidelight.v1 import attribution_service_pb2 as service_pb

from ...errors import RequestError, report_fault
from ...frontends import EngineRequest
from ..call import Call
from .aligner import Aligner

log = logging.getLogger(__name__)

Result = service_pb.AlignResponse | RequestError


@dataclass(eq=False)
class _Alignment:
    """A pair whose event is not sent."""

    num_bytes: int
    names: list[str] = field(default_factory=list[str])  # of its requests in `Call.requests`
    task: asyncio.Task[None] | None = None


class ManyAlignments:
    """The pairs of one stream whose events are not sent. For one event loop.

    Attributes:
        num_bytes: The size of their requests.
    """

    def __init__(self, call: Call, aligner: Aligner, on_end: Callable[[], None]) -> None:
        """`on_end` is called when a pair has its result."""
        self.num_bytes = 0
        self._call = call
        self._aligner = aligner
        self._on_end = on_end
        self._open: dict[str, _Alignment] = {}  # by the ids of the pairs
        self._ended: deque[tuple[str, Result]] = deque()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    @property
    def has_ended(self) -> bool:
        """Whether `pop` gives a result."""
        return bool(self._ended)

    async def start(
        self, message: service_pb.AlignRequest, num_bytes: int, request_id: str, deadline: float | None
    ) -> None:
        """Starts to link a pair. Raises RequestError where the client may have no more requests."""
        await self._call.begin_request()
        alignment = _Alignment(num_bytes)
        self._open[request_id] = alignment
        self.num_bytes += num_bytes
        alignment.task = asyncio.create_task(self._align(message, request_id, deadline, alignment))

    def pop(self) -> tuple[str, Result]:
        """Takes a result out, with the id of the pair. Another pair may have the id from now on."""
        request_id, result = self._ended.popleft()
        self._forget(request_id)
        return request_id, result

    def cancel(self, request_id: str) -> bool:
        """Ends a pair. It has no result. Returns whether there was one of that id."""
        alignment = self._open.get(request_id)
        if alignment is None:
            return False
        assert alignment.task is not None
        alignment.task.cancel()
        self._ended = deque(entry for entry in self._ended if entry[0] != request_id)
        self._forget(request_id)
        return True

    def end(self) -> list[asyncio.Task[None]]:
        """Ends all pairs. Returns their tasks, which are cancelled."""
        tasks = [alignment.task for alignment in self._open.values() if alignment.task is not None]
        for task in tasks:
            task.cancel()
        return tasks

    async def _align(
        self, message: service_pb.AlignRequest, request_id: str, deadline: float | None, alignment: _Alignment
    ) -> None:
        def note(name: str, state: EngineRequest) -> None:
            # No id has a line feed, so no text of the stream has this name.
            alignment.names.append(f"{request_id}\n{name}")
            self._call.requests[alignment.names[-1]] = state

        try:
            result: Result = await self._aligner.align(message, request_id, self._call.client, deadline, note)
        except RequestError as error:
            result = error
        except Exception as fault:
            result = report_fault(log, request_id, fault)
        self._ended.append((request_id, result))
        self._on_end()

    def _forget(self, request_id: str) -> None:
        alignment = self._open.pop(request_id)
        self.num_bytes -= alignment.num_bytes
        self._call.end_request()
        for name in alignment.names:
            self._call.requests.pop(name, None)
