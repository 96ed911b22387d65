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

# Seconds between two trials, and until a number is tried again that was so much slower that many trials would be felt:
# each time twice as long, up to the longest, while nothing changes.
_TRIAL_EVERY, _TRIAL_AFTER_SLOW, _LONGEST = 0.25, 3.0, 60.0
_MUCH_SLOWER = 1.5
# Steps in a row, each that much slower than such a step was, that show that something has changed; and the weight of
# one step in what such a step is known to take.
_SLOWED, _FORGETTING = 3, 0.05
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


class ThreadTuner:
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
        self._last = 0.0  # seconds that the last step took
        self._known: dict[Hashable, float] = {}  # seconds of a usual step, by its work
        self._slowed = 0  # steps in a row that took much longer
        self._next = time.monotonic() + _TRIAL_EVERY
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Knows nothing of other numbers any more."""
        count = len(self._numbers)
        # By place: when it may be tried again, how long it waits if it is slow, and of a usual step's time, the shares
        # that the last trials took.
        self._due = [0.0] * count
        self._wait = [_TRIAL_AFTER_SLOW] * count
        self._shares: list[list[float]] = [[] for _ in range(count)]

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
            # What came before cannot be compared.
            self._work, self._warm, self._slowed, self._trial = work, 0, 0, None
        if self._trial is None and self._warm >= _WARM and now >= self._next:
            # All in turns: one that is bad may be no worse than its neighbours.
            others = [place for place in range(len(self._numbers)) if place != self._place]
            place = min(others, key=lambda other: (self._due[other], -other))
            if self._due[place] <= now:
                self._trial = _Trial(place, [])
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
            self._compare(seconds)
            return
        times = self._trial.seconds
        times.append(seconds)
        if len(times) < 3:
            return
        place, self._trial = self._trial.place, None
        self._judge(place, 2 * times[1] / (times[0] + times[2]))

    def _compare(self, seconds: float) -> None:
        """Notices when steps have become slow: other numbers may be better then, and do not wait."""
        if self._warm <= _WARM:
            return
        known = self._known.setdefault(self._work, seconds)
        if seconds <= _MUCH_SLOWER * known:
            self._slowed = 0
            self._known[self._work] = known + (seconds - known) * _FORGETTING  # longer texts take longer
            return
        self._slowed += 1
        if self._slowed >= _SLOWED:
            self._slowed = 0
            self._known.clear()
            self._begin_anew()

    def _judge(self, place: int, share: float) -> None:
        """Takes note of the share of a usual step's time that one with another number took."""
        self._next = self._due[place] = self._ended + _TRIAL_EVERY
        if share > _MUCH_SLOWER:
            self._due[place] = self._ended + self._wait[place]
            # With fewer threads than there are cores, nothing tells when the cores are free again.
            is_most = self._place == len(self._numbers) - 1
            self._wait[place] = min(2 * self._wait[place], _LONGEST) if is_most else _TRIAL_AFTER_SLOW
        shares = self._shares[place]
        shares.append(share)
        if len(shares) < _TRIALS:
            return
        if statistics.median(shares) < _BETTER:
            self._place = place
            log.debug("steps are taken with %d threads", self._numbers[place])
            self._known.clear()
            self._begin_anew()
        shares.clear()
