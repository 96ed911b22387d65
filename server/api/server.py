"""Server: engines and their services in one process."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine import EngineConfig
from ..frontends import EngineGroup
from ..models import LoadedModel
from ..operations import CallLimits, MethodMetrics, ModelMetrics, Security, Telemetry
from .call import Context
from .grpc_server import GrpcServer
from .transport import Address


class Server:
    """Serves loaded models. The first model is the default. For one event loop.

    Without an address it has no socket: another gRPC server hands each of its calls to `answer`.

    Attributes:
        failed: Set when an engine has ended by itself. The server then serves no more.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        address: str | Address | None,
        config: EngineConfig | Sequence[EngineConfig] | None = None,
        security: Security | None = None,
        telemetry: Telemetry | None = None,
        limits: CallLimits | None = None,
    ) -> None:
        """`config` is for all models, or has one for each model."""
        self._group = EngineGroup(models, config, self._set_serving, lambda: self._grpc_server.end_health())
        self._engines = self._group.engines
        self.failed = self._group.failed
        self._grpc_server = GrpcServer(self._engines, address, security, telemetry, limits)

    async def start(self) -> str:
        """Listens and serves. Returns the address, with the real port if port 0 was asked for. Raises AddressError.

        The server accepts no connection before the engines run. `stop` closes an address that was given as `Address`.
        Without an address, the result is empty.
        """
        self._grpc_server.hold_address()
        await self._group.start()
        return await self._grpc_server.start()

    async def answer(self, method: str, context: Context) -> None:
        """Answers a call that another gRPC server has accepted.

        Args:
            method: The full name, such as "/sidelight.v1.AttributionService/Attribute".
            context: What reads and writes the messages of the call. It gives requests as bytes.
        """
        await self._grpc_server.answer(method, context)

    @property
    def is_serving(self) -> bool:
        """Whether all models serve. For any thread."""
        return self._grpc_server.is_serving

    @property
    def method_metrics(self) -> list[MethodMetrics]:
        """The counters of all methods."""
        return self._grpc_server.calls.methods

    @property
    def model_metrics(self) -> list[ModelMetrics]:
        """The counters of all models."""
        return self._group.metrics

    @property
    def is_running(self) -> bool:
        """Whether a thread of an engine runs: after `stop`, in a step that takes too long."""
        return self._group.is_running

    async def stop(self, grace: float = 0.0) -> None:
        """Ends the calls and the engines. See `GrpcServer.stop`."""
        await self._grpc_server.stop(grace)

    def _set_serving(self, model: str, is_serving: bool) -> None:
        self._grpc_server.set_serving(model, is_serving=is_serving)
