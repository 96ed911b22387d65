"""What links and signals cost beside plain Attribute: times of the same texts with them, divided by times without.

Then what the feature encoder_states costs beside Align without this feature.

Run by `make bench`, or by itself: `python tests/bench/bench_link_cost.py [--rounds 9] [--sentences 96]`. The model is
the bundled one, in a server of its own. The texts go through AttributeMany, 32 under way, or one by one. Plain requests
ask for all cross-attention. The variants take turns in every round. Figures are medians of the ratios of each round: of
the time by the clock, and of the processor's time of the server and of this client together.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import load_client
from rich.console import Console
from rich.table import Table
from sidelight.client import Client, LinkOptions
from workloads import DATA, bundled_workload

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "links, argmax": {"link_options": LinkOptions("argmax")},
    "links, as calibrated": {"link_options": LinkOptions()},
    "signals": {"signals": True},
    "links and signals": {"link_options": LinkOptions(), "signals": True},
}
ALIGN_VARIANTS: dict[str, dict[str, Any]] = {
    "align": {"link_options": LinkOptions(features=["attention", "lexicon", "spelling"])},
    "align with encoder states": {
        "link_options": LinkOptions(features=["attention", "lexicon", "spelling", "encoder_states"])
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="runs of each variant")
    parser.add_argument("--sentences", type=int, default=96, help="texts of a run")
    args = parser.parse_args()
    workload = bundled_workload(args.sentences)
    if workload is None:
        print(f"skipped: there is no {DATA}")
        return 0
    pairs = [line.split("\t")[:2] for line in DATA.read_text(encoding="utf-8").splitlines()[: args.sentences]]
    decoded: list[Any] = [source for source, _ in pairs]
    given: list[Any] = [(source, {"target": target}) for source, target in pairs]
    settings: dict[str, tuple[list[Any], int]] = {
        "decoded, 1": (decoded[: args.sentences // 4], 1),
        "decoded, 32": (decoded, 32),
        "given, 32": (given, 32),
    }
    with load_client.serve(workload.folder, "bundled", []) as address, Client(address) as client:
        server = load_client.find_server()
        ratios = {
            name: measure(client, server, VARIANTS, texts, count, args.rounds)
            for name, (texts, count) in settings.items()
        }
        given_pairs: list[Any] = [tuple(pair) for pair in pairs]
        align_settings: dict[str, tuple[list[Any], int]] = {
            "given, 1": (given_pairs[: args.sentences // 4], 1),
            "given, 32": (given_pairs, 32),
            "decoded, 32": ([(source, None) for source in decoded], 32),
        }
        align_ratios = {
            name: measure(client, server, ALIGN_VARIANTS, texts, count, args.rounds)
            for name, (texts, count) in align_settings.items()
        }
    for what, found in (("plain Attribute", ratios), ("Align", align_ratios)):
        for number, kind in enumerate(("clock", "processor")):
            title = f"times {what}, {kind}, {args.sentences} sentences, {args.rounds} rounds"
            table = Table(title, *found)
            for variant in VARIANTS if found is ratios else ALIGN_VARIANTS:
                table.add_row(variant, *(f"{each[variant][number]:.2f}" for each in found.values()))
            Console(width=120).print(table)
    return 0


def measure(
    client: Client,
    server: int,
    variants: Mapping[str, dict[str, Any]],
    texts: Sequence[Any],
    max_running: int,
    rounds: int,
) -> dict[str, tuple[float, float]]:
    """The median ratios of each variant's cost to the cost of the first variant in the same round."""
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    names = [*variants]
    for number in range(rounds + 1):  # the first round warms
        turned = names[number % len(names) :] + names[: number % len(names)]
        costs = {name: run(client, server, name, texts, max_running, variants[name]) for name in turned}
        clock, processor = costs[names[0]]
        if number:
            for name in names:
                ratios[name].append((costs[name][0] / clock, costs[name][1] / processor))
        print(f"round {number}, {max_running} under way: {names[0]} {clock:.2f} s, {processor:.2f} s", file=sys.stderr)
    return {
        name: (statistics.median(each[0] for each in values), statistics.median(each[1] for each in values))
        for name, values in ratios.items()
    }


def run(
    client: Client, server: int, name: str, texts: Sequence[Any], max_running: int, options: dict[str, Any]
) -> tuple[float, float]:
    """The seconds of one run, and those of the processor that the process `server` and this one take."""
    began, taken = time.perf_counter(), load_client.server_seconds(server) + time.process_time()
    if name in ALIGN_VARIANTS:
        for result in client.align_many(texts, max_running=max_running, **options):
            assert result.alignment is not None, result.error
    else:
        for result in client.attribute_many(texts, max_running=max_running, **options):
            assert result.attribution is not None, result.error
    processor = load_client.server_seconds(server) + time.process_time() - taken
    return time.perf_counter() - began, processor


if __name__ == "__main__":
    sys.exit(main())
