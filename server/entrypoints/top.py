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
        "--once",
        action="store_true",
        help="print the tables once, with rates of one second, and end; also where the output is no terminal",
    )


def run(args: argparse.Namespace) -> int:
    """Shows the tables until Ctrl-C, or once. Returns the exit status."""
    from rich.console import Console

    console = Console(highlight=False)
    try:
        first = _read_scrape(args.metrics)
        if args.once or not console.is_terminal:
            _print_once(console, args.metrics, first)
        else:
            _show(console, args.metrics, first)
    except _UnavailableError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1
    return 0


def _print_once(console: Console, address: str, first: Scrape) -> None:
    from .top_figures import compare
    from .top_tables import render

    time.sleep(_INTERVAL)
    console.print(render(compare(_read_scrape(address), first), address))


def _show(console: Console, address: str, first: Scrape) -> None:
    """Shows the tables, and renews them until Ctrl-C. A server that is gone may come again."""
    from rich.live import Live

    from .top_figures import compare
    from .top_tables import render

    scrapes = deque([first], maxlen=_NUM_SCRAPES + 1)
    with Live(render(compare(first, first), address), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(_INTERVAL)
            problem = ""
            try:
                scrape = _read_scrape(address)
                if not scrape.is_of_same_process(scrapes[-1]):
                    scrapes.clear()
                scrapes.append(scrape)
            except _UnavailableError as error:
                problem = str(error)
            live.update(render(compare(scrapes[-1], scrapes[0]), address, problem), refresh=True)


def _read_scrape(address: str) -> Scrape:
    """Reads the metrics of a server now. Raises _UnavailableError."""
    from http.client import HTTPException
    from urllib.request import ProxyHandler, build_opener

    from .top_figures import Scrape

    url = address if "://" in address else f"http://{address}/metrics"
    try:
        # Without the proxies of the environment: the port is on this machine, or near.
        with build_opener(ProxyHandler({})).open(url, timeout=_MAX_SECONDS) as answer:
            return Scrape(answer.read(_MAX_BYTES).decode())
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        reason = getattr(reason, "strerror", None) or reason
        raise _UnavailableError(f"no metrics at {url}: {reason}; a server has them with --metrics-address") from None
    except ValueError as error:  # a wrong URL, or a page of something else
        raise _UnavailableError(f"no metrics at {url}: {error}") from None
