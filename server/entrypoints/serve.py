"""`sidelight serve`: its options, and the server from its start to a signal.

The command line imports this module in every installation. So torch is imported only when the command runs.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING

from ..settings import Settings, SettingsError, add_flags, list_settings, read_settings
from .loading import has_bars, load_models

if TYPE_CHECKING:
    from ..api import Address, Server
    from ..engine import EngineConfig
    from ..frontends import FrontEnds, Nursery
    from ..models import LoadedModel
    from ..operations import CallLimits, MetricsServer, Security, Telemetry

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sidelight serve`."""
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM. Returns the exit status."""
    try:
        settings = read_settings(args)
    except SettingsError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 2
    from ..operations import LogOptions, MetricsAddressError, TelemetryError, configure_log

    values = settings.values
    configure_log(LogOptions(getattr(logging, values.log_level.upper()), values.log_format == "json", values.log_texts))
    if values.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # which the hub's library reads when it is imported
    os.environ["USE_HUB_KERNELS"] = "0"  # transformers would fetch code from the hub where the package kernels is there
    from ..api import Address, AddressError
    from ..operations import SecurityError

    if os.getpid() == 1:  # see `_end_at_once`: loading takes its time, too
        signal.signal(signal.SIGTERM, _end_at_once)
    try:
        with Address(values.address) as address:  # with the ports open: loading takes its time
            security = _make_security(settings, address)
            nursery = _make_nursery(address, security, call_limits(values)) if values.frontends > 1 else None
            with _open_monitoring(settings) as monitoring:
                return _load_and_serve(settings, address, security, monitoring, nursery)
    except (AddressError, MetricsAddressError, SecurityError, TelemetryError) as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # Ctrl-C before the signal handlers are set
        return 130


def print_settings(args: argparse.Namespace) -> int:
    """Prints the settings with which `sidelight serve` would start. Returns the exit status."""
    try:
        settings = read_settings(args)
    except SettingsError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 2
    for line in list_settings(settings):
        print(line)
    return 0


@dataclass(frozen=True)
class _Monitoring:
    """What shows operators the server, as far as they want it."""

    metrics_server: MetricsServer | None = None
    telemetry: Telemetry | None = None


@contextmanager
def _open_monitoring(settings: Settings) -> Iterator[_Monitoring]:
    """Opens the port of the metrics, and OpenTelemetry. Raises MetricsAddressError and TelemetryError."""
    from ..operations import MetricsServer, make_telemetry

    values = settings.values
    certificate = (values.tls_cert, values.tls_key) if values.tls_cert else None
    with ExitStack() as stack:
        metrics_server = None
        if values.metrics_address:
            metrics_server = MetricsServer(values.metrics_address, certificate, insecure=values.insecure)
            stack.callback(metrics_server.close)
        telemetry = make_telemetry(importlib.metadata.version("sidelight"))
        if telemetry is not None:
            stack.callback(telemetry.close)
        yield _Monitoring(metrics_server, telemetry)


@contextmanager
def _objects_that_stay() -> Iterator[None]:
    """Keeps the garbage collector from what is made meanwhile: now, and whenever it runs later.

    For imports, whose objects stay to the end. To look through them again and again took a fifth of the processor time
    of a start: 6.0 s to SERVING became 4.8 s.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _make_security(settings: Settings, address: Address) -> Security:
    """Returns how the server is protected. Raises SecurityError."""
    from ..operations import make_security

    values = settings.values
    return make_security(
        is_local=address.is_local,
        is_path=address.is_path,
        tls_cert=values.tls_cert,
        tls_key=values.tls_key,
        tls_client_ca=values.tls_client_ca,
        tokens=values.tokens,
        unix_mode=None if values.unix_mode is None else int(values.unix_mode, 8),
        insecure=values.insecure,
        reflection=values.reflection,
    )


def _make_nursery(address: Address, security: Security, limits: CallLimits) -> Nursery:
    """Forks the process that starts front ends. Raises AddressError for an address that has one front end only."""
    address.share()
    import_server()
    from ..frontends import Nursery
    from .front_end import run_front_end

    return Nursery(lambda end: run_front_end(end, address, security, limits))


