"""Requests that differ in everything, run in a batch and alone, and what they then have to say compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from hypothesis import strategies as st
from model_zoo import FAMILIES, SENTENCES
from sidelight.server.api.validation import resolve
from sidelight.server.engine.output_builder import attribute
from sidelight.server.models.loader import LoadedModel
from sidelight.server.request import EncoderSelf, Finished, Started, Step
from sidelight.server.runner.model_runner import ModelRunner, Seat
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

IN_SLOTS = [name for name, family in FAMILIES.items() if family.captures_rows]

# For seven jobs: of each of the first rounds how many join, and who leaves and who pauses, if they are there.
BEGINNINGS = st.lists(st.tuples(st.integers(0, 3), st.integers(-20, 6), st.integers(-6, 6)), min_size=1, max_size=12)


def then_one_by_one(beginning: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """A schedule for `together` after whose beginning one joins each round, and all stay to the end."""
    yield from beginning
    while True:
        yield 1, -1, -1


def message(loaded: LoadedModel, family, number: int) -> pb.AttributeRequest:
    """Requests that differ in everything: source, prefix, decoding, capture, scores."""
    request = pb.AttributeRequest(source_language=family.source_language, target_language=family.target_language)
    request.source.text = SENTENCES[number % len(SENTENCES)][: 20 + 7 * number]
    if number % 4 == 1:
        request.prefix.text = "Der Hund"
    request.decoding.max_new_tokens = 3 + 5 * number % 14
    if number % 3 == 2:
        request.decoding.sampling.CopyFrom(text.Sampling(seed=number, temperature=1.5, top_k=20))
    captures = [
        attention.Capture(kinds=[attention.ATTENTION_KIND_DECODER_SELF], row=attention.ROW_READING),
        attention.Capture(over_heads=attention.REDUCTION_MEAN, encoding=attention.ENCODING_FLOAT16),
        attention.Capture(none=True),
        attention.Capture(top_k=3),
        attention.Capture(),
    ]
    request.capture.CopyFrom(captures[number % len(captures)])
    if number % 5 == 4 and loaded.is_encoder_decoder:
        kinds = [attention.ATTENTION_KIND_CROSS, attention.ATTENTION_KIND_ENCODER_SELF]
        request.capture.CopyFrom(attention.Capture(kinds=kinds))
    request.scores.extend([attention.SCORE_PROBABILITY] if number % 2 else [])
    return request


def jobs_of(loaded: LoadedModel, name: str, count: int):
    return [resolve(message(loaded, FAMILIES[name], number), loaded, f"r{number}") for number in range(count)]


@torch.inference_mode()
def together(loaded: LoadedModel, jobs, schedule, slots: int = 4) -> dict[int, list]:
    """The events of each job. `schedule` says of each round who joins, who leaves early and who pauses.

    Of those who pause, the even ones give up their slots meanwhile.
    """
    assert loaded.backend is not None
    batch = ModelRunner(loaded, loaded.backend, slots)
    events: dict[int, list] = {}
    seats: dict[int, Seat] = {}
    parked: dict[int, Seat] = {}
    waiting = list(range(len(jobs)))
    while waiting or seats or parked:
        joins, leaver, paused = next(schedule)
        coming = waiting[: min(joins, batch.room)]
        del waiting[: len(coming)]
        for number, seat in zip(coming, batch.join([jobs[number] for number in coming]), strict=True):
            assert isinstance(seat, Seat)
            seats[number] = seat
            events[number] = list(seat.news)
        for number in list(parked)[: batch.room]:
            seats[number] = parked.pop(number)
            batch.unpark(seats[number])
        if paused in seats and not paused % 2:
            parked[paused] = seats.pop(paused)
            batch.park(parked[paused])
        if leaver in seats:
            batch.leave(seats.pop(leaver))
            events.pop(leaver)
        for seat in seats.values():
            if seat.reads:
                batch.read(seat)
        ready = {seat: number for number, seat in seats.items() if number != paused and not seat.reads}
        for seat, told in batch.step(list(ready)):
            assert isinstance(told, list), told
            events[ready[seat]].extend(told)
            if seat.writer.ended:
                batch.leave(seats.pop(ready[seat]))
    assert batch.room == slots
    return events


def assert_same(ours: list, theirs: list) -> None:
    assert [type(event) for event in ours] == [type(event) for event in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, (Started, Finished)):
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
    np.testing.assert_allclose(ours.values, theirs.values, atol=1e-5 + half)
    if ours.positions is not None:
        # Positions whose shares are equal, or nearly, may change places.
        clear = np.abs(np.diff(theirs.values, axis=0)).min(0) > 1e-5
        assert (ours.positions == theirs.positions)[:, clear].all()


def read_all(batch: ModelRunner, seats) -> None:
    for seat in seats:
        while seat.reads:
            batch.read(seat)


@torch.inference_mode()
def alone(loaded: LoadedModel, jobs) -> list[list]:
    return [list(attribute(loaded, job)) for job in jobs]
