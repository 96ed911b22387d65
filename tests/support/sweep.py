"""Runs models of odd sizes between guard pages: requests in a batch get the bits that they get alone.

Run `python tests/support/sweep.py --models 200 --seed 0`, or one model again with `--only SEED`. An access to a guard
page ends the process with SIGSEGV: the model that was printed last is at fault.
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
    """Runs requests of a model together and alone. Returns the precision and the backend. Raises AssertionError."""
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


def compare(loaded: LoadedModel, requests: list[Request], odd: OddModel, *, to_the_bit: bool) -> None:
    """Runs requests in a batch whose slots are freed and reused, and each request alone."""
    alone = [together(loaded, [request], _one_by_one(), slots=1)[0] for request in requests]
    chance = random.Random(odd.seed + 2)
    for number, outputs in together(loaded, requests, _random_schedule(chance, len(requests)), slots=odd.slots).items():
        assert len(outputs) == len(alone[number]) or not to_the_bit, f"request {number}: {len(outputs)} outputs"
        if to_the_bit:
            for index, (output, expected) in enumerate(zip(outputs, alone[number], strict=True)):
                where = f"request {number}, output {index} of {len(outputs)}"
                assert_equal(output, expected, where, tolerance=0 if odd.precision == "int8" else 1e-5)


def _one_by_one() -> Iterator[tuple[int, int, int]]:
    """A schedule for `together`: a request joins in each round, and all requests stay to the end."""
    while True:
        yield 1, -1, -1


def _random_schedule(chance: random.Random, count: int) -> Iterator[tuple[int, int, int]]:
    """A schedule for `together`: in each round some requests join, one may leave for good, and one may pause."""
    leaver = chance.randrange(count)
    for number in range(1, 10_000):
        leaves = leaver if number == 20 else -1
        yield chance.choice([0, 1, 1, 2, count]), leaves, chance.randrange(count) if number % 3 == 0 else -1
    yield from _one_by_one()


def assert_equal(output: object, expected: object, where: str, tolerance: float) -> None:
    """Compares all bits of two outputs, but scores with a tolerance: float32's last layers may add in another order."""
    assert type(output) is type(expected), where
    for name, value in vars(output).items():
        expected_value = getattr(expected, name)
        if isinstance(value, tuple) and hasattr(value, "nbytes"):  # attention
            assert expected_value is not None, f"{where}: {name}"
            for array, expected_array in zip(value, expected_value, strict=True):
                assert (array is None) == (expected_array is None), f"{where}: {name}"
                if array is not None:
                    np.testing.assert_array_equal(array, expected_array, err_msg=f"{where}: {name}")
        elif name == "scores":
            np.testing.assert_allclose(
                value, expected_value, rtol=tolerance, atol=tolerance, err_msg=f"{where}: {name}"
            )
        else:
            assert value == expected_value, f"{where}: {name} is {value}, alone {expected_value}"


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
