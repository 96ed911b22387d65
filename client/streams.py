"""Running attributions, to iterate over or to collect: a synchronous and an asyncio stream.

They know the order of a stream's parts and what may go wrong; how the parts look on the wire is `converters`' business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any

import grpc
from sidelight.v1 import attribution_service_pb2 as service_pb
from typing_extensions import Self

from . import converters
from .errors import CancelledError, InternalError, SidelightError, from_rpc_error
from .results import Attribution, Ending, Numbers, Started, Step, collect


class _Stream:
    """What both streams have in common: the parts of an answer, put in their places as they come."""

    def __init__(self, call: Any) -> None:
        # grpc's call objects have no common type, and its stubs know neither.
        self._call = call
        self._cancelled = False
        self._header: Started | None = None
        self._encoder_self: list[Numbers] = []
        self._steps: list[Step] = []
        self._given = 0  # how many of the steps the one who iterates has had
        self._ending: Ending | None = None

    def cancel(self) -> None:
        """Gives the request up: the server stops within one step. Reading on raises CancelledError."""
        self._cancelled = True
        self._call.cancel()

    def _take(self, response: service_pb.AttributeResponse) -> None:
        """Puts one response in its place."""
        try:
            if response.HasField("started"):
                self._header = converters.started(response.started)
            elif response.HasField("finished"):
                self._ending = converters.ending(response.finished)
            elif self._header is None:
                raise ValueError("the header is missing")
            elif response.HasField("encoder_self"):
                self._encoder_self.append(converters.encoder_self(response.encoder_self, self._header))
            else:
                self._steps += [converters.step(message, self._header) for message in response.steps.steps]
        except (ValueError, KeyError, IndexError) as error:
            self.cancel()
            message = f"the server's answer does not fit the contract: {error}"
            raise InternalError(message, grpc.StatusCode.INTERNAL) from error

    def _next_step(self) -> Step | None:
        """A step that is here and has not been given out yet."""
        if self._given == len(self._steps):
            return None
        self._given += 1
        return self._steps[self._given - 1]

    def _checked_header(self) -> Started:
        if self._header is None:
            raise SidelightError("the stream was cut off before its header", grpc.StatusCode.DATA_LOSS)
        return self._header

    def _whole(self) -> Attribution:
        if self._header is None or self._ending is None:
            raise SidelightError("the stream was cut off before its end", grpc.StatusCode.DATA_LOSS)
        return collect(self._header, self._encoder_self, self._steps, self._ending)


class AttributionStream(_Stream, Iterator[Step]):
    """A running attribution. Iterate for steps as they arrive, or ask for the whole `result()`.

    In a `with` block it is cancelled when the block is left early. Steps are kept for `result()`.
    """

    @property
    def started(self) -> Started:
        """The header; waits for it. Raises SidelightError."""
        while self._header is None and self._read():
            pass
        return self._checked_header()

    def result(self) -> Attribution:
        """Reads to the end and puts everything together, steps that were read before too. Raises SidelightError."""
        while self._ending is None and self._read():
            pass
        return self._whole()

    def _read(self) -> bool:
        """Takes the next response; False at the end."""
        try:
            self._take(next(self._call))
        except StopIteration:
            return False
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return True

    def __next__(self) -> Step:
        while (step := self._next_step()) is None:
            if not self._read():
                raise StopIteration
        return step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncAttributionStream(_Stream, AsyncIterator[Step]):
    """A running attribution. Iterate with `async for` for steps as they arrive, or await the whole `result()`.

    In an `async with` block it is cancelled when the block is left early. Steps are kept for `result()`.
    """

    async def started(self) -> Started:
        """The header; waits for it. Raises SidelightError."""
        while self._header is None and await self._read():
            pass
        return self._checked_header()

    async def result(self) -> Attribution:
        """Reads to the end and puts everything together, steps that were read before too. Raises SidelightError."""
        while self._ending is None and await self._read():
            pass
        return self._whole()

    async def _read(self) -> bool:
        """Takes the next response; False at the end."""
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            if not self._cancelled:  # not this stream but the task that reads it
                raise
            raise CancelledError("the stream was cancelled", grpc.StatusCode.CANCELLED) from None
        if not isinstance(response, service_pb.AttributeResponse):  # grpc.aio.EOF
            return False
        self._take(response)
        return True

    async def __anext__(self) -> Step:
        while (step := self._next_step()) is None:
            if not await self._read():
                raise StopAsyncIteration
        return step

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
