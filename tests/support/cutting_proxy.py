"""A TCP proxy that cuts connections after some bytes, and sends each new connection to the next of its servers."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from types import TracebackType


class CuttingProxy:
    """Cuts the first `cuts` connections, each after `num_bytes` bytes from its server.

    Attributes:
        address: Where clients connect.
        num_connections: How many connections there have been.
    """

    def __init__(self, servers: Sequence[str], num_bytes: int, cuts: int) -> None:
        self._servers, self._num_bytes, self._cuts = servers, num_bytes, cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.num_connections = 0

    def __enter__(self) -> CuttingProxy:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._listener.shutdown(socket.SHUT_RDWR)
        for one in (self._listener, *self._sockets):
            _close(one)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                host, _, port = self._servers[self.num_connections % len(self._servers)].rpartition(":")
                limit = self._num_bytes if self.num_connections < self._cuts else None
                self.num_connections += 1
                server = socket.create_connection((host, int(port)))
                self._sockets += [client, server]
                for ends in ((client, server, None), (server, client, limit)):
                    self._threads.append(threading.Thread(target=_forward, args=ends))
                    self._threads[-1].start()


def _forward(source: socket.socket, target: socket.socket, limit: int | None) -> None:
    """Forwards bytes until one of the two closes, or until so many bytes have been forwarded."""
    with contextlib.suppress(OSError):
        while (limit is None or limit > 0) and (data := source.recv(1024)):
            target.sendall(data)
            limit = None if limit is None else limit - len(data)
    for one in (source, target):
        _close(one)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
