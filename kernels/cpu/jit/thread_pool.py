"""Threads that share the work of a program, piece by piece, on cores that others may use as well.

A program is operations in order, each of some pieces that do not depend on one another. Each thread has a part of an
operation's pieces, side by side, so that it knows which weights it reads next; who has done its own takes of the
others', from their ends. An operation has ended when all its pieces have: so a thread that has lost its core holds up
nobody, unless it has lost it in the middle of a piece. There is one team in a process; a program that meets it at work
runs alone.

The caller's thread begins at once. The others wait awake for a moment, in which most often the next program comes, and
then sleep.
"""
# Numba and llvmlite are untyped: what is compiled is checked by tests, not by pyright.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from .interpreter import SCRATCH, do_piece, pieces_of, weights_of
from .isa import (
    HAS_MATRICES,
    add_shared,
    compiled,
    exchange_shared,
    load_shared,
    longs,
    pause,
    replace_shared,
    store_shared,
)
from .opcodes import COUNT, FIELDS, NOW

_sem_init = types.ExternalFunction("sem_init", types.int32(types.intp, types.int32, types.uint32))
_sem_post = types.ExternalFunction("sem_post", types.int32(types.intp))
_sem_wait = types.ExternalFunction("sem_wait", types.int32(types.intp))
_yield = types.ExternalFunction("sched_yield", types.int32())

# The most operations of a program; and the most rows that threads share, so that their pieces can be counted.
MOST_OPERATIONS, _MOST_ROWS = 4096, 1 << 13

# The most threads beside a caller's.
_MOST_HELPERS = 255

# Shared numbers, each on a cache line of its own: the run's number, its operations, how many these are, what changes,
# and how many helpers it wants.
_LINE = 64
_RUN, _OPERATIONS, _LENGTH, _NOW, _WANTED = (line * _LINE for line in range(5))
# Threads beyond these share their parts.
_MOST_PARTS = 8
# For each operation, what is to be taken of each part, all on one line; and what is done, and how much there is to do.
# For each helper, whether it sleeps, and its semaphore.
_TAKEN = 8 * _LINE
_DONE = _TAKEN + MOST_OPERATIONS * _LINE
_PIECES = _DONE + 8
_SLEEPS = _DONE + MOST_OPERATIONS * _LINE
_SEMAPHORE = _SLEEPS + _MOST_HELPERS * _LINE
_SIZE = _SEMAPHORE + _MOST_HELPERS * _LINE

# What is to be taken of a part: the run, where its pieces end, and the next of them.
_BITS = 20
_MASK = (1 << _BITS) - 1
_RUNS = (1 << 22) - 1

# Rounds of waiting, each some tens of nanoseconds: before a thread lets others run, and before a helper sleeps.
_PATIENCE, _AWAKE = 2_000, 2_000


@compiled
def _operation(operations, i):
    return longs(operations + i * 8 * FIELDS, FIELDS)


@compiled
def _parts_for(helpers):
    """How many parts an operation has."""
    return min(helpers + 1, _MOST_PARTS)


@compiled
def _begin_of(part, parts, pieces):
    """The first piece of a part."""
    return part * pieces // parts


@compiled
def _reset(shared, run, operations, length, now, helpers):
    """Lays out the pieces of a run. Nobody of an earlier one can take any of them."""
    parts = _parts_for(helpers)
    for i in range(length):
        pieces = pieces_of(_operation(operations, i), longs(now, NOW))
        store_shared(shared + _DONE + i * _LINE, 0)
        store_shared(shared + _PIECES + i * _LINE, pieces)
        for part in range(parts):
            begin, end = _begin_of(part, parts, pieces), _begin_of(part + 1, parts, pieces)
            store_shared(shared + _TAKEN + i * _LINE + 8 * part, (run << (2 * _BITS)) | (end << _BITS) | begin)
    store_shared(shared + _OPERATIONS, operations)
    store_shared(shared + _LENGTH, length)
    store_shared(shared + _NOW, now)
    store_shared(shared + _WANTED, helpers)


@compiled
def _take(place, run, is_own):
    """The next piece of a part, or the last of another's; -1 where all are taken, -2 where the run is over."""
    while True:
        word = load_shared(place)
        if word >> (2 * _BITS) != run:
            return -2
        piece, end = word & _MASK, (word >> _BITS) & _MASK
        if piece >= end:
            return -1
        if is_own:
            if replace_shared(place, word, word + 1):
                return piece
        elif replace_shared(place, word, word - (1 << _BITS)):
            return end - 1


@compiled
def _following(operations, length, now, i, piece, part, parts):
    """Where the weights are that a thread reads after a piece of its own part; 0 where that is not known."""
    operation = _operation(operations, i)
    if weights_of(operation, piece) == 0:
        return 0
    if piece + 1 < _begin_of(part + 1, parts, pieces_of(operation, now)):
        return weights_of(operation, piece + 1)
    for j in range(i + 1, length):
        other = _operation(operations, j)
        weights = weights_of(other, _begin_of(part, parts, pieces_of(other, now)))
        if weights != 0:
            return weights
    return 0


