"""The counters of a server. One thread writes each counter, and a scrape reads all of them without a lock.

A lock would cost each step as much as the counter itself. A scrape may see a histogram of which one observation is not
complete yet; the next scrape sees all of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

# The upper bounds of the buckets: seconds of a step, seconds that a client waits, and requests in one batch.
STEP_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048)
WAIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
BATCH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


class Histogram:
    """How many observations are in each bucket, and their sum. For one thread that writes."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)  # the last one is for what is above all bounds
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Adds an observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def counts(self) -> list[int]:
        """Returns the number of observations in each bucket."""
        return list(self._counts)

    def add(self, counts: Sequence[int], total: float) -> None:
        """Adds the observations of another histogram with the same buckets. `total` is their sum."""
        for index, count in enumerate(counts):
            self._counts[index] += count
        self.sum += total

    def cumulative(self) -> list[tuple[float, int]]:
        """Returns each upper bound, infinity at the end, with the number of observations up to this bound."""
        total, pairs = 0, []
        for bound, count in zip((*self._bounds, float("inf")), list(self._counts), strict=True):
            total += count
            pairs.append((bound, total))
        return pairs


class MethodMetrics:
    """The counters of one gRPC method. The event loop writes them."""

    def __init__(self, service: str, method: str, kind: str, codes: Iterable[str]) -> None:
        """`kind` is "unary", "server_stream", "client_stream" or "bidi_stream"; `codes` are the names of all statuses.

        Each status is there from the beginning: Prometheus sees no growth where a counter begins with its first error.
        """
        self.service, self.method, self.kind = service, method, kind
        self.num_started = self.num_received = self.num_sent = 0
        self.handled = dict.fromkeys(codes, 0)
        self.seconds = Histogram(WAIT_SECONDS)

    @property
    def full_name(self) -> str:
        """The method as OpenTelemetry names it."""
        return f"{self.service}/{self.method}"

    def record_end(self, code: str, seconds: float) -> None:
        """Counts a call that has ended."""
        self.handled[code] += 1
        self.seconds.observe(seconds)


@dataclass(frozen=True)
class ModelLoad:
    """What a model works on at one moment, and the memory that is for it."""

    num_running: int = 0
    num_preempted: int = 0
    num_waiting: int = 0
    num_slots: int = 0
    num_used_slots: int = 0
    cache_bytes: int = 0
    device_bytes: int | None = None  # None on a CPU, where the process has the memory


class ModelMetrics:
    """The counters of one model.

    The engine's thread writes those of steps, of given targets and of the queue; the event loop writes those of what is
    sent.
    """

    def __init__(self, name: str, read_load: Callable[[], ModelLoad]) -> None:
        """`read_load` is called at each scrape, from a thread of its own."""
        self.name = name
        self.read_load = read_load
        self.on_first_step: Callable[[str, float], None] | None = None  # gets the name and the seconds
        self.num_decoded_steps = self.num_given_steps = 0
        self.num_stalls = 0
        self.num_attention_bytes = 0
        self.step_seconds = Histogram(STEP_SECONDS)
        self.batch_size = Histogram(BATCH_SIZES)
        self.queue_seconds = Histogram(WAIT_SECONDS)
        self.first_step_seconds = Histogram(WAIT_SECONDS)

    def record_step(self, seconds: float, num_sequences: int) -> None:
        """Counts a decode step of some sequences."""
        self.num_decoded_steps += num_sequences
        self.step_seconds.observe(seconds)
        self.batch_size.observe(num_sequences)

    def record_stall(self) -> None:
        """Counts a request that begins to wait for its reader."""
        self.num_stalls += 1

    def record_first_step(self, seconds: float) -> None:
        """Counts the time from the arrival of a request to its first step or unit."""
        self.first_step_seconds.observe(seconds)
        if self.on_first_step is not None:
            self.on_first_step(self.name, seconds)
