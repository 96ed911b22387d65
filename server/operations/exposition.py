"""The counters as Prometheus' metrics. The names of gRPC's metrics are those of the middlewares for Go and Java."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from .metrics import Histogram, MethodMetrics, ModelLoad, ModelMetrics

_METHOD_LABELS = ("grpc_type", "grpc_service", "grpc_method")

# Name, description, and what it is of a method.
_METHOD_COUNTERS: tuple[tuple[str, str, Callable[[MethodMetrics], int]], ...] = (
    ("grpc_server_started", "Calls that have begun.", lambda method: method.num_started),
    ("grpc_server_msg_received", "Messages that clients have sent.", lambda method: method.num_received),
    ("grpc_server_msg_sent", "Messages that were sent to clients.", lambda method: method.num_sent),
)

# Name, description, and what it is of a model.
_GAUGES: tuple[tuple[str, str, Callable[[ModelLoad], int]], ...] = (
    ("sidelight_requests_running", "Requests that have started and are not preempted.", lambda load: load.num_running),
    (
        "sidelight_requests_preempted",
        "Requests without a slot whose readers are slow.",
        lambda load: load.num_preempted,
    ),
    ("sidelight_requests_waiting", "Requests in the waiting queue.", lambda load: load.num_waiting),
    ("sidelight_slots", "Slots of the running batch.", lambda load: load.num_slots),
    ("sidelight_slots_used", "Slots that have a sequence.", lambda load: load.num_used_slots),
    ("sidelight_cache_bytes", "The most bytes that the caches of all slots take.", lambda load: load.cache_bytes),
)
_COUNTERS: tuple[tuple[str, str, Callable[[ModelMetrics], int]], ...] = (
    ("sidelight_reader_stalls", "How often a request began to wait for its reader.", lambda model: model.num_stalls),
    ("sidelight_attention_bytes", "Bytes of attention that were sent.", lambda model: model.num_attention_bytes),
)
_HISTOGRAMS: tuple[tuple[str, str, Callable[[ModelMetrics], Histogram]], ...] = (
    ("sidelight_step_seconds", "Time of a decode step of the batch.", lambda model: model.step_seconds),
    ("sidelight_batch_size", "Sequences in a decode step.", lambda model: model.batch_size),
    ("sidelight_queue_seconds", "Time of a request in the waiting queue.", lambda model: model.queue_seconds),
    (
        "sidelight_time_to_first_step_seconds",
        "Time from the arrival of a request to its first step or unit, except in follow streams.",
        lambda model: model.first_step_seconds,
    ),
)


class ReadinessCollector(Collector):
    """Whether the server serves, which is there while models are loaded too."""

    def __init__(self, is_serving: Callable[[], bool]) -> None:
        self._is_serving = is_serving

    def collect(self) -> Iterable[Metric]:
        """Yields the metric."""
        text = "1 while the server serves all models; 0 while it loads them, while one has stalled, and at the end."
        yield GaugeMetricFamily("sidelight_ready", text, value=self._is_serving())


class MetricsCollector(Collector):
    """Reads the counters at each scrape."""

    def __init__(self, methods: Sequence[MethodMetrics], models: Sequence[ModelMetrics]) -> None:
        self._methods, self._models = methods, models

    def collect(self) -> Iterable[Metric]:
        """Yields all metrics."""
        yield from _method_metrics(self._methods)
        yield from _model_metrics(self._models)


def _method_metrics(methods: Sequence[MethodMetrics]) -> Iterator[Metric]:
    for name, text, read in _METHOD_COUNTERS:
        counter = CounterMetricFamily(name, text, labels=_METHOD_LABELS)
        for method in methods:
            counter.add_metric(_labels_of(method), read(method))
        yield counter
    handled = CounterMetricFamily(
        "grpc_server_handled", "Calls that have ended.", labels=(*_METHOD_LABELS, "grpc_code")
    )
    for method in methods:
        for code, count in method.handled.items():
            handled.add_metric((*_labels_of(method), _camel(code)), count)
    yield handled
    seconds = HistogramMetricFamily("grpc_server_handling_seconds", "Time of a whole call.", labels=_METHOD_LABELS)
    for method in methods:
        _add_histogram(seconds, _labels_of(method), method.seconds)
    yield seconds


def _model_metrics(models: Sequence[ModelMetrics]) -> Iterator[Metric]:
    loads = [(model.name, model.read_load()) for model in models]
    for name, text, read_load in _GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=("model",))
        for model_name, load in loads:
            gauge.add_metric((model_name,), read_load(load))
        yield gauge
    memory = GaugeMetricFamily(
        "sidelight_device_memory_bytes", "Bytes that tensors take on the model's GPU.", labels=("model",)
    )
    for model_name, load in loads:
        if load.device_bytes is not None:
            memory.add_metric((model_name,), load.device_bytes)
    yield memory
    steps = CounterMetricFamily("sidelight_steps", "Steps that were computed.", labels=("model", "target"))
    for model in models:
        steps.add_metric((model.name, "decoded"), model.num_decoded_steps)
        steps.add_metric((model.name, "given"), model.num_given_steps)
    yield steps
    for name, text, read in _COUNTERS:
        counter = CounterMetricFamily(name, text, labels=("model",))
        for model in models:
            counter.add_metric((model.name,), read(model))
        yield counter
    for name, text, read_histogram in _HISTOGRAMS:
        histogram = HistogramMetricFamily(name, text, labels=("model",))
        for model in models:
            _add_histogram(histogram, (model.name,), read_histogram(model))
        yield histogram


def _labels_of(method: MethodMetrics) -> tuple[str, str, str]:
    return method.kind, method.service, method.method


def _camel(code: str) -> str:
    """Returns a status code as Go writes it, for example "ResourceExhausted": dashboards know codes in this form."""
    return code if code == "OK" else code.replace("_", " ").title().replace(" ", "")


def _add_histogram(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    buckets = [(floatToGoString(bound), count) for bound, count in histogram.cumulative()]
    family.add_metric(labels, buckets, histogram.sum)
