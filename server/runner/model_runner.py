"""Runs sequences in the slots of a KV cache: all of them in one decode step, one token each.

Sequences come and go between steps. Tokens are chosen for all sequences at once, for each as if it were alone: the
tokens of a sequence do not depend on the others. Knows models, captures and requests; knows neither texts nor queues.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..capture import AttentionArrays, FactorCache, record_to
from ..memory import is_out_of_memory, release_memory_of
from ..models import Backend, KVCache, LoadedModel
from ..request import DecodingParams, GivenTarget, Request
from ..sampling import Sampler
from .beams import BeamStep, flatten, make_search, records_rows, search_request
from .decode_step import DecodeStep, StepAttempts
from .prefill import Prefill
from .sequence import BeamGroup, DecodeOutput, Rewind, Sequence, accept_token, add_each
from .single_sequence import find_special, new_combiner
from .slot_allocator import SlotAllocator, SlotContents
from .targets import TargetPass, TargetReader, catch_up_pass
from .thread_tuner import ThreadTuner


class ModelRunner:
    """The slots of one model. For the engine's thread, in torch's inference mode. A `Runner`."""

    def __init__(
        self, loaded: LoadedModel, backend: Backend, num_slots: int, thread_counts: tuple[int, ...] = ()
    ) -> None:
        """`thread_counts` are the numbers of CPU threads to choose from; with none, torch's own number stays."""
        self._loaded = loaded
        self._backend = backend
        self.max_batch_size = num_slots
        self._cache: KVCache = backend.new_kv_cache(num_slots)
        self._sampler = Sampler(loaded, num_slots, loaded.max_target_tokens + 1)
        self._slots = SlotAllocator(num_slots)
        # A compiled step is compiled for its number of threads, and a GPU takes as long with any number.
        is_tunable = loaded.model.device.type == "cpu" and not backend.is_compiled
        self._threads = ThreadTuner(thread_counts if is_tunable else ())
        self._tokens = torch.zeros(num_slots, 1, dtype=torch.int64, device=loaded.model.device)  # read next, by slot
        factors = FactorCache(num_slots, backend.lengths)
        self._contents = SlotContents(self._slots, self._cache, self._sampler, self._tokens, factors)
        self._prefill = Prefill(loaded, backend, self._cache, factors)
        self._step = DecodeStep(backend, self._cache, self._sampler, self._slots, self._tokens, factors)
        self._attempts = StepAttempts(self._step, num_slots)
        self._beam_step = BeamStep(self._cache, self._sampler, self._tokens)
        self._target_reader = TargetReader(loaded, backend, self._cache)
        self.max_given_tokens = self._target_reader.max_tokens
        if backend.is_compiled:
            self._compile()

    def _compile(self) -> None:
        """Runs a step of idle slots, so that the first request need not wait for the compiler."""
        self._cache.begin_decode(slice(0, self.max_batch_size), *self._backend.lengths)
        with record_to(None, padded=False):
            self._backend.decode(self._tokens, self._cache)

    @property
    def num_free_slots(self) -> int:
        """How many slots are free: a sequence takes one, a beam search as many as it is wide."""
        return self._slots.num_free

    # ---- sequences come and go --------------------------------------------------------------------------------------

    def add(self, requests: list[Request], *, reads_sources: bool = True) -> list[Sequence | Exception]:
        """Gives each request its slots and reads its source, or leaves that to `rewind`. See `Runner.add`."""
        added = add_each(requests, self._add)
        if not self._loaded.is_encoder_decoder:
            return added
        sequences = [sequence for sequence in added if isinstance(sequence, Sequence)]
        for sequence in sequences:
            sequence.must_read_source = not reads_sources
        # Of a beam search, one sequence reads the source; its cache is copied to the others.
        members = (member for sequence in sequences for member in sequence.members)
        read = self._prefill.read_sources([each for each in members if reads_sources and each.source_length])
        faults = {each: read[member] for each in sequences for member in reversed(each.members) if member in read}
        for sequence in faults:
            self.remove(sequence)
        return [faults.get(entry, entry) if isinstance(entry, Sequence) else entry for entry in added]

    def _add(self, request: Request) -> Sequence:
        sequence = self._add_sequence(request)
        contrast = sequence.request.contrast
        try:
            if request.beam is not None:
                self._add_beams(sequence, request.beam.width)
            if contrast is not None:
                sequence.contrast = self._add_sequence(contrast.request)
        except Exception:
            self.remove(sequence)
            raise
        return sequence

    def _add_sequence(self, request: Request) -> Sequence:
        params = request.target
        assert not isinstance(params, GivenTarget)
        source = request.source.ids if self._loaded.is_encoder_decoder else None
        prompt = [*(request.source.ids if source is None else ()), *request.decoder_prompt_ids]
        slot = self._slots.next_slot
        self._sampler.add(slot, params, prompt, source)
        if request.beam is not None:
            request = search_request(request)
        plans = (sequence.plan for sequence in self._slots.sequences.values())
        plan = next((plan for plan in plans if plan == request.capture), request.capture)
        source_length = 0 if source is None else request.source_length
        sequence = Sequence(request, params, plan, source_length, prompt, self._sampler.end_ids(slot))
        sequence.special = find_special(self._loaded, request)
        sequence.combiner = new_combiner(self._loaded, request, request.capture)
        self._slots.allocate(sequence)
        self._tokens[slot] = prompt[-1]
        return sequence

    def _add_beams(self, first: Sequence, width: int) -> None:
        """Gives a sequence that stands for a beam search the other sequences of the search, each with a slot."""
        search, keeps_rows = make_search(self._loaded, first), records_rows(first.request)
        first.group = BeamGroup(search, [first], keeps_rows=keeps_rows)
        for _ in range(width - 1):
            self._sampler.copy(first.slot, self._slots.next_slot)
            sequence = Sequence(first.request, first.params, first.plan, 0, [])
            self._slots.allocate(sequence)
            first.group.sequences.append(sequence)

    def rewind(self, rewinds: list[Rewind]) -> dict[Sequence, Exception]:
        """Puts sequences of follow streams behind other sources or targets. Returns what went wrong, by sequence."""
        faults = self._prefill.rewind(rewinds)
        for rewind in rewinds:
            if rewind.sequence not in faults:
                try:
                    self._continue(rewind)
                except Exception as error:  # one request's fault must not end the others
                    faults[rewind.sequence] = release_memory_of(error)
        return faults

    def _continue(self, rewind: Rewind) -> None:
        """Lets the sampler go on where a sequence stands now."""
        sequence, request, target_ids, *_ = rewind
        slot, prompt = sequence.slot, sequence.prompt
        self._tokens[slot] = prompt[-1]
        if isinstance(request.target, DecodingParams):
            context = prompt[: len(prompt) - len(target_ids)]
            source = request.source.ids if self._loaded.is_encoder_decoder else None
            self._sampler.add(slot, request.target, context, source)
            self._sampler.continue_from(slot, context, target_ids)

    def accept(self, sequence: Sequence, id_: int) -> list[float]:
        """Takes the next token of a followed sequence from its client. Returns the scores of the token."""
        self._tokens[sequence.slot] = id_
        return accept_token(sequence, id_)

    def remove(self, sequence: Sequence) -> None:
        """Frees the slot of a sequence, if it has one."""
        for member in sequence.members:
            if not member.is_preempted:
                self._sampler.remove(member.slot)
                self._contents.release(member)
            member.swapped, member.is_preempted = None, False
        self._attempts.grow()  # there is memory again

    def preempt(self, sequence: Sequence) -> None:
        """Frees the slots of a sequence that goes on later: its caches move to the host."""
        for member in sequence.members:
            self._contents.swap_out(member)

    def resume(self, sequence: Sequence) -> None:
        """Gives a preempted sequence a slot again. There must be a free slot for each of its members."""
        for member in sequence.members:
            self._contents.swap_in(member)

    def cache_bytes(self, sequence: Sequence) -> int:
        """How many bytes the cache of a sequence takes while it is preempted."""
        return sum(self._backend.cache_bytes(member.num_cached, member.source_length) for member in sequence.members)

    # ---- forward passes ---------------------------------------------------------------------------------------------

    def prefill(self, sequence: Sequence) -> None:
        """Reads the next chunk of a prompt, so that other sequences need not wait for all of it."""
        self._prefill.read_prompt(next(member for member in sequence.members if member.num_pending))

    def source_attention(self, request: Request) -> Iterator[AttentionArrays] | None:
        """The encoder self-attention of a request once more, by another pass of its source. Raises RequestError."""
        return self._prefill.source_attention(request)

    def target_pass(self, request: Request) -> TargetPass:
        """The forward passes of a request whose target is given. They need no slot."""
        return TargetPass(self._loaded, request)

    def catch_up_pass(self, rewind: Rewind) -> TargetPass | None:
        """The pass that reads what the sequence of a follow stream is to stand behind; None: there is none."""
        return catch_up_pass(self._loaded, rewind)

    def read_targets(self, passes: list[TargetPass], max_tokens: int) -> list[TargetPass]:
        """Runs some of the passes together, the first among them, and returns these passes."""
        return self._target_reader.read(passes, max_tokens)

    def decode(self, sequences: list[Sequence]) -> list[tuple[Sequence, DecodeOutput]]:
        """Takes one step of some sequences whose prompts have been read: what it gave each, or what went wrong.

        A sequence that stands for a beam search gets nothing before the search has ended. An error, such as too little
        memory, is met by steps of half as many sequences, down to one: it ends only the sequences that cause it. Tokens
        that are chosen already stay.
        """
        searching = [sequence for sequence in sequences if sequence.group is not None]
        if searching:
            sequences = [*flatten(sequences)]
        with self._threads.step(len(sequences)):
            self._compact()
            outputs: list[tuple[Sequence, DecodeOutput]] = []
            for results in self._attempts.run(sequences):
                outputs += self._beam_step.keep(results, self._step.log_probs) if searching else results
            return self._beam_step.finish(searching, outputs) if searching else outputs

    def _compact(self) -> None:
        """Moves the last sequence to the first free slot while more than half of the slots in between are idle."""
        if self._backend.is_compiled:  # each step runs all slots
            return
        try:
            while (last := self._slots.sparse_slot()) is not None:
                self._contents.move(self._slots.sequences[last])
        except Exception as error:
            if not is_out_of_memory(error):  # where memory lacks, idle slots run along
                raise
