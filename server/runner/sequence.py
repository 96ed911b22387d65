"""A request that a runner decodes, and what each forward pass gives it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..capture import AttentionArrays, AttentionKind, CapturePlan, RowCombiner, SpecialPositions
from ..memory import release_memory_of
from ..models import SwappedCache
from ..request import DecodingParams, FollowedTarget, Observer, Request
from ..sampling import BeamSearch, FoundHypothesis, SamplerState, step_scores
from ..transfer import to_host

# The most bytes of attention rows that the steps of a beam search keep, for each hypothesis that runs. The cache of a
# hypothesis takes about as much.
_MAX_ROW_BYTES = 2 * 1024**2


_NOTHING: Mapping[Observer, AttentionArrays] = {}


class StepOutput(NamedTuple):
    """What one forward pass gave one sequence: the next token, and the attention of the pass's last query.

    The attention is on the host, `[positions, layers, heads]` or fewer axes when reduced, and finite; None where the
    step keeps none. Of a followed sequence, the token means nothing: the client gives the next token later.
    """

    step: int  # from 0
    token_id: int
    is_end_token: bool  # one of the model's or the request's end-of-sequence tokens
    is_finite: bool = True  # whether the logits that the token was chosen by are
    has_candidates: bool = True  # whether sampling had left any token to draw
    scores: list[float] | tuple[float, ...] = ()
    cross: AttentionArrays | None = None
    decoder_self: AttentionArrays | None = None
    observed: Mapping[Observer, AttentionArrays] = _NOTHING  # for each observer of the request, `[positions]`

    @property
    def row_bytes(self) -> int:
        """Bytes of the attention."""
        return sum(rows.nbytes for rows in (self.cross, self.decoder_self) if rows is not None)


class SearchOutput(NamedTuple):
    """What the last step of a beam search gave one sequence. The steps before give it nothing."""

    hypotheses: list[FoundHypothesis]  # the best first; at least one
    steps: list[StepOutput] | None = None  # the rows of the best hypothesis; None: the search has not kept the rows


class BeamGroup:
    """The sequences that write the hypotheses of one beam search, each in a slot of its own.

    Before the first step all hypotheses are equal, and only the first sequence runs. Then its cache is copied.
    """

    def __init__(self, search: BeamSearch, sequences: list[Sequence], *, keeps_rows: bool = False) -> None:
        """The engine knows the first of the sequences only.

        `keeps_rows` says that the attention rows of the steps are kept, until the rows take too much memory.
        """
        self.search = search
        self.sequences = sequences  # in the order of the search's running hypotheses
        self.has_begun = False
        # By the tokens that were written before the step. Hypotheses that begin alike share these steps.
        self._steps: dict[tuple[int, ...], StepOutput] | None = {} if keeps_rows else None
        self._num_row_bytes = 0

    @property
    def running(self) -> list[Sequence]:
        """The sequences that take the next step."""
        return self.sequences if self.has_begun else self.sequences[:1]

    def keep_rows(self, outputs: Mapping[Sequence, StepOutput]) -> None:
        """Keeps the rows of a step of the running sequences, before the search takes this step."""
        if self._steps is None:
            return
        running = [outputs[sequence] for sequence in self.running]
        # Before the first step one sequence runs, and all hypotheses are empty.
        self._steps |= zip(self.search.running, running, strict=False)
        self._num_row_bytes += len(running) * running[0].row_bytes
        if self._num_row_bytes > _MAX_ROW_BYTES * self.search.width:
            self._steps = None
            for sequence in self.sequences:
                sequence.plan = replace(sequence.plan, kinds=())

    def steps_of(self, ids: tuple[int, ...]) -> list[StepOutput] | None:
        """Returns the steps with the rows of a hypothesis that has ended; None if the rows are not kept."""
        return None if self._steps is None else [self._steps[ids[:step]] for step in range(len(ids))]


class SwappedSequence(NamedTuple):
    """What a sequence takes along when it leaves its slot, so that it can go on in another slot."""

    cache: SwappedCache
    sampler_state: SamplerState
    token: Tensor  # the token that the decoder reads next, int64 `[1]`


DecodeOutput = StepOutput | SearchOutput | Exception
"""What a decode step gives a sequence, or what went wrong."""


@dataclass(eq=False)
class Sequence:
    """A decoded request in a runner, from `add` to `remove`. For the engine's thread."""

    request: Request
    params: DecodingParams | FollowedTarget
    plan: CapturePlan  # one object for all sequences of the runner whose plans are equal
    source_length: int  # tokens of the source in the cache; 0 where there is no encoder
    prompt: list[int]  # what the decoder reads before step 0
    end_ids: frozenset[int] = frozenset()
    slot: int = -1
    num_cached: int = 0  # tokens whose keys and values the cache holds
    num_steps: int = 0  # tokens that have been chosen
    # Encoder self-attention in parts, until `pop_source_attention`.
    source_attention: Iterator[AttentionArrays] | None = None
    special: SpecialPositions | None = None  # where rows leave out special tokens
    combiner: RowCombiner | None = None  # of a method that makes its rows of those of all queries
    is_preempted: bool = False
    swapped: SwappedSequence | None = None  # while a preempted sequence has no slot
    # The same tokens in the context of a contrast. This sequence reads what the first one writes, and writes nothing.
    contrast: Sequence | None = None
    group: BeamGroup | None = None  # of the sequence that stands for a beam search
    added_ids: list[int] | None = None  # in a follow stream: the tokens after `prompt`
    must_read_source: bool = False  # in a follow stream: whether the source is unread
    next_logits: Tensor | None = None  # of a followed sequence with scores: the last pass's, `[1, vocabulary]`

    def __post_init__(self) -> None:
        if self.is_followed or self.request.policy is not None:
            self.added_ids = []

    @property
    def members(self) -> tuple[Sequence, ...]:
        """The sequence, and that of its contrast or those of its beam search: they come, step and go together."""
        if self.group is not None:
            return tuple(self.group.sequences)
        return (self,) if self.contrast is None else (self, self.contrast)

    def count_step(self, token: int) -> None:
        """Takes note of a pass, and of the token that it has chosen. The tokens of a followed sequence come later."""
        self.num_cached += 1
        if self.added_ids is None or not self.is_followed:
            self.add_token(token)

    def add_token(self, token: int) -> None:
        """Takes note of the next token of the target."""
        self.num_steps += 1
        if self.added_ids is not None:
            self.added_ids.append(token)
        if self.special is not None:
            self.special.add(token)

    @property
    def is_followed(self) -> bool:
        """Whether the client gives each next token, by `Runner.accept`."""
        return isinstance(self.request.target, FollowedTarget)

    @property
    def num_pending(self) -> int:
        """Tokens of the prompt that must be read before the first step. The first step reads the last token."""
        return max(0, len(self.prompt) - 1 - self.num_cached)

    @property
    def num_written(self) -> int:
        """Positions of the cache that may hold numbers: of the prompt, of the tokens read, of the next token."""
        return max(self.num_cached, len(self.prompt) - 1) + 1

    @property
    def is_prefilling(self) -> bool:
        """Whether some of the prompt must be read before the first step."""
        return self.num_pending > 0 or (self.contrast is not None and self.contrast.is_prefilling)

    @property
    def has_output_next(self) -> bool:
        """Whether the next decode step gives the sequence something."""
        return not self.is_prefilling and self.group is None

    @property
    def wants_row(self) -> bool:
        """Whether the attention of the next pass's last query is sent."""
        # The last query of a pass predicts the token of this step, and reads the token of the step before.
        step = self.num_steps - 1 if self.plan.row == "reading" else self.num_steps
        return step >= self.request.first_row_step and self.plan.captures_step(step)

    @property
    def left_out(self) -> Mapping[AttentionKind, Tensor]:
        """The positions that rows leave out, as a combiner takes them: bool `[positions]` on the host, by kind."""
        return self.special.host_masks if self.special is not None and self.plan.leaves_out_special else {}

    def pop_source_attention(self) -> Iterator[AttentionArrays] | None:
        """The encoder self-attention in parts of `[queries, positions, …]`, once: the sequence keeps no reference."""
        attention, self.source_attention = self.source_attention, None
        return attention


