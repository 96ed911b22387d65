"""A ring of memory that two processes share: one writes arrays, the other copies them out in the same order.

The memory has no name, so that nothing is left when both processes have ended, however they end.
"""

from __future__ import annotations

import mmap
import os


class RingWriter:
    """The end that writes. For one thread."""

    def __init__(self, file: int) -> None:
        """`file` is a descriptor from `make_ring`."""
        self._map = mmap.mmap(file, 0)
        self._memory = memoryview(self._map)
        self._size = len(self._memory)
        self._written = self._read = 0  # bytes since the beginning

    def write(self, data: memoryview) -> int | None:
        """Copies bytes in. Returns their place; None where there is no room now."""
        num_bytes = data.nbytes
        if num_bytes > self._size:
            return None
        place = self._written
        if place % self._size + num_bytes > self._size:  # each array is in one piece
            place += self._size - place % self._size
        if place + num_bytes - self._read > self._size:
            return None
        begin = place % self._size
        self._memory[begin : begin + num_bytes] = data
        self._written = place + num_bytes
        return place

    def close(self) -> None:
        """Gives the memory back, and the descriptor that Python keeps with it."""
        self._memory.release()
        self._map.close()

    def free(self, read: int) -> None:
        """Says how far the other process has read."""
        self._read = read


class RingReader:
    """The end that reads. For one thread."""

    def __init__(self, file: int) -> None:
        """`file` is a descriptor from `make_ring`."""
        self._map = mmap.mmap(file, 0)
        self._memory = memoryview(self._map)
        self._size = len(self._memory)
        self._read = self._reported = 0

    def read(self, place: int, num_bytes: int) -> bytearray:
        """Copies bytes out."""
        begin = place % self._size
        self._read = place + num_bytes
        return bytearray(self._memory[begin : begin + num_bytes])

    def close(self) -> None:
        """Gives the memory back, and the descriptor that Python keeps with it."""
        self._memory.release()
        self._map.close()

    def report(self) -> int | None:
        """Returns how far the ring is read, where the other process should know that; otherwise None."""
        if self._read - self._reported < self._size // 4:
            return None
        self._reported = self._read
        return self._read


def make_ring(num_bytes: int) -> int:
    """Returns the descriptor of new shared memory. The kernel gives each page when it is first written to."""
    file = os.memfd_create("sidelight", os.MFD_CLOEXEC)
    os.ftruncate(file, num_bytes)
    return file
