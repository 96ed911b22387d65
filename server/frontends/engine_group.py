"""EngineGroup: the engines of all models of a server, started one after another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat

from ..engine import Engine, EngineConfig
from ..models import LoadedModel
from ..operations import ModelMetrics
from ..runner import warm


class EngineGroup:
    """The engines of loaded models. The first model is the default. For one event loop.

    Attributes:
        engines: The engines.
        failed: Set when an engine has ended by itself. The server then serves no more.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        config: EngineConfig | Sequence[EngineConfig] | None,
        on_serving: Callable[[str, bool], None],
        on_failure: Callable[[], None],
    ) -> None:
        """Makes the engines.

        Args:
            models: The models.
            config: For all models, or one for each model.
            on_serving: Gets the name of a model, and whether it serves from now on.
            on_failure: Is called when an engine has ended by itself.
        """
        configs = repeat(config, len(models)) if isinstance(config, EngineConfig | None) else config
        self._on_serving, self._on_failure = on_serving, on_failure
        self._loop = asyncio.get_running_loop()
        self.failed = asyncio.Event()
        self.engines = [
            Engine(loaded, limits, self._report_failure, partial(self._report_progress, loaded.name))
            for loaded, limits in zip(models, configs, strict=True)
        ]

    async def start(self) -> None:
        """Starts the engines. Raises ModelError."""
        for engine in self.engines:
            await asyncio.to_thread(warm, engine.loaded)
            await asyncio.to_thread(engine.start)
            self._on_serving(engine.loaded.name, True)

    async def stop(self) -> None:
        """Ends all requests and the engines."""
        for engine in self.engines:
            await asyncio.to_thread(engine.stop)

    @property
    def metrics(self) -> list[ModelMetrics]:
        """The counters of all models."""
        return [engine.metrics for engine in self.engines]

    @property
    def is_running(self) -> bool:
        """Whether a thread of an engine runs: after `stop`, in a step that takes too long."""
        return any(engine.is_running for engine in self.engines)

    def _report_failure(self) -> None:
        """Reports that the server serves no more. For any thread."""

        def report() -> None:
            self._on_failure()
            self.failed.set()

        self._call_soon(report)

    def _report_progress(self, model: str, is_serving: bool) -> None:
        """Reports that the engine of a model has stalled, or goes on. For any thread."""
        self._call_soon(lambda: self._on_serving(model, is_serving))

    def _call_soon(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop may be closed
            self._loop.call_soon_threadsafe(function)
