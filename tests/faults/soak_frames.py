"""Mutated and senseless HTTP/2 frames to a server in another process, over very many connections.

Among them are floods of resets, CONTINUATION, PING, SETTINGS and empty DATA, header blocks that do not decode, windows
that overflow, and messages whose length is wrong. Checked: the server lives, nothing of its inside is in an answer, and
a reference request gets the same answer afterwards. Run by `make soak`, or by itself:
`python tests/faults/soak_frames.py [--frames 380000] [--seed 0]`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))

import grpc
from fuzzing import Fuzzer, reference_answer
from hostile_frames import HostileConnection
from load_client import COMMAND, start_server
from rich.console import Console
from rich.markup import escape
from sidelight.server.models import bundled_model, load
from soak import num_descriptors, resident

FRAMES_A_CONNECTION = 150


def main() -> int:
    """Prints what the server answered, and each problem. Returns 1 where there is a problem."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--frames", type=int, default=380_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args()
    console = Console(width=120, highlight=False)
    chance = random.Random(options.seed)
    fuzzer = Fuzzer(load(), chance)
    calls = [(path, messages[0]) for path, messages in (fuzzer.draw() for _ in range(2000))]
    command = [COMMAND, "serve", str(bundled_model()), "--name", "bundled"]
    with start_server(command, {}) as (address, process), grpc.insecure_channel(address) as channel:
        before = reference_answer(channel)
        _send(address, chance, calls, options.frames // 10)
        memory, descriptors = resident(process), num_descriptors(process)
        answers, problems, seconds, num_connections = _send(address, chance, calls, options.frames * 9 // 10)
        console.print(
            f"{answers.pop('frames'):,} frames over {num_connections:,} connections in {seconds:.0f} s, "
            f"after {options.frames // 10:,} to warm up"
        )
        console.print("answers: " + ", ".join(f"{count:,} {word}" for word, count in answers.most_common()))
        for problem, count in problems.most_common():
            console.print(escape(f"{count:,} times: {problem}"))
        is_same = reference_answer(channel) == before
        console.print("the reference request is answered " + ("as before" if is_same else "otherwise"))
        time.sleep(2)
        console.print(
            f"memory of the server: {memory / 1e6:.1f} MB, then {resident(process) / 1e6:.1f} MB; "
            f"descriptors: {descriptors}, then {num_descriptors(process)}"
        )
    return 0 if is_same and not problems else 1


def _send(
    address: str, chance: random.Random, calls: list[tuple[str, bytes]], count: int
) -> tuple[Counter[str], Counter[str], float, int]:
    """Sends about `count` frames. Returns the answers, the problems, the seconds, and the number of connections."""
    answers, problems = Counter[str](), Counter[str]()
    began, num_connections = time.perf_counter(), 0
    while answers["frames"] < count:
        connection = HostileConnection(address, chance, calls)
        num_connections += 1
        try:
            connection.run(FRAMES_A_CONNECTION)
        except (AssertionError, TimeoutError) as problem:
            problems[str(problem) or type(problem).__name__] += 1
        answers += connection.answers
        answers["frames"] += connection.num_frames
    return answers, problems, time.perf_counter() - began, num_connections


if __name__ == "__main__":
    sys.exit(main())
