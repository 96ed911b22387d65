"""What the counters of one process have grown by, for the process that has the sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..operations import MethodMetrics, ModelMetrics


class Growth(NamedTuple):
    """What was counted since the last growth.

    `methods` has, for each method, the numbers of calls and messages, the calls that ended by status, and the buckets
    and the sum of their seconds; `models` has, for each model, the bytes of attention, and the buckets and the sum of
    the seconds to the first step.
    """

    methods: tuple[tuple[tuple[int, int, int], dict[str, int], tuple[list[int], float]], ...]
    models: tuple[tuple[int, tuple[list[int], float]], ...]


class GrowingCounters:
    """The counters of a front end. For one event loop."""

    def __init__(self, methods: Sequence[MethodMetrics], models: Sequence[ModelMetrics]) -> None:
        self._methods, self._models = methods, models
        self._last = _read(methods, models)

    def take_growth(self) -> Growth | None:
        """Returns what was counted since the last call; None where there is nothing."""
        last, self._last = self._last, _read(self._methods, self._models)
        if last == self._last:
            return None
        methods = tuple(
            (
                (numbers[0] - old_numbers[0], numbers[1] - old_numbers[1], numbers[2] - old_numbers[2]),
                {code: count - old_handled[code] for code, count in handled.items() if count != old_handled[code]},
                _subtract(seconds, old_seconds),
            )
            for (numbers, handled, seconds), (old_numbers, old_handled, old_seconds) in zip(
                self._last.methods, last.methods, strict=True
            )
        )
        models = tuple(
            (num_bytes - old_bytes, _subtract(seconds, old_seconds))
            for (num_bytes, seconds), (old_bytes, old_seconds) in zip(self._last.models, last.models, strict=True)
        )
        return Growth(methods, models)


def add_growth(methods: Sequence[MethodMetrics], models: Sequence[ModelMetrics], growth: Growth) -> None:
    """Adds what a front end has counted. The methods and the models are in the same order in all processes."""
    for method, (numbers, handled, seconds) in zip(methods, growth.methods, strict=True):
        method.num_started += numbers[0]
        method.num_received += numbers[1]
        method.num_sent += numbers[2]
        for code, count in handled.items():
            method.handled[code] += count
        method.seconds.add(*seconds)
    for model, (num_bytes, seconds) in zip(models, growth.models, strict=True):
        model.num_attention_bytes += num_bytes
        model.first_step_seconds.add(*seconds)


def _read(methods: Sequence[MethodMetrics], models: Sequence[ModelMetrics]) -> Growth:
    return Growth(
        tuple(
            (
                (method.num_started, method.num_received, method.num_sent),
                dict(method.handled),
                (method.seconds.counts(), method.seconds.sum),
            )
            for method in methods
        ),
        tuple(
            (model.num_attention_bytes, (model.first_step_seconds.counts(), model.first_step_seconds.sum))
            for model in models
        ),
    )


def _subtract(now: tuple[list[int], float], before: tuple[list[int], float]) -> tuple[list[int], float]:
    return [count - old for count, old in zip(now[0], before[0], strict=True)], now[1] - before[1]
