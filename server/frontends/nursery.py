"""Nursery: a process that makes front ends by forking, so that each starts within milliseconds.

It is forked itself from the engine's process, once all modules are imported and before any thread or model is there.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from .channel import ChannelEnd

_PID = struct.Struct("<q")


class Nursery:
    """The nursery, as the engine's process sees it."""

    def __init__(self, run_front_end: Callable[[ChannelEnd], int]) -> None:
        """Forks the process. `run_front_end` runs in each front end, and returns its exit status."""
        self._socket, other = socket.socketpair()
        if os.fork() == 0:
            self._socket.close()
            _run(other, run_front_end)
        other.close()

    def start(self, end: ChannelEnd) -> int:
        """Starts a front end, which has this end of its channel. Returns the number of its process. Raises OSError."""
        socket.send_fds(self._socket, [b"f"], [end.socket.fileno(), end.written_ring, end.read_ring])
        end.close()
        data = self._socket.recv(_PID.size)
        if len(data) < _PID.size:
            raise OSError("the process that starts front ends has ended")
        return _PID.unpack(data)[0]

    def close(self) -> None:
        """Ends the process. Front ends go on."""
        self._socket.close()


def _run(commands: socket.socket, run_front_end: Callable[[ChannelEnd], int]) -> None:
    """Starts front ends until the engine's process closes the socket, or ends. Does not return."""
    status = 1
    try:
        # The engine's process gets the signals of a terminal or of a service manager, and says what they mean.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets front ends that have ended
        while True:
            data, files, _, _ = socket.recv_fds(commands, 1, 3)
            if not data:
                break
            pid = os.fork()
            if pid == 0:
                commands.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                status = run_front_end(ChannelEnd(socket.socket(fileno=files[0]), files[1], files[2]))
                return
            for file in files:
                os.close(file)
            with suppress(OSError):
                commands.send(_PID.pack(pid))
        status = 0
    finally:
        os._exit(status)
