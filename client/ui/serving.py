"""The process of `sidelight ui`: a socket for browsers, and uvicorn on it, until a signal comes."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from ..client import AsyncClient
from .app import build_app

# The largest message of a page, in bytes: a text of the largest size that a server reads, and some options.
_MAX_MESSAGE_BYTES = 1 << 20
# Seconds for running streams to end after a signal.
_STOP_TIMEOUT = 2
_ADDRESS = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]+):(?P<port>[0-9]{1,5})")


class ListenError(Exception):
    """The page cannot be served at the address. The message is for people."""


@dataclass(frozen=True)
class Listener:
    """A socket for browsers, bound and listening."""

    socket: socket.socket
    url: str  # of the page
    hosts: Sequence[str]  # what the header Host may be


@contextmanager
def listen(address: str, names: Sequence[str]) -> Generator[Listener, None, None]:
    """Binds the socket of a page, and closes it at the end. Browsers that connect before `serve` runs wait.

    Args:
        address: HOST:PORT, where browsers connect. Port 0: a free one.
        names: Further names, HOST or HOST:PORT, under which browsers find the page, such as those of a proxy.

    Raises ListenError.
    """
    host, port = _parse(address)
    if not _is_loopback(host) and not names:
        raise ListenError(
            f"--listen: others can reach {host}, and use the server through the page: name the hosts with --host"
        )
    with _bind(host, port) as bound:
        port = bound.getsockname()[1]
        yield Listener(bound, f"http://{_bracket(host)}:{port}/", _list_hosts(host, port, names))


def serve(connect: Callable[[], AsyncClient], listener: Listener, on_ready: Callable[[], None]) -> None:
    """Serves the page until a signal ends the process.

    Args:
        connect: Makes the client, in the event loop that uses it.
        listener: The socket of the page.
        on_ready: Called once the page is served.
    """
    config = uvicorn.Config(
        build_app(connect, listener.hosts),
        log_level="error",
        ws_max_size=_MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # between two programs of one machine it only takes time
        timeout_graceful_shutdown=_STOP_TIMEOUT,
        server_header=False,
    )
    _Server(config, on_ready).run(sockets=[listener.socket])


class _Server(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and says so."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def _parse(address: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise ListenError(f"--listen: {address!r} is not HOST:PORT")
    return match["host"].strip("[]"), int(match["port"])


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ListenError(f"--listen: {_bracket(host)}:{port}: {error.strerror or 'no such host'}") from None


def _list_hosts(host: str, port: int, names: Sequence[str]) -> list[str]:
    """Returns what the header Host may be."""
    own = ("localhost", "127.0.0.1", "[::1]", _bracket(host))
    listed = [f"{name}:{port}" for name in own]
    if port == 80:
        listed += own
    return [*listed, *names]


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
