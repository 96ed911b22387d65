"""The port that Prometheus reads from: plain HTTP/1.1, `GET /metrics`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, make_wsgi_app

from .exposition import MetricsCollector
from .metrics import MethodMetrics, ModelMetrics

# Seconds that a client may take to send its request or to read the answer.
_MAX_SECONDS = 10.0


class MetricsAddressError(Exception):
    """The port of the metrics cannot be opened."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # The server of wsgiref asks the DNS for its own name here, which may take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "", self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of a client that goes away early."""


class _Handler(WSGIRequestHandler):
    timeout = _MAX_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name is the base class's)
        """Writes nothing: a line for each scrape would hide the other lines."""


class MetricsServer:
    """A port for metrics: open from the beginning, answering from `start` on."""

    def __init__(self, address: str) -> None:
        """`address` is HOST:PORT; port 0 picks one. Raises MetricsAddressError."""
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        try:
            if not host or not 0 <= int(port) <= 65535:
                raise ValueError
        except ValueError:
            raise MetricsAddressError(f"--metrics-address: {address} is not HOST:PORT") from None
        kind = type("_Server6", (_Server,), {"address_family": socket.AF_INET6}) if ":" in host else _Server
        try:
            self._server: _Server = kind((host, int(port)), _Handler)
        except OSError as error:
            reason = error.strerror or error
            raise MetricsAddressError(f"--metrics-address: cannot listen on {address}: {reason}") from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    @property
    def address(self) -> str:
        """The address with the real port."""
        host, port = self._server.server_address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"

    def start(self, methods: Sequence[MethodMetrics], models: Sequence[ModelMetrics]) -> None:
        """Answers scrapes from now on."""
        registry = CollectorRegistry()
        registry.register(MetricsCollector(methods, models))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._server.set_app(make_wsgi_app(registry))
        self._thread.start()

    def close(self) -> None:
        """Closes the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
