"""A grpc.aio server that outlives every path that a client can send.

gRPC's own loop decodes the path of a call as UTF-8, and ends for good at a path that is not UTF-8: after one such call
the server accepts no connection any more (grpcio 1.85). Here all methods are registered with gRPC's core, which
compares bytes. A call of any other path is refused without a look at its path.

This is the only module that knows the inside of grpcio.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from grpc._cython import cygrpc  # pyright: ignore[reportAttributeAccessIssue]
from grpc.aio import _server as grpc_server  # pyright: ignore[reportAttributeAccessIssue]

_cygrpc: Any = cygrpc  # whose stubs lack nearly everything
_AIO_SERVER = _cygrpc.AioServer
_replacing = threading.Lock()  # held while gRPC's class is replaced: other servers of the process must get gRPC's own


class _RegisteredCalls(_AIO_SERVER):
    """The core of a server, whose loop sees calls of registered methods only."""

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
        """Returns what the loop waits for: the next call of a registered method; for None, of any other method."""
        if method is None:
            return asyncio.ensure_future(self._refuse_others())
        return super()._make_request_call_future(method)

    async def _refuse_others(self) -> None:
        """Refuses calls of unknown methods until the server ends, and then raises gRPC's exception for that."""
        refusals: set[asyncio.Task[None]] = set()  # the event loop keeps no task alive
        while True:
            state = await self._request_call()
            refusal = asyncio.create_task(_refuse(state))
            refusals.add(refusal)
            refusal.add_done_callback(refusals.discard)


async def _refuse(state: Any) -> None:
    """Ends a call with UNIMPLEMENTED, in gRPC's own words."""
    context = _cygrpc._ServicerContext(state, None, None, asyncio.get_running_loop())
    # The status has been sent, or the client has gone.
    with contextlib.suppress(grpc.aio.AbortError, grpc.aio.InternalError):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


class PathSafeServer(grpc_server.Server):
    """A server of generic handlers that were made by `grpc.method_handlers_generic_handler`."""

    def __init__(self, options: Sequence[tuple[str, int]]) -> None:
        with _replacing:
            _cygrpc.AioServer = _RegisteredCalls
            try:
                super().__init__(None, (), (), options, None, None)
            finally:
                _cygrpc.AioServer = _AIO_SERVER

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Registers the methods of handlers. Call it before `start`."""
        for handler in generic_rpc_handlers:
            self._server.add_registered_method_handlers(handler._method_handlers)  # pyright: ignore
