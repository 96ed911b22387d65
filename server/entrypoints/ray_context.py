"""A call that Ray Serve's gRPC server has accepted, as the server's methods know calls.

Ray gives a handler the requests as an iterator, takes the responses from a generator, and has a context of its own for
the status. The methods read and write by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message


class RayContext:
    """The part of `grpc.aio.ServicerContext` that the server's methods need. For one call and one event loop."""

    def __init__(self, requests: Any, ray_context: Any) -> None:
        """Makes the context of a call.

        Args:
            requests: Ray's `gRPCInputStream`, whose items are the requests as bytes.
            ray_context: Ray's `RayServegRPCContext`.
        """
        self._requests = requests
        self._ray_context = ray_context
        self._responses: asyncio.Queue[Message | None] = asyncio.Queue()
        self._taken = asyncio.Event()

    async def respond(self, answer: Callable[[RayContext], Awaitable[None]]) -> AsyncIterator[Message]:
        """Yields what a method writes, until the method has ended. The method has its status in Ray's context."""
        task = asyncio.ensure_future(self._run(answer))
        try:
            while (message := await self._responses.get()) is not None:
                yield message
                self._taken.set()  # Ray asks for the next message when gRPC has taken this one
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, answer: Callable[[RayContext], Awaitable[None]]) -> None:
        try:
            with contextlib.suppress(grpc.aio.AbortError):
                await answer(self)
        finally:
            self._responses.put_nowait(None)

    async def read(self) -> Any:
        """Returns the next request, or EOF. Raises CancelledError where the client has gone."""
        try:
            return await anext(self._requests)
        except StopAsyncIteration:
            if self._requests.is_cancelled():
                raise asyncio.CancelledError from None
            return grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]

    async def write(self, message: Message) -> None:
        """Sends a message. Returns when gRPC has taken it."""
        self._taken.clear()
        self._responses.put_nowait(message)
        await self._taken.wait()

    async def send_initial_metadata(self, metadata: Sequence[Any]) -> None:
        """Does nothing: Ray sends the headers with the first message."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[Any] = ()) -> NoReturn:
        """Ends the call with a status."""
        self._ray_context.set_code(code)
        self._ray_context.set_details(details)
        self._ray_context.set_trailing_metadata(list(trailing_metadata))
        raise grpc.aio.AbortError

    def code(self) -> Any:
        """Returns the status, if it has been set."""
        return self._ray_context.code()

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """Returns what the client has sent beside its requests."""
        return self._ray_context.invocation_metadata()

    def peer(self) -> str:
        """Returns the address that the call comes from: behind HAProxy, that of HAProxy."""
        return self._ray_context.peer()

    def peer_identities(self) -> None:
        """Returns nothing: Ray's sockets know no certificates of clients."""

    def time_remaining(self) -> None:
        """Returns nothing: Ray does not hand the deadline over. gRPC cancels a call whose deadline passes."""
