"""What capture methods add to a decode step: value norms, rollout, and rows without special tokens.

Run by `make bench`, or by itself: `python tests/bench/bench_methods.py [--streams 1 8 32] [--rounds 7]`. The model is a
random Marian of the size of opus-mt with 30 source tokens, and each request captures all layers and heads of the
cross-attention and of the decoder's self-attention. The captures take turns in every round, so that a noisy machine
treats all of them alike. Steps run in this process, without gRPC.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from sidelight.server.api.validation import validate_request
from sidelight.server.models.loader import LoadedModel, load
from sidelight.server.runner.model_runner import ModelRunner
from sidelight.server.runner.sequence import Sequence
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from workloads import opus_workload

STEPS = 30
KINDS = [attention.ATTENTION_KIND_CROSS, attention.ATTENTION_KIND_DECODER_SELF]
RENORMALIZE = attention.SPECIAL_TOKENS_RENORMALIZE

CAPTURES = {
    "nothing captured": attention.Capture(none=True),
    "weights": attention.Capture(kinds=KINDS),
    "weights, renormalized": attention.Capture(kinds=KINDS, special_tokens=RENORMALIZE),
    "value norms": attention.Capture(kinds=KINDS, method=attention.METHOD_VALUE_NORMS),
    "value norms, renormalized": attention.Capture(
        kinds=KINDS, method=attention.METHOD_VALUE_NORMS, special_tokens=RENORMALIZE
    ),
    "weights, heads' mean": attention.Capture(kinds=KINDS, over_heads=attention.REDUCTION_MEAN),
    "rollout": attention.Capture(kinds=KINDS, method=attention.METHOD_ROLLOUT),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32], help="requests in the batch")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each capture")
    args = parser.parse_args()
    table = Table("milliseconds of a step, and times the step with weights", *(f"{n} streams" for n in args.streams))
    with tempfile.TemporaryDirectory() as scratch:
        workload = opus_workload(Path(scratch) / "opus", max(args.streams))
        loaded = load(workload.folder)
        medians = {
            num_streams: measure(loaded, workload.sources, num_streams, args.rounds) for num_streams in args.streams
        }
    for name in CAPTURES:
        cells = [f"{1000 * times[name]:.1f}  {times[name] / times['weights']:.2f}" for times in medians.values()]
        table.add_row(name, *cells)
    Console(width=120).print(table)
    return 0


@torch.inference_mode()
def measure(loaded: LoadedModel, sources, num_streams: int, rounds: int) -> dict[str, float]:
    """The median time of a step with each capture, in seconds."""
    assert loaded.backend is not None
    runner = ModelRunner(loaded, loaded.backend, num_streams)
    times: dict[str, list[float]] = {name: [] for name in CAPTURES}
    for number in range(rounds + 1):  # the first round warms
        for name, capture in CAPTURES.items():
            seconds = run(loaded, runner, capture, sources[:num_streams])
            if number:
                times[name].append(seconds)
        print(f"{num_streams} streams, round {number}", file=sys.stderr)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def run(loaded: LoadedModel, runner: ModelRunner, capture: attention.Capture, sources) -> float:
    """The mean time of the steps of one batch."""
    requests = []
    for ids in sources:
        message = pb.AttributeRequest(capture=capture)
        message.source.token_ids.ids.extend(ids)
        message.decoding.max_new_tokens, message.decoding.ignore_eos = STEPS, True
        requests.append(validate_request(message, loaded, ""))
    sequences = [sequence for sequence in runner.add(requests) if isinstance(sequence, Sequence)]
    assert len(sequences) == len(requests)
    began = time.perf_counter()
    for _ in range(STEPS):
        for _, output in runner.decode(sequences):
            assert not isinstance(output, Exception), output
    seconds = time.perf_counter() - began
    for sequence in sequences:
        runner.remove(sequence)
    return seconds / STEPS


if __name__ == "__main__":
    sys.exit(main())
