"""What comes back: tokens, steps, and whole attributions as NumPy arrays.

Plain data. Knows nothing of protobuf, gRPC or files.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .parameters import Kind, Row, Score

Numbers = NDArray[np.floating[Any]]

StopReason = Literal["end_token", "length", "stop_text", "given"]


@dataclass(frozen=True)
class Token:
    """One token.

    `begin` and `end` count characters of the exact text, half-open; `text` is what stands there. `piece` is the
    vocabulary's own form, such as "▁Haus". Special tokens cover nothing. Tokens that are only some bytes of a character
    all have that character's span; in a step, the `text` of all but the last of them is empty.
    """

    id: int
    piece: str
    begin: int
    end: int
    special: bool
    text: str

    @property
    def label(self) -> str:
        """What to show for it: its text; its piece where it stands for no characters.

        White space alone has its picture; a token that is only some bytes of a character, while that is incomplete, an
        ellipsis: the piece would be another character.
        """
        if label := self.text.strip():
            return label
        if self.text:
            return "".join("␣" if unicodedata.category(character) == "Zs" else character for character in self.text)
        return self.piece if self.special or self.begin == self.end else "…"


_UNKNOWN = Token(0, "…", 0, 0, True, "")


@dataclass(frozen=True)
class Layout:
    """What the axes of one kind's arrays mean, behind the axes for positions and steps.

    `axes` names them in order; `layers` are the model's layers along "layer" (or those that were reduced), `pairs` the
    (layer, head) pairs along "pair" (or those that were reduced, each with its weight in `weights`); "head" counts 0 to
    `head_count` - 1.
    """

    kind: Kind
    axes: tuple[Literal["layer", "head", "pair"], ...]
    layers: tuple[int, ...]
    head_count: int
    pairs: tuple[tuple[int, int], ...]
    weights: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of these axes."""
        lengths = {"layer": len(self.layers), "head": self.head_count, "pair": len(self.pairs)}
        return tuple(lengths[axis] for axis in self.axes)


@dataclass(frozen=True)
class Started:
    """The header of a stream: what follows, before it follows.

    `seed` is the one that sampling uses, for resuming a broken stream or drawing the same again; None without sampling.
    `top_k` is how many positions of each row are sent, the greatest ones; 0 for all.
    """

    request_id: str
    model: str
    source_text: str
    source: tuple[Token, ...]
    prefix: tuple[Token, ...]
    layouts: Mapping[Kind, Layout]
    scores: tuple[Score, ...]
    row: Row
    is_encoder_decoder: bool
    seed: int | None = None
    top_k: int = 0

    @property
    def first_position(self) -> int:
        """The position of the first step's token in decoder self-attention."""
        return len(self.prefix) + (0 if self.is_encoder_decoder else len(self.source))


@dataclass(frozen=True, eq=False)
class Step:
    """One token of the target and its attention.

    `cross` is `[source positions, layers, heads]` and `decoder_self` `[positions seen, layers, heads]`, or fewer axes
    when reduced (see `Started.layouts`); None where it was not captured. With `Started.top_k`, 0 stands for
    what was not sent. `text` is what the step adds to the text.
    """

    index: int
    token: Token
    text: str
    cross: Numbers | None
    decoder_self: Numbers | None
    scores: Mapping[Score, float]


@dataclass(frozen=True)
class Usage:
    """What a request cost. Times in seconds, from its arrival at the server."""

    source_tokens: int
    target_tokens: int
    attention_bytes: int
    queue_time: float
    time_to_first_step: float
    total_time: float
    seed: int | None


@dataclass(frozen=True)
class Hypothesis:
    """One result of a beam search. `score` is the sum of log-probabilities over length ** length_penalty, in nats."""

    text: str
    tokens: tuple[Token, ...]
    score: float


@dataclass(frozen=True)
class Ending:
    """The end of a stream: what can be told only then."""

    text: str
    stop_reason: StopReason
    usage: Usage
    hypotheses: tuple[Hypothesis, ...] = ()


