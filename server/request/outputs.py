"""The outputs that answer a request.

The outputs of a request come in this order: one Started, any number of EncoderSelf, the Steps and the Units of steps,
one Finished. With an EncodedTarget, one EncoderStates comes in the place of EncoderSelf and Steps. A follow stream gets
a Started for each source, a StepCount for each TakeBack, and an AwaitingSource each time when its policy holds the
target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..alignment import Alignment, Link, Signals
from ..capture import AttentionArrays
from ..policy import PolicyDecision
from ..text import Token

StopReason = Literal["end_token", "length", "stop_text", "given"]


class TextSpan(NamedTuple):
    """A part of a text, with its characters."""

    begin: int
    end: int
    text: str


@dataclass(frozen=True)
class Started:
    """The first output, sent before the model runs.

    `decoder_prompt` holds the tokens of `Request.decoder_prompt_ids`, and `prefix_text` is their text, as far as it is
    complete. `seed` is the seed of sampling. `source_units` and `prefix_units` are what the units of the source and of
    `decoder_prompt` cover; empty without a grouping.
    """

    decoder_prompt: tuple[Token, ...]
    seed: int | None = None
    prefix_text: str = ""
    source_units: tuple[TextSpan, ...] = ()
    prefix_units: tuple[TextSpan, ...] = ()


@dataclass(frozen=True)
class EncoderSelf:
    """Encoder self-attention of some consecutive queries: `[queries, positions, layers, heads]`.

    Reduced attention has fewer axes.
    """

    first_query: int
    attention: AttentionArrays


@dataclass(frozen=True, eq=False)
class EncoderStates:
    """The encoder's states of a source and of an EncodedTarget: float32 `[tokens, width]` each."""

    source: NDArray[np.float32]
    target: NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """A token and its attention: `[positions, layers, heads]`. Reduced attention has fewer axes.

    `unsent_text` is the text of the steps that `resume_at` leaves out, in the first step or unit that is sent. `links`
    are those of the words that are complete with the step.
    """

    index: int
    token: Token
    text: str
    scores: Sequence[float] = ()
    cross: AttentionArrays | None = None
    decoder_self: AttentionArrays | None = None
    unsent_text: str = ""
    decision: PolicyDecision | None = None
    links: Sequence[Link] = ()


@dataclass(frozen=True)
class StepCount:
    """How many steps of a follow stream are left."""

    num_steps: int


@dataclass(frozen=True)
class AwaitingSource:
    """A follow stream has written what its policy allows. `num_firm` as in PolicyDecision."""

    num_steps: int
    num_firm: int


@dataclass(frozen=True)
class Hypothesis:
    """One result of a beam search.

    `score` is the sum of the log-probabilities divided by length ** length_penalty.
    """

    text: str
    tokens: tuple[Token, ...]
    score: float
    stop_reason: StopReason


@dataclass(frozen=True)
class Unit:
    """Consecutive steps that belong together, and their attention: `[units, layers, heads]`, or fewer axes."""

    index: int
    span: TextSpan
    first_step: int
    end_step: int
    scores: Sequence[float] = ()
    cross: AttentionArrays | None = None
    decoder_self: AttentionArrays | None = None
    unsent_text: str = ""


@dataclass(frozen=True)
class Finished:
    """The last output: the whole text, and why it ends.

    `seed` is the seed of sampling. `hypotheses` are the best ones of a beam search, the best first.
    """

    text: str
    stop_reason: StopReason
    num_steps: int
    seed: int | None = None
    hypotheses: tuple[Hypothesis, ...] = ()
    signals: Signals | None = None
    alignment: Alignment | None = None


Output = Started | EncoderSelf | EncoderStates | Step | Unit | StepCount | AwaitingSource | Finished
