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
from dataclasses import dataclass, replace
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING

from ..settings import ModelSettings, Settings, SettingsError, add_flags, list_settings, read_settings

if TYPE_CHECKING:
    from ..api import Address, Server
    from ..engine import EngineConfig
    from ..frontends import FrontEnds, Nursery
    from ..models import LoadedModel
    from ..operations import CallLimits, MetricsServer, ModelLimits, Security, Telemetry

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


def _hide_bars(*, keeps_downloads: bool) -> None:
    """Hides transformers' progress bar for weights, and the one of the hub for downloads unless that is kept."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    has_download_bars = keeps_downloads and not are_progress_bars_disabled()
    disable_progress_bar()  # the hub's as well
    if has_download_bars:
        enable_progress_bars()


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


def load_models(settings: Settings) -> tuple[list[LoadedModel], list[EngineConfig]]:
    """Loads all models. Returns them with how much the engine of each takes on. Raises ModelError."""
    import torch

    counts = [_thread_counts(model) for model in settings.models]
    # One thread loads the models, for two reasons. Layers are timed during loading, and other processes disturb the
    # timing least if one thread runs. And OpenMP would keep a pool of threads for this thread besides the engine's
    # pool: with more threads than cores, all sleep between two operations, and a step on 2 cores takes twice the time.
    torch.set_num_threads(1)
    is_json = settings.values.log_format == "json"
    if settings.values.log_level != "debug" or is_json:
        _hide_bars(keeps_downloads=not is_json)  # downloads may take long
    loaded = _load_models(settings)
    torch.set_num_threads(counts[0][-1])
    return loaded, _engine_configs(loaded, settings, counts)


def _thread_counts(model: ModelSettings) -> tuple[int, ...]:
    """Returns the numbers of threads that a model may use. Call this before torch's own number is changed."""
    import torch

    from ..runner.thread_tuner import thread_counts

    if model.values.threads:
        return (model.values.threads,)
    return (torch.get_num_threads(),) if "OMP_NUM_THREADS" in os.environ else thread_counts()


def _load_models(settings: Settings) -> list[LoadedModel]:
    """Loads all models, one after another. Raises ModelError."""
    from ..models import BUNDLED_NAME, ModelError, load

    loaded: list[LoadedModel] = []
    for model in settings.models:
        if loaded:
            logging.getLogger(__name__).info("loading %s", model.path)
        if model.name in [other.name for other in loaded]:
            raise ModelError(f"two models are named {model.name}: give one of them another name")
        values = model.values
        try:
            found = load(
                model.path,
                name=model.name,
                device=values.device,
                dtype=values.dtype,
                max_length=values.max_length,
                compiled=values.compile,
            )
        except ModelError:
            raise
        except Exception as error:  # which nobody has foreseen
            logging.getLogger(__name__).debug("loading failed", exc_info=True)
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(
                f"cannot load {model.path or BUNDLED_NAME}: {reason}; --log-level debug says more"
            ) from error
        loaded.append(replace(found, limits=_model_limits(values)))
    return loaded


def _engine_configs(loaded: list[LoadedModel], settings: Settings, counts: list[tuple[int, ...]]) -> list[EngineConfig]:
    """Returns how much the engine of each model takes on. The models share the memory of their device."""
    from ..engine import EngineConfig
    from ..runner import divide_memory

    models = [model.values for model in settings.models]
    fractions = divide_memory(loaded, [values.max_slots for values in models], settings.values.memory_fraction)
    return [
        EngineConfig(
            max_running=values.max_slots,
            max_waiting=values.max_waiting,
            max_feature_bytes=values.max_feature_mib * 1024**2,
            memory_fraction=fraction,
            thread_counts=thread_counts,
            step_timeout=values.step_timeout,
            max_unread_bytes=values.max_unread_kib * 1024,
        )
        for values, fraction, thread_counts in zip(models, fractions, counts, strict=True)
    ]


def _model_limits(values: SimpleNamespace) -> ModelLimits:
    """Returns the limits of requests to a model with these settings."""
    from ..operations import ModelLimits

    return ModelLimits(
        max_new_tokens=values.max_new_tokens,
        max_step_bytes=values.max_step_mib * 1024**2,
        max_pass_bytes=values.max_pass_mib * 1024**2,
        max_follow_streams=values.max_follow_streams,
    )


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
    address = await server.start()
    return await _run(server, address, loaded, monitoring, values.grace)


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
