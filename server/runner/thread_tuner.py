"""How many CPU threads a decode step uses: all cores, or fewer where other programs use the cores too.

The threads of a parallel operation wait for one another. Where another program has one of the cores, all threads stand
still, and a step with all cores takes several times as long as a step with fewer; where no other program runs, the step
with all cores is the faster one. Which of the two holds changes while a server runs, so that other numbers of threads
are tried now and then. Knows threads and clocks; knows nothing of models.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

log = logging.getLogger(__name__)

# Seconds between two trials.
# Seconds until a number of threads is tried again that was much slower. They double at each trial, while nothing
# changes.
# The longest such wait.
_TRIAL_EVERY, _TRIAL_AFTER_SLOW, _LONGEST = 0.25, 3.0, 60.0
_MUCH_SLOWER = 1.5
# Steps in a row, each much slower than the average step, that show that something has changed; and the weight of one
# step in this average.
_NUM_SLOW, _AVERAGE_WEIGHT = 3, 0.05
# How many trials decide, and the share of a step's time below which another number of threads is the better one.
_NUM_TRIALS = 3
_BETTER = 0.95
# Seconds after which a step is the first after a pause. It finds caches cold and threads asleep, with any number.
_PAUSE = 0.02
# Steps of equal work without a pause, before a step is compared with others.
_NUM_WARM = 2


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_counts() -> tuple[int, ...]:
    """The numbers of threads that are worth trying on this machine, in ascending order."""
    count = cores()
    return tuple(sorted({1, max(1, count // 2), max(1, count - 1), count}))


class _Trial(NamedTuple):
    """A step with another number of threads between two steps with the usual number, for the same work."""

    count_index: int  # of the other number
    seconds: list[float]  # of the steps so far


class ThreadTuner:
    """Chooses the number of threads that decode steps use. For the thread that takes all steps."""

    def __init__(self, counts: Sequence[int]) -> None:
        """`counts` are the numbers of threads to choose from, in ascending order. A single one is kept."""
        self._counts = tuple(counts)
        self._index = len(self._counts) - 1  # of the number in use
        self._set_index = -1  # of the number that torch has
        self._work: Hashable = None  # of the last step
        self._ended_at = 0.0  # the end of the last step
        self._num_warm = 0  # steps of this work without a pause
        self._trial: _Trial | None = None
        self._last_seconds = 0.0  # of the last step
        self._average: dict[Hashable, float] = {}  # seconds of a step with the usual number, by its work
        self._num_slow = 0  # steps in a row that took much longer than the average
        self._next_trial = time.monotonic() + _TRIAL_EVERY
        self._forget_trials()

    def _forget_trials(self) -> None:
        """Forgets what is known of other numbers of threads."""
        count = len(self._counts)
        # By index: when the number may be tried again, how long it waits if it is slow, and the time that the steps of
        # its last trials took, as shares of the time of a usual step.
        self._due = [0.0] * count
        self._wait = [_TRIAL_AFTER_SLOW] * count
        self._shares: list[list[float]] = [[] for _ in range(count)]

    @contextmanager
    def step(self, work: Hashable) -> Iterator[None]:
        """A context for one step. Steps of equal `work` take about the same time."""
        if len(self._counts) < 2:
            if self._counts:  # models of one server may each have a number of their own
                self._use(0)
            yield
            return
        self._use(self._begin(work))
        started = time.monotonic()
        try:
            yield
            self._end(time.monotonic() - started)
        finally:
            self._use(self._index)  # for work that is not a step

    def _begin(self, work: Hashable) -> int:
        """Returns the index of the number that the next step uses."""
        now = time.monotonic()
        if work != self._work or now - self._ended_at > max(_PAUSE, 2 * self._last_seconds):
            # Earlier steps cannot be compared with this one.
            self._work, self._num_warm, self._num_slow, self._trial = work, 0, 0, None
        if self._trial is None and self._num_warm >= _NUM_WARM and now >= self._next_trial:
            # All numbers take turns: where one is bad, its neighbours need not be.
            others = [index for index in range(len(self._counts)) if index != self._index]
            index = min(others, key=lambda other: (self._due[other], -other))
            if self._due[index] <= now:
                self._trial = _Trial(index, [])
        if self._trial is None:
            return self._index
        return self._trial.count_index if len(self._trial.seconds) == 1 else self._index

    def _use(self, index: int) -> None:
        if self._set_index != index:
            torch.set_num_threads(self._counts[index])
            self._set_index = index

    def _end(self, seconds: float) -> None:
        """Takes note of how long a step took."""
        self._ended_at, self._last_seconds = time.monotonic(), seconds
        self._num_warm += 1
        if self._trial is None:
            self._compare(seconds)
            return
        times = self._trial.seconds
        times.append(seconds)
        if len(times) < 3:
            return
        index, self._trial = self._trial.count_index, None
        self._judge(index, 2 * times[1] / (times[0] + times[2]))

    def _compare(self, seconds: float) -> None:
        """Notices when steps have become slow: then other numbers may be better, and are tried without a wait."""
        if self._num_warm <= _NUM_WARM:
            return
        average = self._average.setdefault(self._work, seconds)
        if seconds <= _MUCH_SLOWER * average:
            self._num_slow = 0
            self._average[self._work] = average + (seconds - average) * _AVERAGE_WEIGHT  # longer texts take longer
            return
        self._num_slow += 1
        if self._num_slow >= _NUM_SLOW:
            self._num_slow = 0
            self._average.clear()
            self._forget_trials()

    def _judge(self, index: int, share: float) -> None:
        """Takes note of a trial: the time of its step, as a share of the time of a usual step."""
        self._next_trial = self._due[index] = self._ended_at + _TRIAL_EVERY
        if share > _MUCH_SLOWER:
            self._due[index] = self._ended_at + self._wait[index]
            # With fewer threads than cores, slow steps do not show when the cores are free again.
            uses_all = self._index == len(self._counts) - 1
            self._wait[index] = min(2 * self._wait[index], _LONGEST) if uses_all else _TRIAL_AFTER_SLOW
        shares = self._shares[index]
        shares.append(share)
        if len(shares) < _NUM_TRIALS:
            return
        if statistics.median(shares) < _BETTER:
            self._index = index
            log.debug("steps use %d threads", self._counts[index])
            self._average.clear()
            self._forget_trials()
        shares.clear()