@compiled
def _share(shared, run, operations, length, now, helpers, number, scratch):
    """Takes part in a run until all of it is done, or, as a helper may find, another one has begun."""
    parts, changing = _parts_for(helpers), longs(now, NOW)
    part = number % parts
    for i in range(length):
        done, pieces = shared + _DONE + i * _LINE, shared + _PIECES + i * _LINE
        for turn in range(parts):
            place = shared + _TAKEN + i * _LINE + 8 * ((part + turn) % parts)
            while True:
                piece = _take(place, run, turn == 0)
                if piece < 0:
                    break
                following = 0
                if turn == 0:
                    following = _following(operations, length, changing, i, piece, part, parts)
                do_piece(_operation(operations, i), changing, piece, scratch, following)
                add_shared(done, 1)
            if piece == -2:
                return
        # What comes next needs all of this. A helper may find that the run is over.
        rounds = 0
        while True:
            if load_shared(shared + _TAKEN + i * _LINE) >> (2 * _BITS) != run:
                return
            if load_shared(done) == load_shared(pieces):
                break
            rounds += 1
            if rounds < _PATIENCE:
                pause()
            else:
                _yield()


@compiled
def _run_alone(operations, length, now, scratch):
    changing = longs(now, NOW)
    for i in range(length):
        operation = _operation(operations, i)
        for piece in range(pieces_of(operation, changing)):
            following = _following(operations, length, changing, i, piece, 0, 1)
            do_piece(operation, changing, piece, scratch, following)


@compiled
def _run_together(shared, run, operations, length, now, helpers, scratch):
    _reset(shared, run, operations, length, now, helpers)
    store_shared(shared + _RUN, run)
    for helper in range(helpers):
        if exchange_shared(shared + _SLEEPS + helper * _LINE, 0) == 1:
            _sem_post(shared + _SEMAPHORE + helper * _LINE)
    _share(shared, run, operations, length, now, helpers, 0, scratch)


@compiled
def _help(shared, helper, scratch):
    """What a helper does all its life."""
    sleeps, semaphore = shared + _SLEEPS + helper * _LINE, shared + _SEMAPHORE + helper * _LINE
    _sem_init(semaphore, 0, 0)
    known = 0
    while True:
        rounds = 0
        while load_shared(shared + _RUN) == known:
            rounds += 1
            if rounds < _AWAKE:
                pause()
                continue
            exchange_shared(sleeps, 1)
            # A run that has just begun may have seen that, or not: then somebody wakes it once too often, no more.
            if load_shared(shared + _RUN) == known:
                _sem_wait(semaphore)
            rounds = 0
        known = load_shared(shared + _RUN)
        # Of another run than `known`, perhaps. Then there is nothing to be taken.
        helpers = load_shared(shared + _WANTED)
        if helper < helpers:
            operations, length = load_shared(shared + _OPERATIONS), load_shared(shared + _LENGTH)
            _share(shared, known, operations, length, load_shared(shared + _NOW), helpers, helper + 1, scratch)


def _digest() -> str:
    """Of all that is compiled, and of what it may use."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() + str(HAS_MATRICES)


# What a thread does that enters: a run by itself, a run with helpers, or helping.
_ALONE, _TOGETHER, _HELPS = range(3)


def _compiled(digest: str):
    """What Python calls: one function, so that all of it is compiled once. It is kept on disk, by Numba.

    Numba looks for changes in this file, and in what a function holds: so this one holds a digest of the other files.
    """
    arguments = [types.intp] * 8

    def enter(role, scratch, shared, run, operations, length, now, helpers):
        """Runs alone, or with so many `helpers`; or helps, as the one of this number."""
        if role == _ALONE and digest:
            _run_alone(operations, length, now, scratch)
        elif role == _TOGETHER:
            _run_together(shared, run, operations, length, now, helpers, scratch)
        elif role == _HELPS:
            _help(shared, helpers, scratch)

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(types.void(*arguments), cache=True, **options)(enter)
    except RuntimeError:  # there is nowhere to keep it
        return njit(types.void(*arguments), **options)(enter)


_enter = _compiled(_digest())


def _lines(size: int) -> tuple[NDArray[np.uint8], int]:
    """So many bytes, zeros, and where they begin: at a cache line. They are there as long as the array is."""
    room = np.zeros(size + _LINE, np.uint8)
    return room, room.ctypes.data + -room.ctypes.data % _LINE


class _Scratch(threading.local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        self.room, self.address = _lines(4 * SCRATCH)


class ThreadPool:
    """This process's threads for programs."""

    def __init__(self) -> None:
        self._room, self._shared = _lines(_SIZE)
        self._scratch = _Scratch()
        self._lock = threading.Lock()  # held during a run
        self._helpers = 0
        self._run = 0

    def run(self, operations: NDArray[np.int64], now: NDArray[np.int64], threads: int) -> None:
        """Does operations `[n, FIELDS]` in their order, with so many threads, the caller's among them."""
        length, scratch = len(operations), self._scratch.address
        addresses = operations.ctypes.data, length, now.ctypes.data
        is_small = length <= MOST_OPERATIONS and now[COUNT] <= _MOST_ROWS
        if threads < 2 or not is_small or not self._lock.acquire(blocking=False):
            _enter(_ALONE, scratch, 0, 0, *addresses, 0)
            return
        try:
            wanted = self._start(min(threads - 1, _MOST_HELPERS))
            self._run = self._run % _RUNS + 1
            _enter(_TOGETHER, scratch, self._shared, self._run, *addresses, wanted)
        finally:
            self._lock.release()

    def _start(self, wanted: int) -> int:
        """Makes up for helpers that there are not yet. They stay for good, asleep while nothing runs.

        Returns how many there are of those that are wanted.
        """
        while self._helpers < wanted:
            number = self._helpers
            helper = threading.Thread(target=self._help, args=(number,), name=f"cpu {number + 1}", daemon=True)
            try:
                helper.start()
            except RuntimeError:  # no more threads are to be had
                return number
            self._helpers += 1
        return wanted

    def _help(self, number: int) -> None:
        _enter(_HELPS, self._scratch.address, self._shared, 0, 0, 0, 0, number)


team = ThreadPool()
