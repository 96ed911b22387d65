"""What a contender of `bench_engine.py` is: a program that has loaded the model of a workload.

A contender takes the sentences of a workload and gives the targets' token ids, the end token included. It takes texts
(or ids) and gives texts (or ids), as a server does.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from load_client import Stream
from transformers import AutoTokenizer
from workloads import Source, Workload


@dataclass
class Outcome:
    """The result of one run.

    Attributes:
        seconds: The time for all sentences.
        targets: The token ids, end token included, in the order of the sentences. Fewer if the run was cut short.
        streams: What the client received for each sentence; for servers only.
    """

    seconds: float
    targets: list[list[int]]
    streams: list[Stream] = field(default_factory=list)


class Contender(ABC):
    """A program that has loaded the model of a workload and is ready to run."""

    # Whether a run takes one sentence after the other. Then one run is enough for every concurrency.
    one_by_one = False

    @abstractmethod
    def run(self, concurrency: int) -> Outcome:
        """Runs the sentences of the workload, `concurrency` of them at a time."""

    def cross(self) -> np.ndarray | None:
        """The first sentence's cross-attention, `[steps, positions, layers, heads]`; None if the program has none."""
        return None


class BatchContender(Contender):
    """Runs batches of `concurrency` sentences, in the order of the sentences."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._tokenizer: Any = AutoTokenizer.from_pretrained(workload.folder)

    def run(self, concurrency: int) -> Outcome:
        sentences = self._workload.sentences(concurrency)
        targets: list[list[int]] = []
        began = time.perf_counter()
        for first in range(0, len(sentences), concurrency):
            targets += self._translate(self._encode(sentences[first : first + concurrency]))
        if self._workload.new_tokens is None:
            self._tokenizer.batch_decode(targets, skip_special_tokens=True)
        return Outcome(time.perf_counter() - began, targets)

    def _encode(self, sentences: Sequence[Source]) -> list[list[int]]:
        if isinstance(sentences[0], str):
            return self._tokenizer(list(sentences)).input_ids
        return [source for source in sentences if not isinstance(source, str)]

    @abstractmethod
    def _translate(self, sources: list[list[int]]) -> list[list[int]]:
        """Returns the targets of one batch."""
