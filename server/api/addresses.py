"""Where a server listens: addresses that are checked, and held for a server while its model is loaded.

A taken address is an error at once, not after the model has been loaded. Until the server is ready the address refuses
connections, so that a probe of readiness finds that the server is not ready. Knows sockets; knows neither gRPC nor
models.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
from typing import NoReturn

_FORMS = "HOST:PORT, [IPv6]:PORT or unix:PATH"
_TCP = re.compile(r"(?P<host>\[[^\[\]]+\]|[^\[\]:/\s]+):(?P<port>[0-9]+)")
_MOST_PORT = 65535

# Bytes of a path that the address of a unix socket has room for.
_MOST_PATH = 107


class AddressError(Exception):
    """The address cannot be listened on. The message is for the person who starts the server."""


class Address:
    """An address that is held for a server: no other process listens there, and no other Sidelight server will."""

    def __init__(self, name: str) -> None:
        """Holds an address. Raises AddressError."""
        self.name = name  # as gRPC takes it
        self._sockets: list[socket.socket] = []
        self._lock: _Lock | None = None
        try:
            if name.startswith("unix:"):
                self._path = name.removeprefix("unix:").removeprefix("//")
                self._hold_path()
            elif name.startswith("unix-abstract:"):
                self._bind(socket.AF_UNIX, "\0" + name.removeprefix("unix-abstract:"))
            else:
                self._hold_port()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Address:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_unix(self) -> bool:
        """Whether it is a path or a name of this machine, without a port."""
        return self.name.startswith("unix")

    def release(self) -> None:
        """Lets a server of this process listen there, at once. Raises AddressError where another process does."""
        while self._sockets:
            self._sockets.pop().close()
        if self._lock is not None:
            self._check_socket()

    def close(self) -> None:
        """Lets other processes listen there. Calling it again changes nothing."""
        while self._sockets:
            self._sockets.pop().close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def refuse(self, reason: str) -> NoReturn:
        """Raises AddressError."""
        raise AddressError(f"cannot listen on {self.name[:200]}: {reason}")

    # ---- ports ------------------------------------------------------------------------------------------------------

    def _hold_port(self) -> None:
        host, port = self._parse()
        if port == 0:  # a free one is found when the server listens
            return
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError):
            self.refuse("there is no such host")
        errors = [self._bind(family, address) for family, _, _, _, address in found]
        # A host may have addresses of a kind that this machine has not.
        if None not in errors:
            self.refuse(str(errors[0]))

    def _parse(self) -> tuple[str, int]:
        match = _TCP.fullmatch(self.name)
        if match is None:
            self.refuse(f"must be {_FORMS}")
        port = int(match["port"][:9])
        if port > _MOST_PORT:
            self.refuse(f"ports are from 0 to {_MOST_PORT}")
        return match["host"].strip("[]"), port

    def _bind(self, family: int, address: object) -> str | None:
        """Keeps others from an address. Returns what is wrong with it, where that may be right for others of a host."""
        try:
            made = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            return error.strerror or "there are no such sockets here"
        self._sockets.append(made)
        if family != socket.AF_UNIX:  # connections of a server that has ended may linger
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(address)  # pyright: ignore[reportArgumentType]
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                self.refuse("another server listens there")
            if error.errno in (errno.EACCES, errno.EPERM):
                self.refuse("this user may not")
            if family == socket.AF_UNIX:
                self.refuse(error.strerror or "it is no name of a socket")
            return "is no address of this machine" if error.errno == errno.EADDRNOTAVAIL else error.strerror
        return None

    # ---- paths ------------------------------------------------------------------------------------------------------

    def _hold_path(self) -> None:
        path = self._path
        if not path or "\0" in path:
            self.refuse(f"must be {_FORMS}")
        if len(os.fsencode(path)) > _MOST_PATH:
            self.refuse(f"a socket's path has at most {_MOST_PATH} bytes")
        try:
            self._lock = _Lock(f"{path}.lock")
        except BlockingIOError:
            self.refuse("another server listens there")
        except OSError as error:
            self.refuse(error.strerror or "its folder cannot be written to")
        self._check_socket()

    def _check_socket(self) -> None:
        """Refuses a path where a process listens, or where no socket is. Takes over the socket of a dead server."""
        try:
            mode = os.stat(self._path).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            self.refuse(error.strerror or "it cannot be looked at")
        if not stat.S_ISSOCK(mode):
            self.refuse("something is there that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self._path)
            except (ConnectionRefusedError, FileNotFoundError):  # the process that made it is dead
                return
            except OSError:  # a process that is too busy, or a socket of another kind
                pass
        self.refuse("another server listens there")


class _Lock:
    """A file beside a socket that one server at a time has locked, as long as it lives."""

    def __init__(self, path: str) -> None:
        """Raises BlockingIOError where another has it, and OSError where there can be no such file."""
        self._path = path
        while True:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_there():
                    return
            except BaseException:
                os.close(self._file)
                raise
            os.close(self._file)  # a server that has ended has removed it meanwhile

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        if self._is_there():
            os.unlink(self._path)
        os.close(self._file)
