"""Messages between the engine's process and one front end: over a socket, with large arrays in shared memory.

A message is a name and arguments. What is sent in one turn of the event loop goes in one frame. Both ends are processes
of one server, so frames are pickled; they hold what has been validated, never what a client has sent.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import pickle
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .references import References
from .shared_ring import RingReader, RingWriter, make_ring

log = logging.getLogger(__name__)

# The size of the shared memory for each direction: more than 32 streams that are full.
_RING_BYTES = 16 * 1024**2

# Smaller arrays go over the socket, which is as fast for them.
_MIN_SHARED_BYTES = 4096

# The most bytes of a frame: above what all streams of a front end may hold.
_MAX_FRAME_BYTES = 1024**3

_HEADER = struct.Struct("<II")  # the bytes of the pickle, and the number of arrays
_ARRAY = struct.Struct("<Qq")  # the bytes of an array, and its place in the ring; -1: it follows in the frame
_INLINE = -1

# How the other end learns how far the ring is read.
_FREE = "free"


@dataclass(frozen=True)
class ChannelEnd:
    """What a process needs for its end of a channel: a socket, and the descriptors of both rings."""

    socket: socket.socket
    written_ring: int
    read_ring: int

    def close(self) -> None:
        """Closes all three in this process."""
        self.socket.close()
        self.close_rings()

    def close_rings(self) -> None:
        """Closes the descriptors of the rings. Memory that is mapped stays."""
        os.close(self.written_ring)
        os.close(self.read_ring)


def make_channel_ends() -> tuple[ChannelEnd, ChannelEnd]:
    """Makes both ends of a channel. The descriptors are those of this process."""
    one, other = socket.socketpair()
    written, read = make_ring(_RING_BYTES), make_ring(_RING_BYTES)
    return ChannelEnd(one, written, read), ChannelEnd(other, os.dup(read), os.dup(written))


class Channel(asyncio.Protocol):
    """One end of a channel. For one event loop.

    Attributes:
        references: What both processes have, and what messages only name.
    """

    def __init__(
        self,
        end: ChannelEnd,
        on_message: Callable[[str, tuple[Any, ...]], None],
        on_close: Callable[[], None],
    ) -> None:
        """`on_message` gets the name and the arguments of each message; `on_close` is called once at the end."""
        self.references = References()
        self._socket = end.socket
        self._writer, self._reader = RingWriter(end.written_ring), RingReader(end.read_ring)
        end.close_rings()
        self._on_message, self._on_close = on_message, on_close
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._messages: list[tuple[str, tuple[Any, ...]]] = []  # that are not sent
        self._is_closed = False

    async def open(self) -> None:
        """Begins to send and receive."""
        await self._loop.create_unix_connection(lambda: self, sock=self._socket)

    def send(self, name: str, *arguments: Any) -> None:
        """Sends a message, soon. Does nothing once the other process has gone."""
        if self._is_closed:
            return
        if not self._messages:
            self._loop.call_soon(self.flush)
        self._messages.append((name, arguments))

    def flush(self) -> None:
        """Sends the messages that wait, at once."""
        if not self._messages or self._transport is None or self._is_closed:
            return
        messages, self._messages = self._messages, []
        self._transport.writelines(self._pack(messages))

    def close(self) -> None:
        """Sends what waits, and ends the channel."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    # ---- frames -----------------------------------------------------------------------------------------------------

    def _pack(self, messages: list[tuple[str, tuple[Any, ...]]]) -> list[bytes | memoryview]:
        arrays: list[memoryview] = []

        def take_out(buffer: pickle.PickleBuffer) -> bool:
            view = buffer.raw()
            if view.nbytes < _MIN_SHARED_BYTES:
                return True  # it stays in the pickle
            arrays.append(view)
            return False

        pickled = io.BytesIO()
        self.references.pickler(pickled, take_out).dump(messages)
        table: list[bytes] = []
        inline: list[memoryview] = []
        for array in arrays:
            place = self._writer.write(array)
            if place is None:
                inline.append(array)
            table.append(_ARRAY.pack(array.nbytes, _INLINE if place is None else place))
        data = pickled.getvalue()
        return [b"".join((_HEADER.pack(len(data), len(arrays)), *table, data)), *inline]

    def _unpack(self) -> list[tuple[str, tuple[Any, ...]]] | None:
        """Returns the messages of the next frame; None where it has not come as a whole. Raises ValueError."""
        received = self._received
        if len(received) < _HEADER.size:
            return None
        num_pickled, num_arrays = _HEADER.unpack_from(received)
        begin = _HEADER.size + num_arrays * _ARRAY.size
        if num_pickled > _MAX_FRAME_BYTES or begin > _MAX_FRAME_BYTES:
            raise ValueError("a frame is too large")
        if len(received) < begin:
            return None
        arrays = [_ARRAY.unpack_from(received, _HEADER.size + i * _ARRAY.size) for i in range(num_arrays)]
        size = begin + num_pickled + sum(num_bytes for num_bytes, place in arrays if place == _INLINE)
        if size > _MAX_FRAME_BYTES:
            raise ValueError("a frame is too large")
        if len(received) < size:
            return None
        end = begin + num_pickled
        data, buffers = bytes(received[begin:end]), list[bytearray]()
        for num_bytes, place in arrays:
            if place == _INLINE:
                buffers.append(received[end : end + num_bytes])
                end += num_bytes
            else:
                buffers.append(self._reader.read(place, num_bytes))
        del received[:size]
        return self.references.unpickler(io.BytesIO(data), buffers).load()

    # ---- of asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Sends what was given to `send` before."""
        self._transport = transport
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Gives on the messages that have come."""
        self._received += data
        while not self._is_closed and (messages := self._unpack()) is not None:
            if (read := self._reader.report()) is not None:
                self.send(_FREE, read)
            for name, arguments in messages:
                if name == _FREE:
                    self._writer.free(*arguments)
                    continue
                try:
                    self._on_message(name, arguments)
                except Exception:
                    log.exception("the message %s of another process failed", name)

    def connection_lost(self, exc: Exception | None) -> None:
        """Reports the end."""
        del exc
        self._is_closed = True
        self._messages.clear()
        self._writer.close()
        self._reader.close()
        with suppress(OSError):
            self._socket.close()
        self._on_close()
