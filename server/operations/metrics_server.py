"""The port that Prometheus reads from: `GET /metrics`, by https where the server has a certificate.

The port asks for no token and for no certificate of the client: metrics have nothing of what clients send.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, make_wsgi_app

from .exposition import MetricsCollector, ReadinessCollector
from .metrics import MethodMetrics, ModelMetrics
from .watched_files import WatchedFiles

log = logging.getLogger(__name__)

# Seconds that a connection may take in all. Prometheus gives up after 10 seconds.
_MAX_SECONDS = 10.0
# How many connections may be open, and how many of them are answered at the same time.
_MAX_CONNECTIONS, _NUM_THREADS = 32, 4


class MetricsAddressError(Exception):
    """The port of the metrics cannot be opened."""


class _TlsContext:
    """The certificate and the key of two PEM files, which may be replaced. For any thread."""

    def __init__(self, chain_path: str, key_path: str) -> None:
        """Reads the files. Raises OSError, of which ssl's errors are a kind."""
        self._paths = chain_path, key_path
        self._files = WatchedFiles(self._paths)
        self._files.have_changed()
        self._lock = threading.Lock()
        self._current = self._read()

    def current(self) -> ssl.SSLContext:
        """Returns the newest context. Files that do not fit together, as for a moment, change nothing."""
        with self._lock:
            if self._files.have_changed():
                try:
                    self._current = self._read()
                except OSError as error:
                    log.warning("the certificate of the metrics stays as it is: %s", error.strerror or error)
            return self._current

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._paths, password="")  # without a password, OpenSSL would ask the terminal for one
        return context


class _Server(WSGIServer):
    """A bounded number of threads answers a bounded number of connections, each for a bounded time."""

    request_queue_size = _MAX_CONNECTIONS
    tls: _TlsContext | None = None

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._pool = ThreadPoolExecutor(_NUM_THREADS, "metrics")
        self._open: dict[socket.socket, float] = {}  # since when each socket is open, by the monotonic clock
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Has a thread answer a request, or closes its connection where too many are open."""
        if len(self._open) >= _MAX_CONNECTIONS:
            self.shutdown_request(request)
            return
        request.settimeout(_MAX_SECONDS)
        self._open[request] = time.monotonic()
        self._pool.submit(self._answer, request, client_address)

    def _answer(self, request: socket.socket, client_address: Any) -> None:
        since = self._open.get(request, 0.0)
        try:
            if self.tls is None:
                self.finish_request(request, client_address)
                return
            # The encrypted socket takes the place of the other one, whose descriptor it has. The handshake comes after,
            # so that the connection can be ended while it waits.
            context = self.tls.current()
            with context.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as encrypted:
                self._open[encrypted] = since
                try:
                    encrypted.do_handshake()
                    self.finish_request(encrypted, client_address)
                finally:
                    del self._open[encrypted]
        except Exception as error:  # the client has gone, is too slow, or speaks something else
            log.debug("a client of the metrics got no answer: %s", error)
        finally:
            self._open.pop(request, None)
            self.shutdown_request(request)

    def service_actions(self) -> None:
        """Ends connections that take too long. Called twice in a second."""
        self._end_connections(time.monotonic() - _MAX_SECONDS)

    def server_close(self) -> None:
        """Closes the port and all connections."""
        super().server_close()
        self._end_connections(time.monotonic())
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _end_connections(self, begun_before: float) -> None:
        for connection, since in list(self._open.items()):
            if since <= begun_before:
                with contextlib.suppress(OSError):  # the thread has closed it meanwhile
                    connection.shutdown(socket.SHUT_RDWR)

    def server_bind(self) -> None:
        # The server of wsgiref asks the DNS for its own name here, which may take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "", self.server_address[1]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = _MAX_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name is the base class's)
        """Writes nothing: a line for each scrape would hide the other lines."""


class MetricsServer:
    """A port for metrics. From the beginning it has those of the process; from `start` on it has all."""

    def __init__(self, address: str, certificate: tuple[str, str] | None = None, *, insecure: bool = False) -> None:
        """Opens the port. Raises MetricsAddressError.

        Args:
            address: HOST:PORT; port 0 picks one.
            certificate: The files of a certificate and of its key, for TLS.
            insecure: Whether other machines may reach the port although connections are not encrypted.
        """
        self._server = _open(address)
        self._has_tls = certificate is not None
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        try:
            if certificate is not None:
                self._server.tls = _TlsContext(*certificate)
            elif not insecure and not ipaddress.ip_address(str(self._server.server_address[0])).is_loopback:
                raise MetricsAddressError(
                    f"--metrics-address: other machines can reach {address}, and connections would not be encrypted: "
                    "give --tls-cert and --tls-key, listen on 127.0.0.1, or say --insecure"
                )
        except OSError as error:
            self._server.server_close()
            raise MetricsAddressError(f"--tls-cert: {certificate}: {error.strerror or error}") from None
        except MetricsAddressError:
            self._server.server_close()
            raise
        self._registry = CollectorRegistry()
        self._is_serving: Callable[[], bool] = lambda: False
        self._registry.register(ReadinessCollector(lambda: self._is_serving()))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._server.set_app(make_wsgi_app(self._registry))
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the metrics are, with the real port."""
        host, port = self._server.server_address[:2]
        host = f"[{host}]" if ":" in str(host) else host
        return f"{'https' if self._has_tls else 'http'}://{host}:{port}/metrics"

    def start(
        self,
        methods: Sequence[MethodMetrics],
        models: Sequence[ModelMetrics],
        is_serving: Callable[[], bool] = lambda: True,
    ) -> None:
        """Shows the metrics of methods and models too, and whether the server serves."""
        self._registry.register(MetricsCollector(methods, models))
        self._is_serving = is_serving

    def close(self) -> None:
        """Closes the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _open(address: str) -> _Server:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        if not host or not 0 <= int(port) <= 65535:
            raise ValueError
    except ValueError:
        raise MetricsAddressError(f"--metrics-address: {address} is not HOST:PORT") from None
    kind = type("_Server6", (_Server,), {"address_family": socket.AF_INET6}) if ":" in host else _Server
    try:
        return kind((host, int(port)), _Handler)
    except OSError as error:
        reason = error.strerror or error
        raise MetricsAddressError(f"--metrics-address: cannot listen on {address}: {reason}") from None