@dataclass(frozen=True, eq=False)
class Attribution:
    """A whole result. Arrays are float32, or float16 where the capture asked for that, and hold every position.

    Where the capture asked for `top_k`, 0 stands for what was not sent.

    Attributes:
        started: The stream's header.
        steps: The target's tokens that are steps, in order.
        text: The target's text.
        stop_reason: Why it ends where it does.
        usage: What it cost.
        cross: `[source positions, steps, layers, heads]`, Inseq's `source_attributions`; fewer axes when reduced; None
            where it was not captured. NaN for steps that carry no attention.
        decoder_self: `[positions, steps, layers, heads]`, Inseq's `target_attributions`: positions are the prefix and
            the steps (for a decoder-only model the prompt, the prefix and the steps). NaN where a step has not seen a
            position.
        encoder_self: `[queries, positions, layers, heads]`; None where it was not captured.
        scores: For each score asked, `[steps]`.
        hypotheses: Of a beam search, the best ones.
        first_step: The index of the first of `steps`; above 0 for a resumed stream only.
    """

    started: Started
    steps: tuple[Token, ...]
    text: str
    stop_reason: StopReason
    usage: Usage
    cross: Numbers | None = None
    decoder_self: Numbers | None = None
    encoder_self: Numbers | None = None
    scores: Mapping[Score, Numbers] = field(default_factory=dict[Score, Numbers])
    hypotheses: tuple[Hypothesis, ...] = ()
    first_step: int = 0

    @property
    def layouts(self) -> Mapping[Kind, Layout]:
        """What the axes of each array mean."""
        return self.started.layouts

    @property
    def source(self) -> tuple[Token, ...]:
        """The source's tokens; a decoder-only model's prompt."""
        return self.started.source

    @property
    def context(self) -> tuple[Token, ...]:
        """The tokens that the decoder reads before the first step."""
        prompt = () if self.started.is_encoder_decoder else self.started.source
        return (*prompt, *self.started.prefix)

    @property
    def decoder_positions(self) -> tuple[Token, ...]:
        """The tokens at the positions of `decoder_self`. Of a resumed stream the first steps are not known."""
        return (*self.context, *([_UNKNOWN] * self.first_step), *self.steps)


@dataclass(frozen=True)
class ModelAttention:
    """The size of one kind of attention in a model."""

    layers: int
    heads: int


@dataclass(frozen=True)
class Model:
    """A model that the server has loaded."""

    name: str
    family: str
    is_encoder_decoder: bool
    attentions: Mapping[Kind, ModelAttention]
    max_source_tokens: int
    max_target_tokens: int
    languages: tuple[str, ...]
    dtype: str
    device: str
    default: bool
    vocabulary_size: int


def collect(started: Started, encoder_self: Sequence[Numbers], steps: Sequence[Step], ending: Ending) -> Attribution:
    """Puts the parts of a stream together."""
    positions = started.first_position + (steps[-1].index + 1 if steps else 0)
    return Attribution(
        started=started,
        steps=tuple(_completed(step.token, ending.text) for step in steps),
        text=ending.text,
        stop_reason=ending.stop_reason,
        usage=ending.usage,
        hypotheses=ending.hypotheses,
        first_step=steps[0].index if steps else 0,
        cross=_stack([step.cross for step in steps], len(started.source)),
        decoder_self=_stack([step.decoder_self for step in steps], positions),
        encoder_self=np.concatenate(encoder_self) if encoder_self else None,
        scores={name: np.array([step.scores[name] for step in steps], np.float32) for name in started.scores},
    )


def _completed(token: Token, text: str) -> Token:
    """A step's token with all its text: a character's first bytes come before the character is known."""
    whole = text[token.begin : token.end]
    is_completed = whole != token.text and whole.startswith(token.text)
    return dataclasses.replace(token, text=whole) if is_completed else token


def _stack(rows: Iterable[Numbers | None], positions: int) -> Numbers | None:
    """Rows `[positions seen, ...]` side by side, `[positions, steps, ...]`; NaN where there is nothing."""
    rows = list(rows)
    some = next((row for row in rows if row is not None), None)
    if some is None:
        return None
    stacked = np.full((positions, len(rows), *some.shape[1:]), np.nan, some.dtype)
    for index, row in enumerate(rows):
        if row is not None:
            stacked[: row.shape[0], index] = row
    return stacked
