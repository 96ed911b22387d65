"""The contenders of `bench_engine.py` by name: Sidelight's servers, and the programs beside it.

Each contender has a process of its own and uses all cores.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import multiprocessing
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import load_client
import numpy as np
import peer_contenders
import torch
import transformers
from contender import Contender, Outcome
from load_client import Stream
from sidelight.client.cli.demo import ServerError
from workloads import Size, Workload

LABELS = {
    "sidelight": "(a) Sidelight, all cross-attention",
    "off": "(b) Sidelight, capture off",  # next to (a): the report compares the two run by run
    "sidelight-int8": "(a) Sidelight int8, all cross-attention",
    "generate": "(c) generate, SDPA, no attention",
    "attentions": "(d) generate, output_attentions",
    "inseq": "(e) Inseq, one by one",
    "ct2": "(f) CTranslate2, its attention",
    "ct2-sorted": "(f) CTranslate2, sorted by length",
    "ct2-int8": "(f) CTranslate2 int8, its attention",
    "ct2-int8-sorted": "(f) CTranslate2 int8, sorted by length",
}


# `--dtype` of a server → the contenders that are clients of this server.
_SERVED = {"float32": ("sidelight", "off"), "int8": ("sidelight-int8",)}


@contextlib.contextmanager
def start_contenders(
    names: Sequence[str], workload: Workload, size: Size, scratch: Path, serve_options: Sequence[str]
) -> Iterator[tuple[dict[str, Contender], dict[str, str]]]:
    """Starts contenders and their servers. Gives the contenders, and why other contenders cannot run, by name."""
    contenders: dict[str, Contender] = {}
    refusals: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for dtype, served in _SERVED.items():
            clients = [name for name in served if name in names]
            if not clients:
                continue
            options = ["--dtype", dtype, *serve_options]
            try:
                address = stack.enter_context(load_client.serve(workload.folder, workload.name, options))
            except ServerError as error:
                refusals |= dict.fromkeys(clients, f"the server refused `--dtype {dtype}`: {error}")
                continue
            for name in clients:
                contenders[name] = Sidelight(address, workload, size, capture=name != "off")
        for name in names:
            if name in itertools.chain(*_SERVED.values()) or (workload.all_at_once and "sorted" in name):
                continue
            if name.startswith("ct2"):
                peer_contenders.convert(workload, peer_contenders.converted_folder(workload, scratch, name))
            contenders[name] = stack.enter_context(contextlib.closing(ContenderProcess(name, workload, scratch)))
        yield {name: contenders[name] for name in names if name in contenders}, refusals


class Sidelight(Contender):
    """A client of a server process, over gRPC."""

    def __init__(self, address: str, workload: Workload, size: Size, *, capture: bool) -> None:
        self.address, self._workload, self._size, self._capture = address, workload, size, capture

    def run(self, concurrency: int) -> Outcome:
        seconds, streams = self._send_all(concurrency)
        return Outcome(seconds, [stream.target for stream in streams], streams)

    def cross(self) -> np.ndarray | None:
        _, streams = self._send_all(1, keep=True)
        return load_client.cross_of(streams[0].steps) if self._capture else None

    def _send_all(self, concurrency: int, *, keep: bool = False) -> tuple[float, list[Stream]]:
        size = self._size
        capture, axes = (
            (load_client.EVERY_HEAD, (size.layers, size.heads)) if self._capture else (load_client.NOTHING, ())
        )
        return load_client.run(self.address, self._workload, concurrency, capture=capture, axes=axes, keep=keep)


class ContenderProcess(Contender):
    """A contender that runs in a process of its own.

    Two contenders in one process, each with threads for all cores, would give the process more threads than cores. Then
    libgomp's threads sleep while they wait for work, instead of spinning. That doubles CTranslate2's time, and
    multiplies it by ten for a small model.
    """

    def __init__(self, name: str, workload: Workload, scratch: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.one_by_one = name == "inseq"
        self._name = name
        self._connection, other_end = context.Pipe()
        self._process = context.Process(target=_answer_calls, args=(name, workload, scratch, other_end), daemon=True)
        self._process.start()
        other_end.close()

    def run(self, concurrency: int) -> Outcome:
        return self._call("run", concurrency)

    def cross(self) -> np.ndarray | None:
        return self._call("cross")

    def _call(self, method: str, *arguments: int) -> Any:
        self._connection.send((method, arguments))
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError(f"{self._name} has died") from None
        if isinstance(answer, Exception):
            raise RuntimeError(f"{self._name} failed") from answer
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join()


def prepare() -> None:
    """Silences the libraries of this process, and makes torch use all cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(os.cpu_count() or 1)


def _answer_calls(name: str, workload: Workload, scratch: Path, connection: Any) -> None:
    """Runs in the process of a contender. Receives calls of methods and sends the results, until the pipe closes."""
    prepare()
    contender: Contender | None = None
    with contextlib.suppress(EOFError):
        while True:
            method, arguments = connection.recv()
            try:
                if contender is None:
                    contender = _make_contender(name, workload, scratch)
                answer = getattr(contender, method)(*arguments)
            except Exception as error:
                answer = error
            connection.send(answer)
            # The loaded model stays. Without `freeze` the garbage collector would look through it during a later run.
            gc.collect()
            gc.freeze()


def _make_contender(name: str, workload: Workload, scratch: Path) -> Contender:
    if name == "inseq":
        return peer_contenders.Inseq(workload)
    if name in ("generate", "attentions"):
        return peer_contenders.Generate(workload, attention=name == "attentions")
    folder = peer_contenders.converted_folder(workload, scratch, name)
    return peer_contenders.CTranslate2(workload, folder, by_length="sorted" in name)
