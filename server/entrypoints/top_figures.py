"""What two scrapes of a server's metrics say of the time between them: calls, models, and the process.

A server that began again between two scrapes has smaller counters. Then the older scrape says nothing, and the caller
takes another one: `Scrape.is_of_same_process`.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

_SERVICE = "sidelight.v1.AttributionService"

# Status codes of calls that have not failed: a client cancels where it does not want the rest.
_GOOD_CODES = ("OK", "Cancelled")


class Scrape:
    """The samples of one scrape.

    Attributes:
        time: When the scrape was made, by the monotonic clock.
    """

    def __init__(self, text: str) -> None:
        """`text` has the format of Prometheus. Raises ValueError for another text."""
        self.time = time.monotonic()
        self._samples: defaultdict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples[sample.name].append((sample.labels, sample.value))
        if "sidelight_slots" not in self._samples:
            raise ValueError("it has no metrics of sidelight")

    def find(self, name: str, **labels: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """Yields the samples of a name that have some labels: all labels and the value."""
        for found, value in self._samples.get(name, ()):
            if labels.items() <= found.items():
                yield found, value

    def total(self, name: str, **labels: str) -> float:
        """Returns the sum of the samples of a name that have some labels."""
        return sum(value for _, value in self.find(name, **labels))

    def has(self, name: str, **labels: str) -> bool:
        """Whether there is a sample of a name that has some labels."""
        return any(True for _ in self.find(name, **labels))

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Returns the number of observations up to each upper bound of a histogram."""
        counts: defaultdict[float, float] = defaultdict(float)
        for found, value in self.find(f"{name}_bucket", **labels):
            counts[float(found["le"])] += value
        return counts

    def is_of_same_process(self, other: Scrape) -> bool:
        """Whether two scrapes are of one process of a server."""
        name = "process_start_time_seconds"
        return self.total(name) == other.total(name)


@dataclass(frozen=True)
class Times:
    """The median and the 95th percentile of some times, in seconds; None where nothing was observed."""

    median: float | None = None
    percentile_95: float | None = None


@dataclass(frozen=True)
class CallFigures:
    """The calls of one method."""

    method: str
    num_open: int
    begun_per_second: float
    failed_per_second: float
    times: Times


@dataclass(frozen=True)
class ModelFigures:
    """What one model does."""

    name: str
    num_slots: int
    num_used_slots: int
    num_running: int
    num_preempted: int
    num_waiting: int
    steps_per_second: float
    sequences_per_step: float | None
    stalls_per_second: float
    attention_bytes_per_second: float
    step_times: Times
    first_step_times: Times
    cache_bytes: float
    device_bytes: float | None


@dataclass(frozen=True)
class ServerFigures:
    """What a server does."""

    seconds: float  # between the two scrapes
    uptime: float | None
    memory_bytes: float | None
    processor_share: float | None  # 1 is one core
    calls: list[CallFigures] = field(default_factory=list)
    models: list[ModelFigures] = field(default_factory=list)


def compare(new: Scrape, old: Scrape) -> ServerFigures:
    """Returns the state of the newer scrape, and rates and times of what came between the two."""
    change = _Change(new, old)
    has_process = new.has("process_resident_memory_bytes")
    return ServerFigures(
        change.seconds,
        max(0.0, time.time() - new.total("process_start_time_seconds")) if has_process else None,
        new.total("process_resident_memory_bytes") if has_process else None,
        change.rate("process_cpu_seconds_total") if has_process else None,
        [_call_figures(change, labels) for labels, count in new.find("grpc_server_started_total") if count],
        [_model_figures(change, labels["model"]) for labels, _ in new.find("sidelight_slots")],
    )


@dataclass(frozen=True)
class _Change:
    new: Scrape
    old: Scrape

    @property
    def seconds(self) -> float:
        return max(self.new.time - self.old.time, 1e-3)

    def growth(self, name: str, **labels: str) -> float:
        return self.new.total(name, **labels) - self.old.total(name, **labels)

    def rate(self, name: str, **labels: str) -> float:
        return self.growth(name, **labels) / self.seconds

    def times(self, name: str, **labels: str) -> Times:
        old = self.old.buckets(name, **labels)
        buckets = {bound: count - old.get(bound, 0.0) for bound, count in self.new.buckets(name, **labels).items()}
        return Times(estimate_quantile(buckets, 0.5), estimate_quantile(buckets, 0.95))


def _call_figures(change: _Change, labels: Mapping[str, str]) -> CallFigures:
    service, method = labels["grpc_service"], labels["grpc_method"]
    name = method if service == _SERVICE else f"{service.rpartition('.')[2]}/{method}"
    num_ended = change.new.total("grpc_server_handled_total", **labels)
    good = sum(change.rate("grpc_server_handled_total", **labels, grpc_code=code) for code in _GOOD_CODES)
    return CallFigures(
        name,
        int(change.new.total("grpc_server_started_total", **labels) - num_ended),
        change.rate("grpc_server_started_total", **labels),
        max(0.0, change.rate("grpc_server_handled_total", **labels) - good),
        change.times("grpc_server_handling_seconds", **labels),
    )


def _model_figures(change: _Change, name: str) -> ModelFigures:
    new = change.new
    num_batches = change.growth("sidelight_batch_size_count", model=name)
    has_device = new.has("sidelight_device_memory_bytes", model=name)
    return ModelFigures(
        name,
        int(new.total("sidelight_slots", model=name)),
        int(new.total("sidelight_slots_used", model=name)),
        int(new.total("sidelight_requests_running", model=name)),
        int(new.total("sidelight_requests_preempted", model=name)),
        int(new.total("sidelight_requests_waiting", model=name)),
        change.rate("sidelight_steps_total", model=name),
        change.growth("sidelight_batch_size_sum", model=name) / num_batches if num_batches else None,
        change.rate("sidelight_reader_stalls_total", model=name),
        change.rate("sidelight_attention_bytes_total", model=name),
        change.times("sidelight_step_seconds", model=name),
        change.times("sidelight_time_to_first_step_seconds", model=name),
        new.total("sidelight_cache_bytes", model=name),
        new.total("sidelight_device_memory_bytes", model=name) if has_device else None,
    )


def estimate_quantile(buckets: Mapping[float, float], quantile: float) -> float | None:
    """Returns a quantile of a histogram, as Prometheus' `histogram_quantile` estimates it; None without observations.

    Args:
        buckets: The number of observations up to each upper bound, infinity included.
        quantile: Between 0 and 1.
    """
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    rank = quantile * buckets[bounds[-1]]
    index = next(index for index, bound in enumerate(bounds) if buckets[bound] >= rank)
    lower, below = (bounds[index - 1], buckets[bounds[index - 1]]) if index else (0.0, 0.0)
    if math.isinf(bounds[index]):  # beyond all bounds: the greatest of them
        return lower
    return lower + (bounds[index] - lower) * (rank - below) / (buckets[bounds[index]] - below)
