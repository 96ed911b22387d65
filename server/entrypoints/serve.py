"""`sidelight serve`: its options, and the server from its start to a signal.

The command line imports this module in every installation. So torch is imported only when the command runs.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..api import Address

# Numbers above these are no wish, but a slip.
_MOST, _MOST_THREADS = 10**9, 1024

# Seconds for which running requests may go on after a signal: containers are killed after 10 seconds.
_GRACE_SECONDS = 7.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sidelight serve`."""
    _add_model_arguments(parser)
    _add_limits(parser)
    parser.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="the least serious lines that the log has; debug says too how each layer runs, and how loading proceeds",
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is served, where, and how the model runs."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a directory or an id on the Hugging Face hub; without one, the English-German model that comes along",
    )
    parser.add_argument(
        "--address",
        default="127.0.0.1:50051",
        metavar="HOST:PORT",
        help="where to listen; port 0 picks one; unix:PATH is a socket in the file system",
    )
    parser.add_argument("--name", help="what requests call the model; without one, its last path component or its id")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "float16", "bfloat16", "int8"),
        help="auto: float32 on a CPU, the checkpoint's own type on a GPU; int8: linear layers in 8 bits, on a CPU",
    )
    parser.add_argument(
        "--threads",
        type=_threads,
        metavar="N",
        help="CPU threads for the model; without it, all cores, or fewer while others want them too",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="have torch.compile make one graph of a step; for GPUs, as a step is then of all slots and --max-length",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Adds how much the server takes on."""
    parser.add_argument("--max-length", type=_positive, metavar="N", help="the most tokens of a source or a target")
    parser.add_argument(
        "--max-slots", type=_positive, default=32, metavar="N", help="the most requests worked on at once"
    )
    parser.add_argument(
        "--memory-fraction",
        type=_fraction,
        default=0.5,
        metavar="X",
        help="the share of the free memory that the slots' caches may take; fewer slots where it does not do",
    )
    parser.add_argument("--max-waiting", type=_positive, default=1024, metavar="N", help="requests queued at most")
    parser.add_argument(
        "--max-feature-mib", type=_positive, default=256, metavar="N", help="MiB of recordings queued at most"
    )


def _whole_number(text: str, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= most:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {most:,}")
    return number


def _positive(text: str) -> int:
    return _whole_number(text, _MOST)


def _threads(text: str) -> int:
    return _whole_number(text, _MOST_THREADS)


def _fraction(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError("must be a number above 0 and at most 1")
    return number


def run(args: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM. Returns the exit status."""
    _configure_log(getattr(logging, args.log_level.upper()))
    from ..api import Address, AddressError

    try:
        with Address(args.address) as address:  # before anything that takes its time
            return _load_and_serve(args, address)
    except AddressError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # Ctrl-C before the signal handlers are set
        return 130


def _configure_log(level: int) -> None:
    """Sends the log to standard error: Sidelight's own lines from a level on, those of libraries from INFO on."""
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=max(level, logging.INFO), format=form, stream=sys.stderr)
    logging.getLogger("sidelight").setLevel(level)
    logging.getLogger("httpx").setLevel(logging.WARNING)


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


def _hide_loading_bar() -> None:
    """Hides transformers' progress bar for weights, but not the one of the hub for downloads, which may take long."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    has_download_bars = not are_progress_bars_disabled()
    disable_progress_bar()  # the hub's as well
    if has_download_bars:
        enable_progress_bars()


def _load_and_serve(args: argparse.Namespace, address: Address) -> int:
    """Loads the model, and serves it at an address that is held."""
    logging.getLogger(__name__).info("loading %s", args.model or "the bundled model")
    # For GCC's OpenMP, which reads it when torch comes in: how often a thread looks for work before it falls asleep.
    # Enough for what is between two operations; those that look longer keep others from the core that all wait for.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    with _objects_that_stay():
        import torch

        from ..api.server import Server  # noqa: F401  (used by _serve)
        from ..models import ModelError, load
        from ..runner.thread_tuner import thread_counts

    threads = (args.threads,) if args.threads else thread_counts()
    if not args.threads and "OMP_NUM_THREADS" in os.environ:
        threads = (torch.get_num_threads(),)
    # One thread loads the model, for two reasons. Layers are timed during loading, and other processes disturb the
    # timing least if one thread runs. And OpenMP would keep a pool of threads for this thread besides the engine's
    # pool: with more threads than cores, all sleep between two operations, and a step on 2 cores takes twice the time.
    torch.set_num_threads(1)
    if args.log_level != "debug":
        _hide_loading_bar()
    try:
        loaded = load(
            args.model,
            name=args.name,
            device=args.device,
            dtype=args.dtype,
            max_length=args.max_length,
            compiled=args.compile,
        )
        torch.set_num_threads(threads[-1])
        return asyncio.run(_serve(loaded, args, threads, address))
    except ModelError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1


async def _serve(loaded: object, args: argparse.Namespace, threads: tuple[int, ...], held: Address) -> int:
    """Serves until a signal, or until the engine fails. Returns the exit status."""
    from ..api import Server
    from ..engine import EngineConfig
    from ..models import LoadedModel

    assert isinstance(loaded, LoadedModel)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    limits = EngineConfig(
        max_running=args.max_slots,
        max_waiting=args.max_waiting,
        max_feature_bytes=args.max_feature_mib * 1024**2,
        memory_fraction=args.memory_fraction,
        thread_counts=threads,
    )
    server = Server([loaded], held, limits)
    address = await server.start()
    # One line on stdout for a program that has started the server and waits for it. All else goes to the log.
    print(f"sidelight: serving {loaded.name} at {address}", flush=True)
    waits = [asyncio.ensure_future(event.wait()) for event in (stopping, server.failed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for number in (signal.SIGINT, signal.SIGTERM):  # a second signal ends the process at once
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    logging.getLogger(__name__).info("stopping")
    await server.stop(_GRACE_SECONDS)
    if server.failed.is_set():
        print(f"sidelight: the engine of {loaded.name} has failed; the log says why", file=sys.stderr)
        return 1
    return 0
