"""As many threads as is fastest, also when that changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness import request, serving, steps_of, stub
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.runner import thread_tuner
from sidelight.server.runner.thread_tuner import ThreadTuner, cores, thread_counts


class Machine:
    """A clock, and how long a step takes with the threads that torch uses."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.number = 0
        self.used: list[int] = []

    def monotonic(self) -> float:
        return self.now

    def set_num_threads(self, number: int) -> None:
        self.number = number

    def steps(self, chosen: ThreadTuner, count: int, work: Callable[[int], int] = lambda _: 1) -> list[int]:
        """Takes some steps; with how many threads each was taken."""
        self.used = []
        for step in range(count):
            with chosen.step(work(step)):
                self.used.append(self.number)
                self.now += self.seconds(self.number)
        return self.used


@pytest.fixture
def machine(monkeypatch) -> Machine:
    machine = Machine(lambda number: 0.01 / number)
    monkeypatch.setattr(thread_tuner, "time", machine)
    monkeypatch.setattr(thread_tuner.torch, "set_num_threads", machine.set_num_threads)
    return machine


def test_all_cores_where_nobody_else_wants_them(machine):
    chosen = ThreadTuner((1, 2))
    used = machine.steps(chosen, 20_000)  # 100 seconds
    assert 3 <= used.count(1) < 10  # now and then, to see
    assert machine.steps(chosen, 40_000).count(1) in (3, 4)
    assert used[-1] == machine.number == 2


def test_each_number_waits_for_itself(machine):
    """One that is much slower is tried seldom, and one that is nearly as good as often as ever."""
    chosen = ThreadTuner((1, 7, 8))
    machine.seconds = lambda number: 0.08 / number
    used = machine.steps(chosen, 10_000)
    assert used.count(1) < 10
    assert 200 < used.count(7) < 500


def test_steps_that_become_slow_are_looked_into(machine):
    """Long after the last trial: something else wants the cores now."""
    chosen = ThreadTuner((1, 2))
    machine.steps(chosen, 40_000)
    machine.seconds = lambda number: {1: 0.01, 2: 0.05}[number]
    machine.steps(chosen, 60)  # three seconds
    assert machine.steps(chosen, 100).count(1) > 90


@pytest.mark.parametrize("numbers", [(1, 2), (1, 2, 3, 4), (1, 4, 7, 8)])
def test_fewer_while_others_want_them(machine, numbers):
    chosen = ThreadTuner(numbers)
    machine.steps(chosen, 500)
    machine.seconds = lambda number: 0.5 if number > numbers[-2] else 0.1 / number
    machine.steps(chosen, 100)
    used = machine.steps(chosen, 2000)
    assert used.count(numbers[-1]) < 0.04 * len(used)
    assert max(set(used), key=used.count) == numbers[-2]
    machine.seconds = lambda number: 0.1 / number
    machine.steps(chosen, 2000)
    assert machine.steps(chosen, 100).count(numbers[-1]) > 90


def test_far_fewer_where_most_are_taken(machine):
    chosen = ThreadTuner((1, 4, 7, 8))
    machine.seconds = lambda number: 0.01 * number
    machine.steps(chosen, 2000)
    assert machine.steps(chosen, 100).count(1) > 90


@pytest.mark.parametrize("free", [4, 7])
def test_any_number_of_cores_may_be_taken(machine, free):
    """With two of eight taken, seven threads are no better than eight."""
    chosen = ThreadTuner((1, 4, 7, 8))
    machine.steps(chosen, 200)
    machine.seconds = lambda number: 0.1 / number if number <= free else 0.8 / number
    machine.steps(chosen, 2000)
    assert machine.steps(chosen, 300).count(free) > 285


@pytest.mark.parametrize("pause", [0.001, 0.025])
def test_long_steps_may_have_long_pauses(machine, pause):
    """Such as the sources of new requests."""
    chosen = ThreadTuner((1, 2))
    machine.seconds = lambda number: {1: 0.02, 2: 0.12}[number]
    for _ in range(1000):
        machine.now += pause
        used = machine.steps(chosen, 1)
    assert used == [1]


def test_one_slow_step_decides_nothing(machine):
    chosen = ThreadTuner((1, 2))
    slow = iter(range(10**6))
    machine.seconds = lambda number: 0.05 if next(slow) % 37 == 0 else 0.01 / number
    assert machine.steps(chosen, 3000).count(2) > 2900


def test_the_first_step_after_a_pause_is_not_compared(machine):
    """It finds everything cold: were it taken for a usual one, any other number would look better."""
    chosen = ThreadTuner((1, 2))
    for _ in range(300):
        machine.now += 1.0
        cold = iter([0.1])
        machine.seconds = lambda number, cold=cold: next(cold, 0.01 / number)
        assert machine.steps(chosen, 8)[-1] == 2


def test_only_equal_work_is_compared(machine):
    """Where a step of many comes between steps of few, its time says nothing."""
    chosen = ThreadTuner((1, 2))
    machine.seconds = lambda number: 0.001 * (1 + machine.used.count(0)) / number
    machine.steps(chosen, 1000, work=lambda step: step)
    assert set(machine.used) == {2}


def test_what_fails_is_not_a_time(machine):
    chosen = ThreadTuner((1, 2))
    for _ in range(1000):
        machine.steps(chosen, 1)
        with pytest.raises(ValueError, match="broken"), chosen.step(1):
            raise ValueError("broken")  # at once, and so faster than any other
    assert machine.number == 2
    assert machine.steps(chosen, 10)[-1] == 2


@pytest.mark.parametrize(("numbers", "used"), [((), 5), ((3,), 3)])
def test_what_is_said_once_stays(machine, numbers, used):
    machine.number = 5  # which torch has already
    assert set(machine.steps(ThreadTuner(numbers), 50)) == {used}


def test_thread_counts(monkeypatch):
    for count, expected in ((1, (1,)), (2, (1, 2)), (4, (1, 2, 3, 4)), (8, (1, 4, 7, 8))):
        monkeypatch.setattr(thread_tuner, "cores", lambda count=count: count)
        assert thread_counts() == expected
    assert cores() >= 1


def test_a_server_takes_its_steps_so(bundled, monkeypatch):
    """With the number in use, the greatest at first; the work of a step is its number of sequences."""
    work: list[int] = []
    step = ThreadTuner.step

    def noted(chosen, many):
        work.append(many)
        return step(chosen, many)

    counts: list[int] = []
    monkeypatch.setattr(ThreadTuner, "step", noted)
    monkeypatch.setattr(thread_tuner.torch, "set_num_threads", counts.append)
    with serving(bundled, limits=EngineConfig(thread_counts=(1, 2))) as address, stub(address) as service:
        steps = steps_of(list(service.Attribute(request("Where is the station?"))))
    assert work == [1] * len(steps)
    assert counts[0] == 2