def _load_and_serve(
    settings: Settings, address: Address, security: Security, monitoring: _Monitoring, nursery: Nursery | None
) -> int:
    """Loads the models, and serves them at an address that is held."""
    logging.getLogger(__name__).info("loading %s", settings.models[0].path or "the bundled model")
    import_server()
    from ..frontends import FrontEndError
    from ..models import ModelError

    values = settings.values
    try:
        loaded, configs = load_models(settings)
        if nursery is None:
            return asyncio.run(_serve(loaded, configs, address, security, monitoring, values))
        return asyncio.run(_serve_with_front_ends(loaded, configs, address, monitoring, values, nursery))
    except (FrontEndError, ModelError) as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1


def import_server() -> None:
    """Imports what a server needs, torch among it."""
    # For GCC's OpenMP, which reads it when torch comes in: how often a thread looks for work before it falls asleep.
    # Enough for what is between two operations; those that look longer keep others from the core that all wait for.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with _objects_that_stay():
        import torch  # noqa: F401

        from ..api.server import Server  # noqa: F401


def call_limits(values: SimpleNamespace) -> CallLimits:
    """Returns the limits of connections, calls and streams."""
    from ..operations import CallLimits

    return CallLimits(
        max_message_bytes=values.max_message_mib * 1024**2,
        max_metadata_bytes=values.max_metadata_kib * 1024,
        max_concurrent_streams=values.max_concurrent_streams,
        min_ping_interval=values.min_ping_interval,
        max_connection_age=values.max_connection_age,
        arrival_timeout=values.arrival_timeout,
        reader_timeout=values.reader_timeout,
        stream_idle_timeout=values.stream_idle_timeout,
        max_stream_age=values.max_stream_age,
        max_texts_per_stream=values.max_texts_per_stream,
    )


def _end_at_once(number: int, _frame: FrameType | None = None) -> None:
    """Ends the process as a signal does that nothing handles.

    The kernel gives the first process of a container no such signal. That process exits with the status that a shell
    would see.
    """
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


async def _serve(
    loaded: list[LoadedModel],
    configs: list[EngineConfig],
    held: Address,
    security: Security,
    monitoring: _Monitoring,
    values: SimpleNamespace,
) -> int:
    """Serves until a signal, or until the engine fails; then to the end of the grace. Returns the exit status."""
    from ..api import Server

    server = Server(loaded, held, configs, security, monitoring.telemetry, call_limits(values))
    with _open_start(values):
        address = await server.start()
    return await _run(server, address, loaded, monitoring, values.grace)


@contextmanager
def _open_start(values: SimpleNamespace) -> Iterator[None]:
    """Shows that the engines start: where their steps or kernels are compiled, this takes up to a minute."""
    from .progress import open_progress

    with open_progress(quiet=not has_bars(values)) as progress:
        progress.add_task("starting", total=None)
        yield


async def _serve_with_front_ends(
    loaded: list[LoadedModel],
    configs: list[EngineConfig],
    held: Address,
    monitoring: _Monitoring,
    values: SimpleNamespace,
    nursery: Nursery,
) -> int:
    """Serves as `_serve` does, with front ends in processes of their own."""
    from ..frontends import FrontEnds

    front_ends = FrontEnds(loaded, configs, nursery, values.frontends)
    with _open_start(values):
        await front_ends.start()
    return await _run(front_ends, held.name, loaded, monitoring, values.grace)


async def _run(
    server: Server | FrontEnds, address: str, loaded: list[LoadedModel], monitoring: _Monitoring, grace: float
) -> int:
    """Serves at an address until a signal or a failure, and stops the server. Returns the exit status."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stopping.set)
    if (metrics_server := monitoring.metrics_server) is not None:
        metrics_server.start(server.method_metrics, server.model_metrics, lambda: server.is_serving)
        logging.getLogger(__name__).info("metrics at %s", metrics_server.url)
    # One line on stdout for a program that has started the server and waits for it. All else goes to the log.
    names = ", ".join(model.name for model in loaded)
    print(f"sidelight: serving {names} at {address}", flush=True)
    waits = [asyncio.ensure_future(event.wait()) for event in (stopping, server.failed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for number in _SIGNALS:  # a second signal ends the process at once
        loop.remove_signal_handler(number)
        signal.signal(number, _end_at_once)
    logging.getLogger(__name__).info("stopping within %g seconds", grace)
    await server.stop(grace)
    if server.failed.is_set():
        print("sidelight: the engine of a model has failed, or front ends; the log says why", file=sys.stderr)
    status = int(server.failed.is_set())
    if server.is_running:  # its thread is in a step that has no end, and Python would wait for it, or crash
        logging.getLogger(__name__).error("an engine is still at a step: the process ends without it")
        if monitoring.telemetry is not None:
            monitoring.telemetry.close()
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    return status
