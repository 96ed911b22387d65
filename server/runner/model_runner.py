"""A running batch: requests that write side by side, one token each a step, and come and go between steps.

Each has a slot (see `models.kv_cache`) and a writer of its own, and tokens are chosen for all at once, for each as if
it were alone: what one writes does not depend on the others. The batch knows models, captures and jobs; it knows
neither queues nor readers.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels import AttentionTensors
from ..capture.arrays import AttentionArrays, are_finite, numbers_of, to_host
from ..capture.attention_function import AttentionKind, LayerKey, RecordTarget, fuses, record_to
from ..capture.plan import CapturePlan, PassRecorder
from ..engine.output_builder import Writer, begin, parts_of
from ..errors import not_a_number
from ..layers.lm_head import ArgmaxQuery
from ..memory import is_out_of_memory, out_of_memory
from ..models.bart_cpu_backend import ProgrammedDecoder
from ..models.kv_cache import KVCache, SwappedCache
from ..models.loader import LoadedModel
from ..models.transformers_backend import MOST_TOGETHER, TransformersBackend
from ..request import DecodingParams, Output, Request, Score
from ..sampling.sampler import Sampler, SamplerOutput, SamplerState
from ..sampling.step_scores import step_scores
from ..transfer import cached_index, int_tensor
from .unbatched_runner import LAST_QUERY, UnbatchedRunner

# Tokens of a prompt that are read between two steps of the others.
_CHUNK = 256


# The greatest of each row of scores, int64 [n].
Greatest = Callable[[Tensor], Tensor]


class Parked(NamedTuple):
    """What a request leaves its slot with, to go on in another."""

    contents: SwappedCache
    chosen: SamplerState
    token: Tensor  # the one that it reads next


@dataclass(eq=False)
class Seat:
    """A request in a slot."""

    slot: int
    job: Request
    plan: CapturePlan  # the batch's own of several that are equal
    writer: Writer
    unread: list[int]  # of its context: all but the last token, which the first step reads
    source_length: int  # 0 where there is no encoder
    context: int  # how many these were at first
    length: int = 0  # tokens that its cache holds
    news: Iterable[Output] = ()  # before its first step; its parts are cut as they are read
    parked: Parked | None = None  # while it has no slot

    @property
    def reads(self) -> bool:
        """Whether some of its context is still to be read."""
        return bool(self.unread)


class ModelRunner:
    """The slots of a model and who sits in them. For one thread, in torch's inference mode."""

    def __init__(self, loaded: LoadedModel, backend: TransformersBackend, count: int) -> None:
        self._loaded = loaded
        self._model: Any = loaded.model
        self._backend = backend
        self._slots: KVCache = backend.new_kv_cache(count)
        self._sampler = Sampler(loaded, count, loaded.max_target_tokens + 1)
        self._count = count
        self._together = count  # the most that step at once: fewer after memory did not do
        self._has_chosen = False  # whether the step under way has gone so far
        self._free = list(range(count))
        self._seats: dict[int, Seat] = {}
        self._tokens = torch.zeros(count, 1, dtype=torch.int64, device=loaded.model.device)
        if backend.is_compiled:
            self._compile()

    def _compile(self) -> None:
        """Takes a step of nobody, so that the first request need not wait for the compiler."""
        self._slots.begin_decode(slice(0, self._count), *self._backend.lengths)
        with record_to(None, padded=False):
            self._backend.decode(self._tokens, self._slots)

    @property
    def room(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def join(self, jobs: Sequence[Request]) -> list[Seat | Exception]:
        """Gives each job a slot, or says why not. There must be as many free slots.

        Its first events are in the seat's `news`. Sources are read together where nothing of the reading is captured.
        """
        made = [self._sit(job) for job in jobs]
        if not self._loaded.is_encoder_decoder:
            return made
        seats = [seat for seat in made if isinstance(seat, Seat)]
        together = [seat for seat in seats if "encoder_self" not in seat.job.capture.kinds]
        faults: dict[Seat, Exception] = {}
        for group in (*_by_size(together), *([seat] for seat in seats if seat not in together)):
            faults |= self._read_sources(group)
        return [faults.get(seat, seat) if isinstance(seat, Seat) else seat for seat in made]

    def _sit(self, job: Request) -> Seat | Exception:
        try:
            return self._seat(job)
        except Exception as error:  # one request's fault must not keep out the others
            return error

    def _seat(self, job: Request) -> Seat:
        assert isinstance(job.target, DecodingParams)
        detokenizer, started = begin(self._loaded, job)
        source = job.source.ids if self._loaded.is_encoder_decoder else None
        context = [*(job.source.ids if source is None else ()), *job.context_ids]
        slot = self._free[0]
        self._sampler.add(slot, job.target, context, source)
        heapq.heappop(self._free)
        writer = Writer(job, job.target, detokenizer, self._sampler.end_ids(slot))
        plans = (seat.plan for seat in self._seats.values())
        plan = next((plan for plan in plans if plan == job.capture), job.capture)
        seat = Seat(slot, job, plan, writer, context[:-1], len(source or ()), len(context) - 1, news=(started,))
        self._seats[slot] = seat
        self._tokens[slot] = context[-1]
        return seat

    # ---- sources and contexts ---------------------------------------------------------------------------------------

    def _read_sources(self, seats: Sequence[Seat]) -> dict[Seat, Exception]:
        """Reads sources together, and one by one where that goes wrong. Who cannot be helped leaves: why, for each."""
        try:
            if "encoder_self" in seats[0].job.capture.kinds:
                self._encode_alone(seats[0])
            else:
                self._encode(seats)
        except Exception as error:
            if len(seats) == 1:
                self.leave(seats[0])
                return {seats[0]: out_of_memory() if is_out_of_memory(error) else error}
            return {seat: fault for each in seats for seat, fault in self._read_sources([each]).items()}
        return {}

    def _encode(self, seats: Sequence[Seat]) -> None:
        """Reads sources together, padded to one length."""
        longest = max(seat.source_length for seat in seats)
        padding = self._model.config.pad_token_id or 0
        ids = [[*seat.job.source.ids, *([padding] * (longest - seat.source_length))] for seat in seats]
        lengths = {seat.slot: seat.source_length for seat in seats}
        self._backend.prefill_sources(int_tensor(ids, self._model.device), lengths, self._slots)

    def _encode_alone(self, seat: Seat) -> None:
        """Reads a source whose reading is captured."""
        reader = UnbatchedRunner(self._loaded, seat.job.capture, seat.job.source.ids, seat.job.context_ids)
        attention = reader.read_source()
        if attention is not None:
            seat.news = itertools.chain(seat.news, parts_of(attention))
        self._backend.store_sources(reader.encoded, {seat.slot: seat.source_length}, self._slots)

    def parts_again(self, job: Request) -> Iterator[Output]:
        """The parts of encoder self-attention of a job in a seat, from a second reading of its source."""
        attention = UnbatchedRunner(self._loaded, job.capture, job.source.ids, job.context_ids).read_source()
        return iter(()) if attention is None else parts_of(attention)

    def read(self, seat: Seat) -> None:
        """Reads a part of a context that is longer than one token, so that nobody waits for all of it."""
        ids, seat.unread = seat.unread[:_CHUNK], seat.unread[_CHUNK:]
        self._slots.begin_prefill(seat.slot, seat.length, len(ids), seat.source_length)
        with record_to(None, padded=False):
            self._backend.prefill(int_tensor([ids], self._model.device), self._slots)
        seat.length += len(ids)
        self._slots.own.lengths[seat.slot] = seat.length

    # ---- steps ------------------------------------------------------------------------------------------------------

    def step(self, seats: Sequence[Seat]) -> Iterator[tuple[Seat, list[Output] | Exception]]:
        """Writes a token for each of some seats that have read their contexts: what each has to tell, or its fault.

        An out-of-memory error is met by halves of the batch. What else the model raises is everybody's fault.
        """
        self._close_ranks()
        left = sorted(seats, key=lambda seat: seat.slot)
        while left:
            now = left[: self._together]
            self._has_chosen = False
            try:
                told = list(self._step(now))
            except Exception as error:
                # Once tokens are chosen, to try again would be to draw and to count them again.
                if is_out_of_memory(error) and len(now) > 1 and not self._has_chosen:
                    self._together = len(now) // 2
                    continue
                told = [(seat, out_of_memory() if is_out_of_memory(error) else error) for seat in now]
            del left[: len(now)]
            yield from told

    def _close_ranks(self) -> None:
        """Moves who sits last to the first free slot, where as many slots are idle in between as are not.

        Idle ones run along in each step. To move one sequence costs less than they do, and spares the others.
        """
        while self._seats:
            last = max(self._seats)
            first = min(self._seats)
            if last - first + 1 <= 2 * len(self._seats) or self._free[0] > last:
                return
            seat = self._seats[last]
            to = heapq.heappop(self._free)
            self._slots.move(last, to)
            self._sampler.swap_in(to, self._sampler.swap_out(last))
            self._tokens[to] = self._tokens[last]
            self._free_slot(seat)
            seat.slot = to
            self._seats[to] = seat

    def _step(self, seats: Sequence[Seat]) -> Iterator[tuple[Seat, list[Output] | Exception]]:
        first, end = seats[0].slot, seats[-1].slot + 1
        # The slots between them run as well: they compute what they computed before, or nothing that anyone sees.
        present = [seat for slot, seat in self._seats.items() if first <= slot < end]
        length = max(seat.length for seat in present) + 1
        source = max(seat.source_length for seat in present)
        are_even = not self._backend.is_compiled and all(
            seat.length + 1 == length and seat.source_length == source for seat in present
        )
        if self._backend.is_compiled:  # for one shape
            first, end, (length, source) = 0, self._count, self._backend.lengths
        self._slots.begin_decode(slice(first, end), length, source, are_even=are_even)
        fed = self._tokens[first:end]
        positions: dict[AttentionKind, int] = {"cross": source, "decoder_self": length}
        is_free_to_choose = isinstance(self._backend.decoder, ProgrammedDecoder)
        recorder = _BatchRecording(seats, first, end, positions, fed, is_free_to_choose=is_free_to_choose)
        active = [seat.slot for seat in seats]
        keep = any(seat.job.scores for seat in seats)  # they are taken from what the model gave
        sought = None if keep else self._seek(first, end, active)
        with record_to(recorder, padded=False):
            made = self._backend.decode(fed, self._slots, sought)
        if sought is None:
            logits, choice = self._choose(made, first, end, active, keep=keep)
        else:
            logits, choice = None, self._choose_found(sought, first, end, active)
        # A processor's fault is its request's alone, and so is a score's.
        failed = self._sampler.failed
        faults: dict[Seat, Exception] = {seat: failed[seat.slot] for seat in seats if seat.slot in failed}
        scored = list(self._scores([seat for seat in seats if seat not in faults], logits, choice.tokens, faults))
        # Side by side, they are looked at where they are.
        index = slice(first, end) if len(seats) == end - first else cached_index(tuple(active), fed.device)
        tokens = choice.tokens[index]
        scores = [made for _, made in scored]
        drawn = [] if choice.is_left is None else [choice.is_left[index]]
        ids, finite, *rest = to_host([tokens, choice.is_number[index], *drawn, *scores, *recorder.tensors])
        left, rest = rest[: len(drawn)], rest[len(drawn) :]
        self._tokens[index] = tokens[:, None]
        self._slots.advance(index)
        told_scores: dict[Seat, list[float]] = {}
        for (group, _), numbers in zip(scored, rest, strict=False):
            told_scores |= zip(group, numbers.tolist(), strict=True)
        attentions = recorder.attentions(rest[len(scores) :], faults)
        for place, seat in enumerate(seats):
            seat.length += 1
            if seat in faults:
                yield seat, faults[seat]
                continue
            try:
                told = seat.writer.write(
                    int(ids[place]),
                    bool(finite[place]),
                    all(bool(each[place]) for each in left),
                    told_scores.get(seat, []),
                    attentions.get(seat, (None, None)),
                )
                yield seat, list(told)
            except Exception as error:
                yield seat, error

    def _seek(self, first: int, end: int, active: Sequence[int]) -> ArgmaxQuery | None:
        """How a step's tokens are found without writing scores; None where these must be there to be chosen from."""
        vocabulary = self._backend.lm_head
        if vocabulary is None:
            return None
        excluded = self._sampler.banned_tokens(active, end)
        return None if excluded is None else vocabulary.argmax_query(end - first, excluded, first)

    def _choose_found(self, sought: ArgmaxQuery, first: int, end: int, active: Sequence[int]) -> SamplerOutput:
        """The tokens of a step, where they have been found."""
        tokens, most = (_by_slot(each, first) for each in sought.search.found(end - first))
        self._has_chosen = True
        return self._sampler.accept_argmax(tokens, most, active)

    def _choose(
        self, made: Tensor, first: int, end: int, active: Sequence[int], *, keep: bool
    ) -> tuple[Tensor, SamplerOutput]:
        """The logits `[end, lm_head]` of a step that has made something of slots, and the tokens chosen by them.

        `keep` says that somebody needs the logits as they are.
        """
        vocabulary = self._backend.lm_head
        greatest: Greatest | None = None
        logits = made
        if vocabulary is not None:
            greatest_alone = not keep and self._sampler.wants_greatest_alone(active, end)
            estimates = vocabulary.estimates(made) if greatest_alone else None
            if estimates is None:
                logits = vocabulary.logits(made)
            else:
                logits, greatest = estimates.scores, estimates.greatest
        logits = _by_slot(logits, first)
        self._has_chosen = True
        return logits, self._sampler.sample(logits, active, keep=keep, greatest=greatest)

    def _scores(
        self, seats: Sequence[Seat], logits: Tensor | None, tokens: Tensor, faults: dict[Seat, Exception]
    ) -> Iterator[tuple[list[Seat], Tensor]]:
        """The scores of a step, `[seats, scores]` for those that ask for the same ones. What goes wrong is a fault."""
        if logits is None:  # then nobody asks for any
            return
        groups: dict[tuple[tuple[Score, ...], float], list[Seat]] = {}
        for seat in seats:
            if seat.job.scores:
                groups.setdefault((seat.job.scores, seat.job.score_top_p), []).append(seat)
        for (names, top_p), group in groups.items():
            rows = cached_index(tuple(seat.slot for seat in group), logits.device)
            try:
                yield group, step_scores(names, logits[rows], tokens[rows], top_p)
            except Exception as error:
                faults |= dict.fromkeys(group, error)

    def leave(self, seat: Seat) -> None:
        """Frees a seat's slot. One that is parked has none."""
        if seat.parked is None:
            self._sampler.remove(seat.slot)
            self._free_slot(seat)
        seat.parked = None
        self._together = min(2 * self._together, self._count)  # there is memory again

    def park(self, seat: Seat) -> None:
        """Frees the slot of one who will go on later: what it holds moves out of it."""
        contents = self._slots.swap_out(seat.slot, seat.length, seat.source_length)
        token = self._tokens[seat.slot].clone()
        seat.parked = Parked(contents, self._sampler.swap_out(seat.slot), token)
        self._free_slot(seat)

    def bytes_of(self, seat: Seat) -> int:
        """How much memory a request takes while it is parked."""
        return self._backend.cache_bytes(seat.length, seat.source_length)

    def unpark(self, seat: Seat) -> None:
        """Gives one who was parked a slot again. There must be a free one."""
        assert seat.parked is not None
        seat.slot = heapq.heappop(self._free)
        self._slots.swap_in(seat.slot, seat.parked.contents)
        self._sampler.swap_in(seat.slot, seat.parked.chosen)
        self._tokens[seat.slot] = seat.parked.token
        self._seats[seat.slot] = seat
        seat.parked = None

    def _free_slot(self, seat: Seat) -> None:
        del self._seats[seat.slot]
        # Whether or not anybody has noticed, its numbers may be none. The place of the next token counts.
        self._slots.clear(seat.slot, max(seat.length, seat.context) + 1, seat.source_length)
        heapq.heappush(self._free, seat.slot)


class _Recorded(NamedTuple):
    """The rows of those who have the same plan."""

    seats: list[Seat]
    recorder: PassRecorder
    rows: Tensor | None  # which rows of its results are theirs; None: all, in their order


class _BatchRecording:
    """The rows that a step keeps, of all seats: those with equal plans together."""

    def __init__(
        self,
        seats: Sequence[Seat],
        first: int,
        end: int,
        positions: Mapping[AttentionKind, int],
        tokens: Tensor,
        *,
        is_free_to_choose: bool,
    ) -> None:
        """For a step of `tokens`, those of the slots from `first` to `end`.

        `is_free_to_choose` says that to keep some rows of them takes no longer than to keep all.
        """
        groups: dict[int, list[Seat]] = {}
        for seat in seats:
            if seat.writer.wants_row:
                groups.setdefault(id(seat.plan), []).append(seat)
        count = end - first
        most = max(map(len, groups.values()), default=0)
        self._groups: list[_Recorded] = []
        self._targets: dict[LayerKey, list[RecordTarget]] = {}
        for group in groups.values():
            slots = [seat.slot - first for seat in group]
            rows = cached_index(tuple(slots), tokens.device) if slots != list(range(count)) else None
            # To take some rows out of a batch is to copy their keys. Rows of all, of which some are kept, cost less
            # where they are many, or where they come from the kernel that reads the keys anyhow.
            is_whole = 2 * len(slots) >= count or (fuses(tokens) and len(slots) == most)
            if is_free_to_choose:
                is_whole = rows is None
            taken = None if is_whole else rows
            made = PassRecorder(group[0].plan, LAST_QUERY, positions, taken, count if is_whole else len(slots))
            self._groups.append(_Recorded(group, made, rows if is_whole else None))
            for site, target in made.targets_of_step(tokens.device):
                self._targets.setdefault(site, []).append(target)

    def targets(
        self,
        site: LayerKey,
        shape: tuple[int, int, int, int],  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
    ) -> Sequence[RecordTarget]:
        """As `Recorder` has it."""
        return self._targets.get(site, ())

    def _results(self) -> Iterator[tuple[_Recorded, AttentionKind, AttentionTensors]]:
        kinds: tuple[AttentionKind, ...] = ("cross", "decoder_self")
        for group in self._groups:
            for kind in kinds:
                result = group.recorder.result(kind)
                if result is not None:
                    yield group, kind, result

    @property
    def tensors(self) -> list[Tensor]:
        """What is to be fetched."""
        return [
            tensor if group.rows is None else tensor.index_select(0, group.rows)
            for group, _, result in self._results()
            for tensor in result[:3]
            if tensor is not None
        ]

    def attentions(
        self, arrays: Iterable[NDArray[Any]], faults: dict[Seat, Exception]
    ) -> dict[Seat, tuple[AttentionArrays | None, AttentionArrays | None]]:
        """The attention of each seat, cross and decoder self, from the fetched `tensors`.

        A seat whose attention is NaN or infinite gets a fault, unless it has one.
        """
        left = iter(arrays)
        found: dict[Seat, dict[AttentionKind, AttentionArrays]] = {}
        for (seats, *_), kind, result in self._results():
            fetched = [next(left)[:, 0] for tensor in result[:3] if tensor is not None]
            numbers = numbers_of(result, fetched, seats[0].plan.shape(kind))
            assert numbers is not None
            is_all_finite = are_finite(numbers)  # one look, where all is well
            for row, seat in enumerate(seats):
                # Without the positions that only others of the batch have.
                seen = seat.source_length if kind == "cross" else seat.length + 1
                mine = found.setdefault(seat, {})[kind] = numbers.copy_of(row, seen)
                if not is_all_finite and not are_finite(mine):
                    faults.setdefault(seat, not_a_number())
        return {seat: (kinds.get("cross"), kinds.get("decoder_self")) for seat, kinds in found.items()}


def _by_size(seats: Sequence[Seat]) -> Iterator[list[Seat]]:
    """Seats whose sources are read together: alike in length, and not too many tokens."""
    group: list[Seat] = []
    for seat in sorted(seats, key=lambda seat: seat.source_length):
        if group and (len(group) + 1) * seat.source_length > MOST_TOGETHER:
            yield group
            group = []
        group.append(seat)
    if group:
        yield group


def _by_slot(rows: Tensor, first: int) -> Tensor:
    """Rows of the slots from `first` on, where the chooser looks for them: it knows rows by their slots."""
    return torch.cat([rows.new_zeros(first, *rows.shape[1:]), rows]) if first else rows
