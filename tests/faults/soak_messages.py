"""Mutated requests of every RPC, most of them in process, the others over a socket to a server in another process.

Checked of each: no fault that is unforeseen, no UNKNOWN, and nothing of the inside of the server in an error. A
reference request gets the same answer afterwards. Run by `make soak`, or by itself:
`python tests/faults/soak_messages.py [--messages 600000] [--over-socket 20000] [--seed 0]`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))

import grpc
import torch
from fuzzing import Fuzzer, call_server, fuzz, reference_answer
from load_client import COMMAND, start_server
from rich.console import Console
from rich.markup import escape
from sidelight.server.models import bundled_model, load
from soak import resident

_CONSOLE = Console(width=120, highlight=False)
_MAX_SHOWN = 2000  # characters of a problem


def main() -> int:
    """Prints how calls ended, and each kind of problem once. Returns 1 where there is a problem."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--messages", type=int, default=600_000, metavar="N", help="calls in process")
    parser.add_argument("--over-socket", type=int, default=20_000, metavar="N", help="calls over a socket")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    fuzzer = Fuzzer(load(), random.Random(options.seed))
    problems = _fuzz("in process", fuzzer, options.messages, fuzzer.validate) if options.messages else Counter()
    if options.over_socket:
        problems += _fuzz_server(fuzzer, options.over_socket)
    _CONSOLE.print(f"{problems.total():,} problems")
    return 1 if problems else 0


def _fuzz_server(fuzzer: Fuzzer, count: int) -> Counter[str]:
    """Sends mutants to a server. A server that answers the reference request otherwise afterwards is a problem."""
    command = [COMMAND, "serve", str(bundled_model()), "--name", "bundled"]
    with start_server(command, {}) as (address, process), grpc.insecure_channel(address) as channel:
        before = reference_answer(channel)
        num_warm = min(2000, count // 4)
        problems = _fuzz("over a socket, to warm up", fuzzer, num_warm, lambda *call: call_server(channel, *call))
        memory = resident(process)
        problems += _fuzz("over a socket", fuzzer, count - num_warm, lambda *call: call_server(channel, *call))
        _CONSOLE.print(f"memory of the server: {memory / 1e6:.1f} MB, then {resident(process) / 1e6:.1f} MB")
        if reference_answer(channel) != before:
            problems["the reference request is answered otherwise"] += 1
        else:
            _CONSOLE.print("the reference request is answered as before")
    return problems


def _fuzz(name: str, fuzzer: Fuzzer, count: int, end: Callable[[str, Sequence[bytes]], str]) -> Counter[str]:
    """Draws calls and ends them. Returns how often each kind of problem occurred."""
    problems: Counter[str] = Counter()

    def note(path: str, messages: Sequence[bytes]) -> str:
        try:
            return end(path, messages)
        except Exception as problem:
            frames = traceback.extract_tb(problem.__traceback__)
            kind = f"{type(problem).__name__} at {frames[-1].filename}:{frames[-1].lineno}"
            if isinstance(problem, AssertionError):
                kind = str(problem.args[0][0] if problem.args and isinstance(problem.args[0], tuple) else problem)[:80]
            problems[kind] += 1
            if problems[kind] == 1:
                shown = f"{kind}: {problem}\n{path} {[bytes(message) for message in messages]}"
                _CONSOLE.print(escape(shown[:_MAX_SHOWN]))
            return "a problem"

    began = time.perf_counter()
    ends = fuzz(fuzzer, count, note)
    seconds = time.perf_counter() - began
    _CONSOLE.print(
        f"{count:,} calls {name} in {seconds:.0f} s: "
        + ", ".join(f"{number:,} {word}" for word, number in ends.most_common())
    )
    return problems


if __name__ == "__main__":
    sys.exit(main())
