"""Running `attribute` requests: a synchronous and an asyncio stream of steps.

A stream has a header, parts of encoder self-attention, steps, and an end. This module checks their order. `converters`
parses the messages.
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
from .results import Attribution, Finished, FloatArray, Started, Step, build_attribution


class _StreamState:
    """The parts of a response that have arrived: what both kinds of streams share. The reader of the stream owns it."""

    def __init__(self, call: Any) -> None:
        # gRPC's synchronous and asyncio call objects have no common type, and its stubs have neither of the two.
        self._call = call
        self._cancelled = False
        self._header: Started | None = None
        self._encoder_self: list[FloatArray] = []
        self._steps: list[Step] = []
        self._num_returned = 0  # how many of the steps the iterator has returned
        self._finished: Finished | None = None

    def cancel(self) -> None:
        """Cancels the request. The server stops within one step. Reading further raises CancelledError."""
        self._cancelled = True
        self._call.cancel()

    def _add_response(self, response: service_pb.AttributeResponse) -> None:
        """Stores the parts of one response. Raises InternalError if they do not fit the contract."""
        try:
            if response.HasField("started"):
                self._header = converters.parse_started(response.started)
            elif response.HasField("finished"):
                self._finished = converters.parse_finished(response.finished)
            elif self._header is None:
                raise ValueError("the header is missing")
            elif response.HasField("encoder_self"):
                self._encoder_self.append(converters.parse_encoder_self(response.encoder_self, self._header))
            else:
                self._steps += [converters.parse_step(message, self._header) for message in response.steps.steps]
        except (ValueError, KeyError, IndexError) as error:
            self.cancel()
            message = f"the server's answer does not fit the contract: {error}"
            raise InternalError(message, grpc.StatusCode.INTERNAL) from error

    def _pop_step(self) -> Step | None:
        """Returns the next step that has arrived and was not returned before; None if there is no such step."""
        if self._num_returned == len(self._steps):
            return None
        self._num_returned += 1
        return self._steps[self._num_returned - 1]

    def _require_header(self) -> Started:
        if self._header is None:
            raise SidelightError("the stream was cut off before its header", grpc.StatusCode.DATA_LOSS)
        return self._header

    def _collect(self) -> Attribution:
        if self._header is None or self._finished is None:
            raise SidelightError("the stream was cut off before its end", grpc.StatusCode.DATA_LOSS)
        return build_attribution(self._header, self._encoder_self, self._steps, self._finished)


class AttributionStream(_StreamState, Iterator[Step]):
    """A running `attribute` request. Iterate over its steps as they arrive, or call `result()` for everything.

    A `with` block cancels the request if the block is left early. The stream keeps its steps for `result()`.
    """

    @property
    def started(self) -> Started:
        """The header of the stream. Waits until the header arrives. Raises SidelightError."""
        while self._header is None and self._read():
            pass
        return self._require_header()

    def result(self) -> Attribution:
        """Reads the stream to its end and returns the result, with the steps read before too. Raises SidelightError."""
        while self._finished is None and self._read():
            pass
        return self._collect()

    def _read(self) -> bool:
        """Reads the next response. Returns False at the end of the stream."""
        try:
            self._add_response(next(self._call))
        except StopIteration:
            return False
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return True

    def __next__(self) -> Step:
        while (step := self._pop_step()) is None:
            if not self._read():
                raise StopIteration
        return step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncAttributionStream(_StreamState, AsyncIterator[Step]):
    """A running `attribute` request. Iterate over its steps with `async for`, or await `result()` for everything.

    An `async with` block cancels the request if the block is left early. The stream keeps its steps for `result()`.
    """

    async def started(self) -> Started:
        """The header; waits for it. Raises SidelightError."""
        while self._header is None and await self._read():
            pass
        return self._require_header()

    async def result(self) -> Attribution:
        """Reads the stream to its end and returns the result, with the steps read before too. Raises SidelightError."""
        while self._finished is None and await self._read():
            pass
        return self._collect()

    async def _read(self) -> bool:
        """Reads the next response. Returns False at the end of the stream."""
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            if not self._cancelled:  # the task that reads was cancelled, not this stream
                raise
            raise CancelledError("the stream was cancelled", grpc.StatusCode.CANCELLED) from None
        if not isinstance(response, service_pb.AttributeResponse):  # grpc.aio.EOF
            return False
        self._add_response(response)
        return True

    async def __anext__(self) -> Step:
        while (step := self._pop_step()) is None:
            if not await self._read():
                raise StopAsyncIteration
        return step

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
