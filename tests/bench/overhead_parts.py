"""The processor time of each part of metrics, traces and tokens, by itself, in one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from prometheus_client import CollectorRegistry, generate_latest
from sidelight.server.operations import (
    MethodMetrics,
    ModelLoad,
    ModelMetrics,
    RequestTimes,
    Telemetry,
    TokenFile,
    observe_call,
)
from sidelight.server.operations.exposition import MetricsCollector

CODES = [f"CODE_{number}" for number in range(16)] + ["OK"]


def measure_parts(tokens: Path, token: str) -> dict[str, float]:
    """Returns the microseconds of each part.

    Args:
        tokens: A file with tokens.
        token: One of them.
    """
    method, model = MethodMetrics("service", "method", "unary", CODES), ModelMetrics("model", ModelLoad)
    token_file = TokenFile(str(tokens))
    unsampled, sampled = _make_telemetry(0.0), _make_telemetry(1.0)
    registry = CollectorRegistry()
    registry.register(MetricsCollector([method] * 12, [model]))

    def call(telemetry: Telemetry) -> None:
        with observe_call(method, telemetry, {}) as observed:
            observed.code = "OK"
            if observed.trace is not None:
                observed.trace.record_request("model", "id", RequestTimes(1.0, 2.0, 3.0, 4.0), "")

    return {
        "a call that is not sampled": _time(lambda: call(unsampled)),
        "a call that is sampled": _time(lambda: call(sampled)),
        "the token of a call": _time(lambda: token_file.identify(token)),
        "the first step of a request": _time(lambda: unsampled.record_first_step("model", 0.1)),
        "a decode step": _time(lambda: model.record_step(0.005, 8)),
        "a scrape": _time(lambda: generate_latest(registry)),
    }


def _make_telemetry(rate: float) -> Telemetry:
    return Telemetry(TracerProvider(sampler=TraceIdRatioBased(rate)), MeterProvider([InMemoryMetricReader()]))


def _time(part: Callable[[], object], turns: int = 200) -> float:
    """Returns the median of the microseconds of the processor."""
    found: list[float] = []
    for _ in range(9):
        began = time.thread_time()
        for _ in range(turns):
            part()
        found.append((time.thread_time() - began) / turns * 1e6)
    return statistics.median(found)
