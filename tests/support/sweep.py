"""Models of odd sizes, one after another, between guard pages: requests in company get the bits that they get alone.

Run `python tests/support/sweep.py --models 200 --seed 0`, or one model again with `--only SEED`. A page that is
touched beside a buffer ends the process with SIGSEGV; the last model that is named is the one.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from guard_pages import guard_programs
from mixed_requests import together
from odd_models import OddModel, build_odd_model, edge_jobs, random_model
from sidelight.server.models.bart_cpu_backend import BartCpuBackend
from sidelight.server.models.loader import LoadedModel, load
from sidelight.server.request import Request


def sweep(odd: OddModel) -> str:
    """Runs requests of a model together and alone. Returns how the model is run. Raises AssertionError."""
    before = torch.get_num_threads()
    torch.set_num_threads(odd.threads)
    try:
        with tempfile.TemporaryDirectory() as folder, guard_programs(odd.seed) as memory:
            loaded = load(build_odd_model(odd, Path(folder)), dtype=odd.precision)
            assert loaded.backend is not None
            is_programmed = isinstance(loaded.backend, BartCpuBackend)
            compare(loaded, edge_jobs(odd, loaded), odd, to_the_bit=is_programmed or odd.precision == "int8")
            del loaded
            assert not memory.check(), memory.faults
    finally:
        torch.set_num_threads(before)
    return f"{odd.precision}, {'programs' if is_programmed else 'layers of torch'}"


def compare(loaded: LoadedModel, jobs: list[Request], odd: OddModel, *, to_the_bit: bool) -> None:
    """Runs jobs in company, with slots left and taken again, and each alone."""
    by_itself = [together(loaded, [job], _one(), slots=1)[0] for job in jobs]
    chance = random.Random(odd.seed + 2)
    for number, events in together(loaded, jobs, _come_and_go(chance, len(jobs)), slots=odd.slots).items():
        assert len(events) == len(by_itself[number]) or not to_the_bit, f"request {number}: {len(events)} events"
        if to_the_bit:
            for place, (mine, other) in enumerate(zip(events, by_itself[number], strict=True)):
                where = f"request {number}, event {place} of {len(events)}"
                assert_equal(mine, other, where, near=0 if odd.precision == "int8" else 1e-5)


def _one() -> Iterator[tuple[int, int, int]]:
    while True:
        yield 1, -1, -1


def _come_and_go(chance: random.Random, count: int) -> Iterator[tuple[int, int, int]]:
    """Who joins, who leaves for good, and who pauses, as `together` has it. Those of even numbers are parked."""
    leaver = chance.randrange(count)
    for place in range(1, 10_000):
        leaves = leaver if place == 20 else -1
        yield chance.choice([0, 1, 1, 2, count]), leaves, chance.randrange(count) if place % 3 == 0 else -1
    yield from _one()


def assert_equal(ours: object, theirs: object, where: str, near: float) -> None:
    """To the bit; scores, which float32's last layers may give in one order of additions or another, nearly."""
    assert type(ours) is type(theirs), where
    for name, mine in vars(ours).items():
        other = getattr(theirs, name)
        if isinstance(mine, tuple) and hasattr(mine, "nbytes"):  # attention
            assert other is not None, f"{where}: {name}"
            for one, wanted in zip(mine, other, strict=True):
                assert (one is None) == (wanted is None), f"{where}: {name}"
                if one is not None:
                    np.testing.assert_array_equal(one, wanted, err_msg=f"{where}: {name}")
        elif name == "scores":
            np.testing.assert_allclose(mine, other, rtol=near, atol=near, err_msg=f"{where}: {name}")
        else:
            assert mine == other, f"{where}: {name} is {mine}, alone {other}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first model")
    parser.add_argument("--only", type=int, help="this model alone")
    options = parser.parse_args()
    faulthandler.enable()
    tf.utils.logging.disable_progress_bar()
    first, count = (options.seed, options.models) if options.only is None else (options.only, 1)
    kinds: Counter[str] = Counter()
    failed = 0
    for seed in range(first, first + count):
        odd = random_model(seed)
        print(odd, flush=True)
        began = time.perf_counter()
        try:
            kind = sweep(odd)
        except Exception as error:
            failed += 1
            print(f"FAILED: {error}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc()
        else:
            kinds[kind] += 1
            print(f"    {kind}: {time.perf_counter() - began:.1f} s", flush=True)
    print(f"{count - failed} of {count} models passed: {dict(kinds)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