class Rewind(NamedTuple):
    """Where a sequence of a follow stream is to stand: a source, and the tokens of the target behind it."""

    sequence: Sequence
    request: Request  # with another source, or the sequence's own
    target_ids: list[int]
    num_new: int = 0  # how many of the last tokens have no step yet
    is_read_whole: bool = False  # whether the pass that `Runner.catch_up_pass` makes reads source and target


def accept_token(sequence: Sequence, id_: int) -> list[float]:
    """Takes note of a followed sequence's next token. Returns the token's scores, from the logits of the last pass."""
    sequence.add_token(id_)
    logits, sequence.next_logits = sequence.next_logits, None
    if logits is None:
        return []
    request = sequence.request
    token = torch.tensor([id_], device=logits.device)
    (scores,) = to_host([step_scores(request.scores, logits, token, request.score_top_p)])
    return scores[0].tolist()


def num_common(ids: Collection[int], others: Collection[int]) -> int:
    """Returns the number of tokens with which two targets begin alike."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(ids), len(others)))


def add_each(requests: list[Request], add: Callable[[Request], Sequence]) -> list[Sequence | Exception]:
    """Calls `add` with each request. Returns the sequences, and where `add` has raised an error, the error."""
    added: list[Sequence | Exception] = []
    for request in requests:
        try:
            added.append(add(request))
        except Exception as error:  # noqa: PERF203  # one request's fault must not keep out the others
            added.append(release_memory_of(error))
    return added
