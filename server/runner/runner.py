"""What the engine asks of a runner, and which runner a model has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ..capture import AttentionArrays
from ..models import LoadedModel
from ..request import Request
from .model_runner import ModelRunner
from .sequence import DecodeOutput, Rewind, Sequence
from .targets import TargetPass
from .unbatched_runner import UnbatchedRunner


class Runner(Protocol):
    """Runs the sequences of one model. For the engine's thread, in torch's inference mode.

    The order of calls for a decoded request: `add`; `prefill` while the sequence `is_prefilling`; `decode` again and
    again; `remove`. Between two steps, `preempt` gives the sequence's slots to other requests, and `resume` takes slots
    again. A beam search is one sequence with several slots. A request whose target is given has no sequence: its passes
    come from `target_pass`. `read_targets` runs the passes of several requests together.

    The sequence of a follow stream may be rewound between two steps. If `catch_up_pass` makes a pass for the rewind,
    `read_targets` must run the pass before the next step. If the client gives the tokens, each `decode` reads the last
    token, and `accept` takes the next one.
    """

    @property
    def max_batch_size(self) -> int:
        """The most sequences that `decode` takes at once."""
        ...

    @property
    def num_free_slots(self) -> int:
        """How many slots are free. A request takes `Request.num_sequences`."""
        ...

    def add(self, requests: list[Request], *, reads_sources: bool = True) -> list[Sequence | Exception]:
        """Gives each request its slots and reads its source, or says why not. There must be enough free slots.

        Without `reads_sources`, all requests are those of follow streams, and `rewind` comes next. What `rewind` needs
        decides how the sources are read.
        """
        ...

    def remove(self, sequence: Sequence) -> None:
        """Frees everything that a sequence holds, preempted or not."""
        ...

    def preempt(self, sequence: Sequence) -> None:
        """Frees the slots of a sequence that goes on later."""
        ...

    def resume(self, sequence: Sequence) -> None:
        """Gives a preempted sequence its slots again. There must be enough free slots."""
        ...

    def cache_bytes(self, sequence: Sequence) -> int:
        """How many bytes of memory a sequence takes while it is preempted."""
        ...

    def prefill(self, sequence: Sequence) -> None:
        """Reads the next chunk of a prompt."""
        ...

    def rewind(self, rewinds: list[Rewind]) -> dict[Sequence, Exception]:
        """Puts sequences of follow streams behind other sources or targets. Returns what went wrong, by sequence."""
        ...

    def accept(self, sequence: Sequence, id_: int) -> list[float]:
        """Takes the next token of a followed sequence from its client. Returns the scores of the token.

        The pass before the token must have run.
        """
        ...

    def decode(self, sequences: list[Sequence]) -> list[tuple[Sequence, DecodeOutput]]:
        """Takes one step of some sequences whose prompts have been read: what it gave each, or what went wrong.

        A sequence that stands for a beam search gets nothing before the search has ended.
        """
        ...

    def source_attention(self, request: Request) -> Iterator[AttentionArrays] | None:
        """The encoder self-attention of a request, by a pass of its own. Raises RequestError."""
        ...

    def target_pass(self, request: Request) -> TargetPass:
        """The forward passes of a request whose target is given."""
        ...

    def catch_up_pass(self, rewind: Rewind) -> TargetPass | None:
        """The pass over source and target that a rewind needs, with the steps of the new tokens.

        None where no such pass is needed: then new tokens have no steps, and the target may have none.
        """
        ...

    @property
    def max_given_tokens(self) -> int:
        """The most tokens of given targets, or of their sources, that one pass of several requests should read."""
        ...

    def read_targets(self, passes: list[TargetPass], max_tokens: int) -> list[TargetPass]:
        """Runs some of the passes together, the first among them, and returns these: `decode` gives what they gave.

        Each of the passes `can_share`, or is one of `catch_up_pass`. `max_tokens` bounds the tokens of the sources, and
        of the targets. Where the passes fail together, none is returned, and some of them can be shared no more.
        """
        ...


def make_runner(loaded: LoadedModel, max_sequences: int, thread_counts: tuple[int, ...] = ()) -> Runner:
    """The runner of a model: in slots where the model has a backend for them. A compiled backend takes a minute.

    `thread_counts` are the numbers of CPU threads that steps may use, from the least; none: as many as torch has.
    """
    if loaded.backend is None:
        return UnbatchedRunner(loaded, max_sequences)
    return ModelRunner(loaded, loaded.backend, max_sequences, thread_counts)
