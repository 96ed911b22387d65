"""`sidelight top`: what a server does now, in the terminal, from its metrics."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from .top_figures import Scrape

# Where OpenTelemetry's exporter for Prometheus listens by convention, too.
_DEFAULT_ADDRESS = "127.0.0.1:9464"

# Seconds between two scrapes, and how many scrapes the rates are of.
_INTERVAL, _NUM_SCRAPES = 1.0, 10

# Seconds that a server may take to answer, and bytes that the answer may have.
_MAX_SECONDS, _MAX_BYTES = 5.0, 16 * 1024**2


class _UnavailableError(Exception):
    """No metrics come from an address. The message is for people."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sidelight top`."""
    parser.add_argument(
        "--metrics",
        default=os.environ.get("SIDELIGHT_METRICS_ADDRESS") or _DEFAULT_ADDRESS,
        metavar="ADDRESS",
        help="the server's --metrics-address, or the URL of its metrics; without it, SIDELIGHT_METRICS_ADDRESS or "
        f"{_DEFAULT_ADDRESS}",
    )
    parser.add_argument(
        "--tls-ca", metavar="FILE", help="read the metrics by https; this authority vouches for the server, as PEM"
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="print the tables once, with rates of one second, and end; also where the output is no terminal",
    )


def run(args: argparse.Namespace) -> int:
    """Shows the tables until Ctrl-C, or once. Returns the exit status."""
    from rich.console import Console

    console = Console(highlight=False)
    try:
        source = _Source(args.metrics, args.tls_ca)
        first = source.read()
        if args.once or not console.is_terminal:
            _print_once(console, source, first)
        else:
            _show(console, source, first)
    except _UnavailableError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1
    return 0


def _print_once(console: Console, source: _Source, first: Scrape) -> None:
    from .top_figures import compare
    from .top_tables import render

    time.sleep(_INTERVAL)
    console.print(render(compare(source.read(), first), source.address))


def _show(console: Console, source: _Source, first: Scrape) -> None:
    """Shows the tables, and renews them until Ctrl-C. A server that is gone may come again."""
    from rich.live import Live

    from .top_figures import compare
    from .top_tables import render

    scrapes = deque([first], maxlen=_NUM_SCRAPES + 1)
    view = render(compare(first, first), source.address)
    with Live(view, console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(_INTERVAL)
            problem = ""
            try:
                scrape = source.read()
                if not scrape.is_of_same_process(scrapes[-1]):
                    scrapes.clear()
                scrapes.append(scrape)
            except _UnavailableError as error:
                problem = str(error)
            live.update(render(compare(scrapes[-1], scrapes[0]), source.address, problem), refresh=True)


class _Source:
    """Where the metrics of a server are.

    Attributes:
        address: As it was given.
    """

    def __init__(self, address: str, tls_ca: str | None) -> None:
        """Raises _UnavailableError where the file of the authority is wrong."""
        import ssl
        from urllib.request import HTTPSHandler, ProxyHandler, build_opener

        self.address = address
        scheme = "http" if tls_ca is None else "https"
        self._url = address if "://" in address else f"{scheme}://{address}/metrics"
        try:
            handler = HTTPSHandler(context=ssl.create_default_context(cafile=tls_ca))
        except OSError as error:
            raise _UnavailableError(f"--tls-ca: {tls_ca}: {error.strerror or error}") from None
        # Without the proxies of the environment: the port is on this machine, or near.
        self._opener = build_opener(ProxyHandler({}), handler)

    def read(self) -> Scrape:
        """Reads the metrics of a server now. Raises _UnavailableError."""
        from http.client import HTTPException

        from .top_figures import Scrape

        try:
            with self._opener.open(self._url, timeout=_MAX_SECONDS) as answer:
                return Scrape(answer.read(_MAX_BYTES).decode())
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            reason = getattr(reason, "strerror", None) or reason
            message = f"no metrics at {self._url}: {reason}; a server has them with --metrics-address"
            raise _UnavailableError(message) from None
        except ValueError as error:  # a wrong URL, or a page of something else
            raise _UnavailableError(f"no metrics at {self._url}: {error}") from None
