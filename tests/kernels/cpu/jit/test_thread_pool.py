"""A program gives the same bits with any number of threads, and beside programs of other threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from linear_layers import NAN, PRECISIONS, make_layer, unwritten
from sidelight.kernels.cpu import Attention, Program, is_supported, pack_weight, store_rows
from torch import Tensor

pytestmark = [
    pytest.mark.skipif(not is_supported(), reason="no programs on this machine"),
    pytest.mark.usefixtures("seeded"),
]


class Steps:
    """A program of several layers with the operations of a decoder step, each of which needs the one before."""

    def __init__(self, layers: int, precision: str, count: int = 9, width: int = 136) -> None:
        heads = 4
        self.x, self.program, self.lengths = torch.randn(count, width), Program(count), torch.randint(1, 20, (count, 1))
        self.caches = torch.randn(2, count, heads, 20, width // heads)
        self.hidden, self.probabilities = unwritten(count, width), unwritten(count, heads, 24)
        self.stored = unwritten(count, 1, 24, heads)
        mixed, wide, normal = (self.program.buffer(size) for size in (width, 2 * width, width))
        attention = Attention(*self.caches, self.lengths, 0.2)
        self.program.layer_norm(self.x, torch.ones(width), torch.zeros(width), 1e-5, self.hidden)
        for _ in range(layers):
            weights = [
                pack_weight(*make_layer(in_features, out_features, precision))
                for in_features, out_features in ((width, width), (width, 2 * width), (2 * width, width))
            ]
            self.program.matmul(self.hidden, weights[0], normal)
            self.program.attend(normal, attention, self.probabilities, mixed)
            self.program.matmul(mixed, weights[1], wide, activation="gelu")
            self.program.matmul(wide, weights[2], normal, added=self.hidden)
            self.program.layer_norm(normal, torch.ones(width), torch.zeros(width), 1e-5, self.hidden)

    def run(self, count: int) -> tuple[Tensor, ...]:
        """Returns the results for `count` rows."""
        for tensor in (self.hidden, self.probabilities, self.stored):
            tensor.fill_(NAN)
        epilogue = np.stack([store_rows(self.probabilities, self.stored, 0, None, is_cross=True)])
        self.program.run(count, num_cross_positions=24, epilogue=epilogue)
        return tuple(tensor[:count].clone() for tensor in (self.hidden, self.probabilities, self.stored))

    def gives(self, expected: tuple[Tensor, ...]) -> bool:
        return all(map(torch.equal, self.run(len(expected[0])), expected))


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("width", "counts"), [(136, (1, 4, 9)), (128, (16, 33))])  # the latter with AMX
def test_more_threads_change_nothing(width, counts, precision):
    steps = Steps(3, precision, counts[-1], width)
    torch.set_num_threads(1)
    alone = {count: steps.run(count) for count in counts}
    assert all(tensor.isfinite().all() for results in alone.values() for tensor in results)
    for threads in (2, 4, 9, 12, 1):  # more threads than ranges share them
        torch.set_num_threads(threads)
        for _ in range(20):
            assert all(steps.gives(expected) for expected in alone.values())


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("threads", [2, 4])
def test_programs_at_the_same_time(threads):
    """A program that finds the pool busy runs alone. Tasks of one program must not be taken for a longer one's."""
    torch.set_num_threads(1)
    programs = [[Steps(layers, "float32") for layers in (1, 4)] for _ in range(3)]
    alone = [[(steps, steps.run(count)) for steps in group for count in (9, 2)] for group in programs]
    torch.set_num_threads(threads)
    is_right: list[bool] = []

    def work(group: list[tuple[Steps, tuple[Tensor, ...]]]) -> None:
        with torch.inference_mode():  # the thread that made the programs may be in this mode, too
            is_right.append(all(steps.gives(expected) for _ in range(500) for steps, expected in group))

    workers = [threading.Thread(target=work, args=(group,)) for group in alone]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert is_right == [True] * len(workers)
