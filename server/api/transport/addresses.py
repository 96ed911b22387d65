"""Where a server listens: addresses that are checked, and held while the server's model is loaded.

An address that is in use is an error at once, not after the model has been loaded. Until the server is ready, the
address refuses connections, so that a readiness probe finds that the server is not ready.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import re
import socket
import stat
from typing import Any, NoReturn

_FORMS = "HOST:PORT, [IPv6]:PORT or unix:PATH"
_TCP = re.compile(r"(?P<host>\[[^\[\]]+\]|[^\[\]:/\s]+):(?P<port>[0-9]+)")
_MAX_PORT = 65535

# The most bytes of a unix socket's path.
_MAX_PATH_BYTES = 107


class AddressError(Exception):
    """A server cannot listen on an address. The message is for the person who starts the server."""


class Address:
    """An address that is held for a server: no other process listens there, and no other Sidelight server can.

    Attributes:
        name: The address as gRPC takes it.
    """

    def __init__(self, name: str) -> None:
        """Holds an address. Raises AddressError."""
        self.name = name
        self._sockets: list[socket.socket] = []
        self._lock: _Lock | None = None
        self._is_shared = False  # whether the sockets stay, which take no connection and keep others from the port
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
        """Whether the address is a unix socket, which has no port."""
        return self.name.startswith("unix")

    @property
    def is_path(self) -> bool:
        """Whether the address is a socket in the file system."""
        return self.name.startswith("unix:")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address. Raises AddressError."""
        if self.is_unix:
            return True
        return all(ipaddress.ip_address(address[0]).is_loopback for _, address in self._resolve())

    def share(self) -> None:
        """Lets several processes of this server listen there at once. Where the port is 0, picks one.

        Raises AddressError for a unix socket, whose connections the kernel gives to one process.
        """
        if self.is_unix:
            self.refuse("a unix socket has one front end: give HOST:PORT, or --frontends 1")
        if not hasattr(socket, "SO_REUSEPORT") or not hasattr(os, "memfd_create"):
            self.refuse("several front ends need Linux: give --frontends 1")
        if self._parse()[1] == 0:
            for family, (host, _, *more) in self._resolve():  # the same port for all addresses of the host
                self._bind(family, (host, self._parse()[1], *more))
                if self._sockets and self._parse()[1] == 0:
                    self.name = f"{self.name.rpartition(':')[0]}:{self._sockets[0].getsockname()[1]}"
        for holder in self._sockets:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._is_shared = True

    def release(self) -> None:
        """Lets a server of this process listen there, at once. Raises AddressError if another process listens there."""
        while self._sockets and not self._is_shared:
            self._sockets.pop().close()
        if self._lock is not None:
            self._check_socket()

    def close(self) -> None:
        """Lets other processes listen there. A second call does nothing."""
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
        if self._parse()[1] == 0:  # the server finds a free port when it listens
            return
        errors = [self._bind(family, address) for family, address in self._resolve()]
        # A host may have addresses of a family that this machine does not have: one good address is enough.
        if None not in errors:
            self.refuse(str(errors[0]))

    def _resolve(self) -> list[tuple[int, tuple[Any, ...]]]:
        """Returns the families and the addresses of the host."""
        host, port = self._parse()
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError):
            self.refuse("there is no such host")
        return [(family, address) for family, _, _, _, address in infos]

    def _parse(self) -> tuple[str, int]:
        match = _TCP.fullmatch(self.name)
        if match is None:
            self.refuse(f"must be {_FORMS}")
        port = int(match["port"][:9])
        if port > _MAX_PORT:
            self.refuse(f"ports are from 0 to {_MAX_PORT}")
        return match["host"].strip("[]"), port

    def _bind(self, family: int, address: object) -> str | None:
        """Keeps other processes from an address. Returns what is wrong if another address of the host may be right."""
        try:
            holder = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            return error.strerror or "there are no such sockets here"
        self._sockets.append(holder)
        if family != socket.AF_UNIX:  # connections of a server that has ended may linger
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(address)  # pyright: ignore[reportArgumentType]
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
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            self.refuse(f"a socket's path has at most {_MAX_PATH_BYTES} bytes")
        try:
            self._lock = _Lock(f"{path}.lock")
        except BlockingIOError:
            self.refuse("another server listens there")
        except OSError as error:
            self.refuse(error.strerror or "its folder cannot be written to")
        self._check_socket()

    def _check_socket(self) -> None:
        """Refuses a path where a process listens, or where something else is. The socket of a dead server is free."""
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
            except (ConnectionRefusedError, FileNotFoundError):  # the socket's process is dead
                return
            except OSError:  # the process is too busy, or the socket is of another kind
                pass
        self.refuse("another server listens there")


class _Lock:
    """A lock file beside a socket. One server at a time holds the lock, for as long as the server lives."""

    def __init__(self, path: str) -> None:
        """Raises BlockingIOError if another server holds the lock, and OSError if the file cannot be made."""
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
            os.close(self._file)  # a server that has ended has removed the file meanwhile

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        if self._is_there():
            os.unlink(self._path)
        os.close(self._file)
