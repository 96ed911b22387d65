"""How a client connects: the address, TLS and the token, from arguments or from the environment.

An argument comes before its variable: SIDELIGHT_ADDRESS, SIDELIGHT_TOKEN or SIDELIGHT_TOKEN_FILE, SIDELIGHT_TLS (1 or
0), SIDELIGHT_TLS_CA, SIDELIGHT_TLS_CLIENT_CERT with SIDELIGHT_TLS_CLIENT_KEY, SIDELIGHT_TLS_SERVER_NAME. The module
knows no requests.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import grpc

from .errors import field_errors, invalid_argument
from .validation import check_fields, check_value

DEFAULT_ADDRESS = "127.0.0.1:50051"

_CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    # gRPC receives at most 4 MiB by default. One step of a large model, with no reduction, is larger.
    ("grpc.max_receive_message_length", -1),
    # While a call is open, the client asks the connection for a sign of life. Without that, a call would wait for ever
    # where the host of the server or the network between is gone, and nothing says that the connection is closed.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a stream may be quiet for long
)

# What gRPC can send as metadata.
_TOKEN = re.compile(r"[!-~]+")

# The host of an address, with or without gRPC's schemes for names and numbers.
_HOST = re.compile(r"(?:(?:dns:(?:///?)?|ipv4:|ipv6:))?(?P<host>\[[^\]]+\]|[^:/]+)(?::[0-9]+)?")


Stub = TypeVar("Stub")


@dataclass(frozen=True)
class TlsOptions:
    """How a connection is encrypted. All files are PEM.

    Attributes:
        ca: A file with the authorities that may vouch for the server; None: the authorities that gRPC brings along.
        client_cert: A file with the client's certificate, for servers that want one.
        client_key: A file with its private key.
        server_name: The name that the server's certificate must have; None: the host of the address.
    """

    ca: str | Path | None = None
    client_cert: str | Path | None = None
    client_key: str | Path | None = None
    server_name: str | None = None


class ConnectionOptions(TypedDict, total=False):
    """How to connect: arguments of `Client` and `AsyncClient`. What is absent or None comes from the environment.

    Attributes:
        tls: True, a file with authorities, or a TlsOptions; False: no encryption.
        token: The bearer token; a Path: a file that has the token, and is read at each call; "": no token.
        insecure: Whether the token may be sent over a connection that is neither encrypted nor within this machine.
        credentials: Credentials of gRPC, instead of `tls`.
        options: Further gRPC channel arguments.
    """

    tls: bool | str | Path | TlsOptions | None
    token: str | Path | None
    insecure: bool
    credentials: grpc.ChannelCredentials | None
    options: Sequence[tuple[str, Any]]


class Connection:
    """The way to a server. Opens channels, and adds the token to calls."""

    def __init__(self, address: str | None, options: ConnectionOptions) -> None:
        """Reads the files of certificates. Raises InvalidArgumentError."""
        for name, hint in (("address", str | None), *_HINTS.items()):
            check_value(address if name == "address" else options.get(name), hint, name)
        self._address = default_address() if address is None else address
        with field_errors("address"):
            self._address.encode()  # gRPC's own error would not be a SidelightError
        tls = options.get("tls")
        self._credentials = options.get("credentials")
        if self._credentials is not None and tls:
            raise invalid_argument("tls", "goes without credentials")
        settings = None if self._credentials is not None else _find_tls(tls)
        self._arguments = (*_CHANNEL_OPTIONS, *(options.get("options") or ()))
        if settings is not None:
            self._credentials = _load_credentials(settings)
            if settings.server_name is not None:
                self._arguments += (("grpc.ssl_target_name_override", settings.server_name),)
        self._token = _find_token(options.get("token"))
        self._read_token()  # so that a wrong file is an error at once
        is_safe = self._credentials is not None or _is_local(self._address) or options.get("insecure")
        if self._token is not None and not is_safe:
            message = "is not sent to another machine without encryption: give tls, or insecure=True"
            raise invalid_argument("token", message)

    def open(self) -> grpc.Channel:
        """Opens a channel for synchronous calls, without connecting."""
        if self._credentials is None:
            return grpc.insecure_channel(self._address, options=self._arguments)
        return grpc.secure_channel(self._address, self._credentials, options=self._arguments)

    def open_async(self) -> grpc.aio.Channel:
        """Opens a channel for asyncio, without connecting."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, options=self._arguments)
        return grpc.aio.secure_channel(self._address, self._credentials, options=self._arguments)

    def add_metadata(self, stub: Stub) -> Stub:
        """Adds the token and the caller's trace to the calls of a stub. Returns the stub."""
        for name, method in list(vars(stub).items()):
            setattr(stub, name, self._add_metadata(method))
        return stub

    def _add_metadata(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            token = self._read_token()
            authorization = () if token is None else (("authorization", f"Bearer {token}"),)
            return method(*args, metadata=(*authorization, *_trace_metadata()), **options)

        return call

    def _read_token(self) -> str | None:
        token = self._token
        if token is None:
            return None
        if isinstance(token, Path):
            token = _read_file(token, "token").decode("utf-8", "replace").strip()
        if not _TOKEN.fullmatch(token):
            raise invalid_argument("token", "must be printable ASCII characters without spaces")
        return token


def _trace_metadata() -> tuple[tuple[str, str], ...]:
    """Returns the caller's span as W3C Trace Context; empty where no part of the process uses OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())


_HINTS: dict[str, Any] = {
    "tls": bool | str | Path | TlsOptions | None,
    "token": str | Path | None,
    "insecure": bool | None,
    "credentials": grpc.ChannelCredentials | None,
    "options": Sequence[tuple[str, Any]] | None,
}


def default_address() -> str:
    """Returns the address for clients that give none."""
    return os.environ.get("SIDELIGHT_ADDRESS") or DEFAULT_ADDRESS


def _find_tls(tls: bool | str | Path | TlsOptions | None) -> TlsOptions | None:
    """Returns how to encrypt, from the argument or the environment; None: not at all."""
    if isinstance(tls, TlsOptions):
        check_fields(tls, "tls")
        return tls
    if isinstance(tls, str | Path):
        return TlsOptions(ca=tls)
    if tls is not None:
        return complete_tls() if tls else None
    switch = os.environ.get("SIDELIGHT_TLS", "").lower()
    if switch not in ("", "0", "1", "false", "true"):
        raise invalid_argument("SIDELIGHT_TLS", "must be 1 or 0")
    found = complete_tls()
    wants_tls = found != TlsOptions() if not switch else switch in ("1", "true")
    return found if wants_tls else None


def complete_tls(given: TlsOptions | None = None) -> TlsOptions:
    """Returns the options. An option that is None has the value of the environment."""
    fields = vars(given or TlsOptions())
    found = {name: os.environ.get(f"SIDELIGHT_TLS_{name.upper()}") or None for name in fields}
    return TlsOptions(**{name: found[name] if value is None else value for name, value in fields.items()})


def _load_credentials(tls: TlsOptions) -> grpc.ChannelCredentials:
    """Reads the files of a TlsOptions. gRPC would report a wrong file only when it connects, and without a name."""
    ca = None if tls.ca is None else _read_file(tls.ca, "tls.ca")
    if ca is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=ca.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise invalid_argument("tls.ca", f"{tls.ca} must be certificates, as PEM") from None
    if tls.client_cert is None or tls.client_key is None:
        if tls.client_cert is not tls.client_key:
            raise invalid_argument("tls.client_key", "and client_cert go together")
        return grpc.ssl_channel_credentials(ca)
    certificate, key = _read_file(tls.client_cert, "tls.client_cert"), _read_file(tls.client_key, "tls.client_key")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(tls.client_cert, tls.client_key, _refuse_password)
    except (ssl.SSLError, OSError):
        files = f"{tls.client_cert} and {tls.client_key}"
        raise invalid_argument("tls.client_cert", f"{files} must be a certificate and its key, as PEM") from None
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _refuse_password() -> str:
    raise invalid_argument("tls.client_key", "is encrypted, which this client cannot read")


def _find_token(token: str | Path | None) -> str | Path | None:
    """Returns the token or its file, from the argument or the environment; None: there is none."""
    if token is not None:
        return token or None
    if value := os.environ.get("SIDELIGHT_TOKEN"):
        return value
    path = os.environ.get("SIDELIGHT_TOKEN_FILE")
    return Path(path) if path else None


def _read_file(path: str | Path, field: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "cannot be read"
        raise invalid_argument(field, f"{path}: {reason}") from None


def _is_local(address: str) -> bool:
    """Whether an address is within this machine, as far as its text says."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    match = _HOST.fullmatch(address)
    host = match["host"].strip("[]") if match else ""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
