"""A work-stealing thread pool that runs the operations of CPU programs.

An operation is a number of tasks that do not depend on one another. Each thread owns a range of the tasks, so that it
knows which weights it reads next; a thread that has finished its own range steals from the ends of other ranges. An
operation has ended when all its tasks have ended. So a thread that loses its core to another process delays no other,
unless it loses the core in the middle of a task.

A process has one pool. A program that finds the pool busy runs in its caller's thread alone. The caller's thread begins
at once; workers spin for a moment, in which the next program usually comes, and then sleep.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from .atomics import add_shared, compare_and_swap, exchange_shared, load_shared, pause, store_shared
from .interpreter import SCRATCH, num_tasks, run_task, task_weights
from .isa import HAS_AMX, compiled
from .llvm import int64_at
from .opcodes import NUM_FIELDS, NUM_ROWS, NUM_RUN_FIELDS

_sem_init = types.ExternalFunction("sem_init", types.int32(types.intp, types.int32, types.uint32))
_sem_post = types.ExternalFunction("sem_post", types.int32(types.intp))
_sem_wait = types.ExternalFunction("sem_wait", types.int32(types.intp))
_yield = types.ExternalFunction("sched_yield", types.int32())

# Limits of programs that threads share: operations of a program, and rows, so that tasks fit their counters.
MAX_OPERATIONS, _MAX_ROWS = 4096, 1 << 13

# The most threads besides the caller's.
_MAX_WORKERS = 255

# Offsets in the shared memory, each number on a cache line of its own: the number of the run, the address of its
# operations, how many operations there are, the address of the run's own fields, and how many workers take part.
_LINE = 64
_RUN, _OPERATIONS, _NUM_OPERATIONS, _RUN_FIELDS, _NUM_WORKERS = (line * _LINE for line in range(5))
# More threads than ranges share ranges.
_MAX_RANGES = 8
# For each operation: the remaining tasks of each range, all ranges on one line; then, on another line, how many tasks
# are done and how many there are. For each worker: whether it sleeps, and its semaphore.
_REMAINING = 8 * _LINE
_DONE = _REMAINING + MAX_OPERATIONS * _LINE
_TASKS = _DONE + 8
_SLEEPS = _DONE + MAX_OPERATIONS * _LINE
_SEMAPHORE = _SLEEPS + _MAX_WORKERS * _LINE
_SIZE = _SEMAPHORE + _MAX_WORKERS * _LINE

# The remaining tasks of a range are one int64: the run, the end of the range, and the next task.
_BITS = 20
_MASK = (1 << _BITS) - 1
_RUNS = (1 << 22) - 1

# Rounds of spinning, each some tens of nanoseconds: before a thread yields its core, and before a worker sleeps.
_SPINS_BEFORE_YIELD, _SPINS_BEFORE_SLEEP = 2_000, 2_000

# What `_take_task` returns instead of a task: the range is empty, or another run has begun.
_EMPTY, _OUTDATED = -1, -2


@compiled
def _operation(operations, i):
    return int64_at(operations + i * 8 * NUM_FIELDS, NUM_FIELDS)


@compiled
def _num_ranges(num_workers):
    """How many ranges the tasks of an operation are divided into."""
    return min(num_workers + 1, _MAX_RANGES)


@compiled
def _range_begin(index, ranges, tasks):
    """The first task of a range."""
    return index * tasks // ranges


@compiled
def _publish_run(shared, run, operations, num_operations, run_fields, num_workers):
    """Writes the tasks of a run to shared memory. Workers of an earlier run cannot take any of them."""
    ranges = _num_ranges(num_workers)
    for i in range(num_operations):
        tasks = num_tasks(_operation(operations, i), int64_at(run_fields, NUM_RUN_FIELDS))
        store_shared(shared + _DONE + i * _LINE, 0)
        store_shared(shared + _TASKS + i * _LINE, tasks)
        for index in range(ranges):
            begin, end = _range_begin(index, ranges, tasks), _range_begin(index + 1, ranges, tasks)
            remaining = (run << (2 * _BITS)) | (end << _BITS) | begin
            store_shared(shared + _REMAINING + i * _LINE + 8 * index, remaining)
    store_shared(shared + _OPERATIONS, operations)
    store_shared(shared + _NUM_OPERATIONS, num_operations)
    store_shared(shared + _RUN_FIELDS, run_fields)
    store_shared(shared + _NUM_WORKERS, num_workers)


@compiled
def _take_task(address, run, is_own):
    """Takes the next task of the thread's own range, or the last task of another range; or _EMPTY or _OUTDATED."""
    while True:
        remaining = load_shared(address)
        if remaining >> (2 * _BITS) != run:
            return _OUTDATED
        task, end = remaining & _MASK, (remaining >> _BITS) & _MASK
        if task >= end:
            return _EMPTY
        if is_own:
            if compare_and_swap(address, remaining, remaining + 1):
                return task
        elif compare_and_swap(address, remaining, remaining - (1 << _BITS)):
            return end - 1


