"""Requests that differ in everything, runs of these requests in a batch and alone, and comparisons of the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from hypothesis import strategies as st
from model_zoo import FAMILIES, SENTENCES
from sidelight.server.api.validation import validate_request
from sidelight.server.engine.beam_hypotheses import give_target, hypothesis_outputs
from sidelight.server.engine.outputs.given_target import target_outputs
from sidelight.server.engine.outputs.output_builder import (
    OutputBuilder,
    make_output_builder,
    make_started,
    split_encoder_self,
)
from sidelight.server.engine.request_state import RequestState
from sidelight.server.models.loader import LoadedModel
from sidelight.server.request import EncoderSelf, Finished, GivenTarget, Output, Request, Started, Step
from sidelight.server.runner.model_runner import ModelRunner
from sidelight.server.runner.runner import Runner
from sidelight.server.runner.sequence import SearchOutput, Sequence
from sidelight.server.runner.unbatched_runner import UnbatchedRunner
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

IN_SLOTS = [name for name, family in FAMILIES.items() if family.captures_rows]

# For seven requests: in each of the first rounds, how many requests join, which request leaves, and which pauses.
BEGINNINGS = st.lists(st.tuples(st.integers(0, 3), st.integers(-20, 6), st.integers(-6, 6)), min_size=1, max_size=12)


def then_one_by_one(beginning: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """A schedule for `together`: after the beginning one request joins in each round, and all stay to the end."""
    yield from beginning
    while True:
        yield 1, -1, -1


def message(loaded: LoadedModel, family, number: int) -> pb.AttributeRequest:
    """Makes a request by its number. Requests differ in source, prefix, decoding, capture and scores."""
    request = pb.AttributeRequest(source_language=family.source_language, target_language=family.target_language)
    request.source.text = SENTENCES[number % len(SENTENCES)][: 20 + 7 * number]
    if number % 4 == 1:
        request.prefix.text = "Der Hund"
    request.decoding.max_new_tokens = 3 + 5 * number % 14
    if number % 3 == 2:
        request.decoding.sampling.CopyFrom(text.Sampling(seed=number, temperature=1.5, top_k=20))
    if number % 7 == 6:
        request.decoding.beam.CopyFrom(text.Beam(width=3, hypotheses=2))
    captures = [
        attention.Capture(kinds=[attention.ATTENTION_KIND_DECODER_SELF], row=attention.ROW_READING),
        attention.Capture(over_heads=attention.REDUCTION_MEAN, encoding=attention.ENCODING_FLOAT16),
        attention.Capture(none=True),
        attention.Capture(top_k=3),
        attention.Capture(),
        attention.Capture(method=attention.METHOD_VALUE_NORMS, special_tokens=attention.SPECIAL_TOKENS_RENORMALIZE),
        attention.Capture(method=attention.METHOD_ROLLOUT, special_tokens=attention.SPECIAL_TOKENS_RENORMALIZE),
    ]
    request.capture.CopyFrom(captures[number % len(captures)])
    if number % 5 == 4 and loaded.is_encoder_decoder:
        kinds = [attention.ATTENTION_KIND_CROSS, attention.ATTENTION_KIND_ENCODER_SELF]
        request.capture.CopyFrom(attention.Capture(kinds=kinds))
    request.scores.extend([attention.SCORE_PROBABILITY] if number % 2 else [])
    return request


def mixed_requests(loaded: LoadedModel, name: str, count: int) -> list[Request]:
    return [validate_request(message(loaded, FAMILIES[name], number), loaded, f"r{number}") for number in range(count)]


class Run:
    """The sequences of a runner, and the outputs of each, built as the engine builds them."""

    def __init__(self, loaded: LoadedModel, runner: Runner) -> None:
        self.loaded = loaded
        self.runner = runner
        self.live: list[Sequence] = []  # added, and not finished
        self.outputs: dict[Sequence, list[Output]] = {}
        self.faults: dict[Sequence, Exception] = {}
        self._builders: dict[Sequence, OutputBuilder] = {}
        self._requests: dict[Sequence, Request] = {}

    def add(self, requests: list[Request]) -> list[Sequence | Exception]:
        added = self.runner.add(requests)
        for request, sequence in zip(requests, added, strict=True):
            if isinstance(sequence, Sequence):
                detokenizer, started = make_started(self.loaded, request)
                self._builders[sequence] = make_output_builder(self.loaded, request, detokenizer, started)
                parts = split_encoder_self(sequence.pop_source_attention(), request.units)
                self.outputs[sequence] = [started, *filter(None, parts)]
                self._requests[sequence] = request
                self.live.append(sequence)
        return added

    def add_all(self, requests: list[Request]) -> list[Sequence]:
        """Adds requests that cannot fail, and reads their prompts."""
        sequences = [sequence for sequence in self.add(requests) if isinstance(sequence, Sequence)]
        assert len(sequences) == len(requests)
        for sequence in sequences:
            while sequence.is_prefilling:
                self.runner.prefill(sequence)
        return sequences

    def remove(self, sequence: Sequence) -> None:
        self.live.remove(sequence)
        self.runner.remove(sequence)

    def step(self, sequences: list[Sequence] | None = None) -> None:
        """Decodes one step of these sequences; None: of all live sequences. Removes finished and failed sequences."""
        batch = list(self.live if sequences is None else sequences)
        size = self.runner.max_batch_size
        for first in range(0, len(batch), size):
            for sequence, output in self.runner.decode(batch[first : first + size]):
                try:
                    if isinstance(output, Exception):
                        raise output
                    if isinstance(output, SearchOutput):
                        state = RequestState(self._requests[sequence], cast(Any, None))
                        give_target(self.loaded, state, output)
                        outputs = hypothesis_outputs(
                            self.loaded, state.request, state.hypotheses, output.steps, self.runner.target_pass
                        )
                        self.outputs[sequence] += filter(None, outputs)
                    else:
                        self.outputs[sequence] += self._builders[sequence].add_token(output)
                except Exception as error:
                    self.faults[sequence] = error
                is_found = isinstance(output, SearchOutput)
                if sequence in self.faults or is_found or self._builders[sequence].is_finished:
                    self.remove(sequence)

    def finish(self, sequences: list[Sequence] | None = None) -> None:
        """Decodes these sequences until all are finished; None: all live sequences."""
        batch = list(self.live if sequences is None else sequences)
        while batch := [sequence for sequence in batch if sequence in self.live]:
            self.step(batch)


def slots_run(loaded: LoadedModel, num_slots: int) -> Run:
    assert loaded.backend is not None
    return Run(loaded, ModelRunner(loaded, loaded.backend, num_slots))


@torch.inference_mode()
def together(loaded: LoadedModel, requests: list[Request], schedule, slots: int = 4) -> dict[int, list[Output]]:
    """Runs requests in a batch. Returns the outputs of each request that has not left early, by number.

    `schedule` yields for each round: how many requests join, the number of a request that leaves early, and the number
    of a request that pauses. A request with an even number gives up its slot while it pauses.
    """
    run = slots_run(loaded, slots)
    sequences: dict[int, Sequence] = {}
    running: dict[int, Sequence] = {}
    preempted: dict[int, Sequence] = {}
    waiting = list(range(len(requests)))
    while waiting or running or preempted:
        joins, leaver, paused = next(schedule)
        coming: list[int] = []
        while waiting and len(coming) < joins and has_room(run, [requests[number] for number in (*coming, waiting[0])]):
            coming.append(waiting.pop(0))
        for number, sequence in zip(coming, run.add([requests[number] for number in coming]), strict=True):
            assert isinstance(sequence, Sequence)
            sequences[number] = running[number] = sequence
        for number in list(preempted):
            if has_room(run, [requests[number]]):
                running[number] = preempted.pop(number)
                run.runner.resume(running[number])
        if paused in running and not paused % 2:
            preempted[paused] = running.pop(paused)
            run.runner.preempt(preempted[paused])
        if leaver in running:
            run.remove(running.pop(leaver))
            sequences.pop(leaver)
        for sequence in running.values():
            if sequence.is_prefilling:
                run.runner.prefill(sequence)
        run.step([s for number, s in running.items() if number != paused and not s.is_prefilling])
        assert not run.faults, run.faults
        running = {number: sequence for number, sequence in running.items() if sequence in run.live}
    assert run.runner.num_free_slots == slots
    return {number: run.outputs[sequence] for number, sequence in sequences.items()}


def limit_memory(monkeypatch, loaded: LoadedModel, max_slots: int) -> None:
    """Makes decode steps of more than so many slots run out of memory."""
    backend = type(loaded.backend)
    decode = backend.decode

    def limited(self, tokens, *args):
        if len(tokens) > max_slots:
            raise torch.OutOfMemoryError("out of memory")
        return decode(self, tokens, *args)

    monkeypatch.setattr(backend, "decode", limited)


def has_room(run: Run, requests: list[Request]) -> bool:
    """Whether these requests can be added or resumed together."""
    return sum(request.num_sequences for request in requests) <= run.runner.num_free_slots


def assert_same(ours: list, theirs: list) -> None:
    assert [type(output) for output in ours] == [type(output) for output in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, Finished):
            assert [replace(h, score=0) for h in mine.hypotheses] == [replace(h, score=0) for h in other.hypotheses]
            scores = ([hypothesis.score for hypothesis in each.hypotheses] for each in (mine, other))
            np.testing.assert_allclose(*scores, atol=1e-5, rtol=1e-5)
            assert replace(mine, hypotheses=()) == replace(other, hypotheses=())
        elif isinstance(mine, Started):
            assert mine == other
        elif isinstance(mine, EncoderSelf):
            assert_near(mine.attention, other.attention)
        else:
            assert isinstance(mine, Step)
            assert (mine.index, mine.token, mine.text) == (other.index, other.token, other.text)
            np.testing.assert_allclose(mine.scores, other.scores, atol=1e-5, rtol=1e-5)
            assert_near(mine.cross, other.cross)
            assert_near(mine.decoder_self, other.decoder_self)


def assert_near(ours, theirs) -> None:
    assert (ours is None) == (theirs is None)
    if ours is None:
        return
    assert ours.values.shape == theirs.values.shape
    half = 5e-4 if ours.values.dtype == np.float16 else 0
    np.testing.assert_allclose(ours.values, theirs.values, atol=1e-5 + half, rtol=1e-5)
    assert (ours.shares is None) == (theirs.shares is None)
    if ours.shares is not None:
        np.testing.assert_allclose(ours.shares, theirs.shares, atol=1e-5)
    if ours.positions is not None:
        # Positions whose probabilities are nearly equal may change places.
        clear = np.abs(np.diff(theirs.values, axis=0)).min(0) > 1e-5
        assert (ours.positions == theirs.positions)[:, clear].all()


@torch.inference_mode()
def alone(loaded: LoadedModel, requests: list[Request]) -> list[list[Output]]:
    """Runs each request by itself, by the model's own modules and with a cache of its own. Returns the outputs."""
    return [outputs_alone(loaded, request) for request in requests]


def outputs_alone(loaded: LoadedModel, request: Request) -> list[Output]:
    runner = UnbatchedRunner(loaded, 1)
    if isinstance(request.target, GivenTarget):
        outputs = target_outputs(loaded, request, runner.target_pass(request))
        return [output for output in outputs if output is not None]
    run = Run(loaded, runner)
    (sequence,) = run.add_all([request])
    run.finish()
    if sequence in run.faults:
        raise run.faults[sequence]
    return run.outputs[sequence]
