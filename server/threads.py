"""How many of the processor's threads compute: all of them, or fewer where others want its cores too.

The threads of a parallel operation wait for one another. Where something else has one's core, all stand still, and a
step with all cores takes several times as long as one with fewer; where nothing has, it is the faster one. Which of the
two it is changes while a server runs, so it is tried now and then. Knows threads and clocks; knows nothing of models.
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

# Seconds between two trials of another number, and after one that was so much slower that many would be felt.
_TRIAL_EVERY, _TRIAL_AFTER_SLOW = 0.25, 3.0
_MUCH_SLOWER = 1.5
# How many trials decide, and the share of a step's time below which another number is the better one.
_TRIALS = 3
_BETTER = 0.95
# Seconds after which a step is the first after a pause. It finds caches cold and threads asleep, whatever their number.
_PAUSE = 0.02
# Steps of equal work, without a pause, before one is compared with others.
_WARM = 2


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def numbers_to_try() -> tuple[int, ...]:
    """The numbers of threads worth trying here, from the least."""
    most = cores()
    return tuple(sorted({1, max(1, most // 2), max(1, most - 1), most}))


class _Trial(NamedTuple):
    """A step with another number of threads between two as usual, for the same work."""

    place: int  # of the other number
    seconds: list[float]  # of the steps so far


class Threads:
    """The number of threads that steps are taken with. For one thread, which takes all the steps."""

    def __init__(self, numbers: Sequence[int]) -> None:
        """`numbers` are those to choose from, from the least. With a single one nothing is ever tried."""
        self._numbers = tuple(numbers)
        self._place = len(self._numbers) - 1  # of the number in use
        self._used = -1  # of the number that torch was last told
        self._work: Hashable = None  # of the last step
        self._ended = 0.0  # when it ended
        self._warm = 0  # steps of this work without a pause
        self._trial: _Trial | None = None
        self._next = time.monotonic() + _TRIAL_EVERY
        self._last = 0.0  # seconds that the last step took
        self._other = max(0, self._place - 1)  # the place of the number that is tried next
        self._shares: list[float] = []  # of a usual step's time that the last trials of that number took

    @contextmanager
    def step(self, work: Hashable) -> Iterator[None]:
        """Within it a step is taken. Steps of equal `work` take about the same time."""
        if len(self._numbers) < 2:
            yield
            return
        self._use(self._begin(work))
        started = time.monotonic()
        try:
            yield
            self._end(time.monotonic() - started)
        finally:
            self._use(self._place)  # for what is not a step

    def _begin(self, work: Hashable) -> int:
        """Which number the next step is taken with."""
        now = time.monotonic()
        if work != self._work or now - self._ended > max(_PAUSE, 2 * self._last):
            self._work, self._warm, self._trial = work, 0, None  # what came before cannot be compared
        if self._trial is None and self._warm >= _WARM and now >= self._next:
            self._trial = _Trial(self._other, [])
        if self._trial is None:
            return self._place
        return self._trial.place if len(self._trial.seconds) == 1 else self._place

    def _use(self, place: int) -> None:
        if self._used != place:
            torch.set_num_threads(self._numbers[place])
            self._used = place

    def _end(self, seconds: float) -> None:
        """Takes note of how long a step took."""
        self._ended, self._last = time.monotonic(), seconds
        self._warm += 1
        if self._trial is None:
            return
        times = self._trial.seconds
        times.append(seconds)
        if len(times) < 3:
            return
        share = 2 * times[1] / (times[0] + times[2])
        self._trial = None
        self._next = time.monotonic() + (_TRIAL_AFTER_SLOW if share > _MUCH_SLOWER else _TRIAL_EVERY)
        self._shares.append(share)
        if len(self._shares) < _TRIALS:
            return
        if statistics.median(self._shares) < _BETTER:
            self._place = self._other
            log.debug("steps are taken with %d threads", self._numbers[self._place])
        self._turn()

    def _turn(self) -> None:
        """Tries the next number from now on. All in turns: one that is bad may be no worse than its neighbours."""
        self._shares.clear()
        count = len(self._numbers)
        self._other = (self._other - 1) % count
        if self._other == self._place:
            self._other = (self._other - 1) % count