@compiled
def _next_weights(operations, num_operations, run_fields, i, task, index, ranges):
    """The address of the weights that a thread reads after a task of its own range; 0 where unknown."""
    operation = _operation(operations, i)
    if task_weights(operation, task) == 0:
        return 0
    if task + 1 < _range_begin(index + 1, ranges, num_tasks(operation, run_fields)):
        return task_weights(operation, task + 1)
    for j in range(i + 1, num_operations):
        other = _operation(operations, j)
        weights = task_weights(other, _range_begin(index, ranges, num_tasks(other, run_fields)))
        if weights != 0:
            return weights
    return 0


@compiled
def _work(shared, run, operations, num_operations, run_fields, num_workers, number, scratch):
    """Takes part in a run until all operations are done, or until a worker finds that another run has begun."""
    ranges, fields = _num_ranges(num_workers), int64_at(run_fields, NUM_RUN_FIELDS)
    own = number % ranges
    for i in range(num_operations):
        done, tasks = shared + _DONE + i * _LINE, shared + _TASKS + i * _LINE
        for turn in range(ranges):
            address = shared + _REMAINING + i * _LINE + 8 * ((own + turn) % ranges)
            while True:
                task = _take_task(address, run, turn == 0)
                if task < 0:
                    break
                next_weights = 0
                if turn == 0:
                    next_weights = _next_weights(operations, num_operations, fields, i, task, own, ranges)
                run_task(_operation(operations, i), fields, task, scratch, next_weights)
                add_shared(done, 1)
            if task == _OUTDATED:
                return
        # The next operation needs all results of this one. A worker may find that the run is over.
        spins = 0
        while True:
            if load_shared(shared + _REMAINING + i * _LINE) >> (2 * _BITS) != run:
                return
            if load_shared(done) == load_shared(tasks):
                break
            spins += 1
            if spins < _SPINS_BEFORE_YIELD:
                pause()
            else:
                _yield()


@compiled
def _run_alone(operations, num_operations, run_fields, scratch):
    fields = int64_at(run_fields, NUM_RUN_FIELDS)
    for i in range(num_operations):
        operation = _operation(operations, i)
        for task in range(num_tasks(operation, fields)):
            next_weights = _next_weights(operations, num_operations, fields, i, task, 0, 1)
            run_task(operation, fields, task, scratch, next_weights)


@compiled
def _run_with_workers(shared, run, operations, num_operations, run_fields, num_workers, scratch):
    _publish_run(shared, run, operations, num_operations, run_fields, num_workers)
    store_shared(shared + _RUN, run)
    for worker in range(num_workers):
        if exchange_shared(shared + _SLEEPS + worker * _LINE, 0) == 1:
            _sem_post(shared + _SEMAPHORE + worker * _LINE)
    _work(shared, run, operations, num_operations, run_fields, num_workers, 0, scratch)


@compiled
def _work_forever(shared, worker, scratch):
    """The loop of a worker."""
    sleeps, semaphore = shared + _SLEEPS + worker * _LINE, shared + _SEMAPHORE + worker * _LINE
    _sem_init(semaphore, 0, 0)
    last_run = 0
    while True:
        spins = 0
        while load_shared(shared + _RUN) == last_run:
            spins += 1
            if spins < _SPINS_BEFORE_SLEEP:
                pause()
                continue
            exchange_shared(sleeps, 1)
            # A run that begins just now may or may not have seen the flag: at worst the worker is woken once too often.
            if load_shared(shared + _RUN) == last_run:
                _sem_wait(semaphore)
            spins = 0
        last_run = load_shared(shared + _RUN)
        # The fields may be those of a later run than `last_run`: then there is no task to take.
        num_workers = load_shared(shared + _NUM_WORKERS)
        if worker < num_workers:
            operations, num_operations = load_shared(shared + _OPERATIONS), load_shared(shared + _NUM_OPERATIONS)
            run_fields = load_shared(shared + _RUN_FIELDS)
            _work(shared, last_run, operations, num_operations, run_fields, num_workers, worker + 1, scratch)


def _digest() -> str:
    """A digest of all that is compiled, and of the instructions that it may use."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() + str(HAS_AMX)


# What a thread does in `enter`: runs a program alone, runs a program with workers, or works forever.
_ALONE, _WITH_WORKERS, _WORKER = range(3)


def _compile(digest: str):
    """Compiles the one function that Python calls, so that everything is compiled once. Numba keeps it on disk.

    Numba looks for changes in this file, and in the values that a function holds. Therefore the function holds the
    digest of all files of this folder.
    """
    arguments = [types.intp] * 8

    def enter(role, scratch, shared, run, operations, num_operations, run_fields, num_workers):
        """Runs a program alone or with `num_workers` workers; or is the worker of this number."""
        if role == _ALONE and digest:
            _run_alone(operations, num_operations, run_fields, scratch)
        elif role == _WITH_WORKERS:
            _run_with_workers(shared, run, operations, num_operations, run_fields, num_workers, scratch)
        elif role == _WORKER:
            _work_forever(shared, num_workers, scratch)

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(types.void(*arguments), cache=True, **options)(enter)
    except RuntimeError:  # there is no folder that Numba may write to
        return njit(types.void(*arguments), **options)(enter)


_enter = _compile(_digest())


def _cache_lines(size: int) -> tuple[NDArray[np.uint8], int]:
    """Allocates `size` bytes of zeros. Returns the array that owns them, and their address, at a cache line."""
    array = np.zeros(size + _LINE, np.uint8)
    return array, array.ctypes.data + -array.ctypes.data % _LINE


class _Scratch(threading.local):
    """The scratch memory of each thread."""

    def __init__(self) -> None:
        self.array, self.address = _cache_lines(4 * SCRATCH)


class ThreadPool:
    """The process's threads for CPU programs. Any thread may run a program; one run at a time has the workers."""

    def __init__(self) -> None:
        self._array, self._shared = _cache_lines(_SIZE)
        self._scratch = _Scratch()
        self._lock = threading.Lock()  # held during a run with workers
        self._num_workers = 0
        self._run = 0

    def run(self, operations: NDArray[np.int64], run_fields: NDArray[np.int64], num_threads: int) -> None:
        """Runs operations `[n, NUM_FIELDS]` in order, with `num_threads` threads, the caller's among them."""
        num_operations, scratch = len(operations), self._scratch.address
        addresses = operations.ctypes.data, num_operations, run_fields.ctypes.data
        fits = num_operations <= MAX_OPERATIONS and run_fields[NUM_ROWS] <= _MAX_ROWS
        if num_threads < 2 or not fits or not self._lock.acquire(blocking=False):
            _enter(_ALONE, scratch, 0, 0, *addresses, 0)
            return
        try:
            num_workers = self._start_workers(min(num_threads - 1, _MAX_WORKERS))
            self._run = self._run % _RUNS + 1
            _enter(_WITH_WORKERS, scratch, self._shared, self._run, *addresses, num_workers)
        finally:
            self._lock.release()

    def _start_workers(self, wanted: int) -> int:
        """Starts workers until there are `wanted`. Workers stay, asleep while nothing runs.

        Returns how many of the wanted workers exist.
        """
        while self._num_workers < wanted:
            number = self._num_workers
            worker = threading.Thread(target=self._work, args=(number,), name=f"cpu {number + 1}", daemon=True)
            try:
                worker.start()
            except RuntimeError:  # the system allows no more threads
                return number
            self._num_workers += 1
        return wanted

    def _work(self, number: int) -> None:
        _enter(_WORKER, self._scratch.address, self._shared, 0, 0, 0, 0, number)


thread_pool = ThreadPool()
