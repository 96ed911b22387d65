"""The results of requests: tokens, steps and whole attributions. Attention is in NumPy arrays.

All types here are plain data, without protobuf, gRPC or files.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..offset_units import Span, Token
from ..parameters import AttentionKind, Grouping, Method, OffsetUnit, Row, Score, SpecialTokens
from .conversions import NotebookMethods
from .observations import Link, Signals, WordAlignment

FloatArray = NDArray[np.floating[Any]]


StopReason = Literal["end_token", "length", "stop_text", "given"]


_UNKNOWN_TOKEN = Token(0, "…", 0, 0, True, "")


@dataclass(frozen=True)
class AttentionLayout:
    """The meaning of an attention array's axes behind the axes for positions and steps.

    Attributes:
        kind: The kind of attention.
        axes: The names of the axes, in order.
        layers: The model's layers along the axis "layer", or the layers that were reduced.
        head_count: The number of heads along the axis "head", which are 0 to `head_count` - 1.
        pairs: The (layer, head) pairs along the axis "pair", or the pairs that were reduced.
        weights: The weight of each of `pairs`, for a reduction.
    """

    kind: AttentionKind
    axes: tuple[Literal["layer", "head", "pair"], ...]
    layers: tuple[int, ...]
    head_count: int
    pairs: tuple[tuple[int, int], ...]
    weights: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        lengths = {"layer": len(self.layers), "head": self.head_count, "pair": len(self.pairs)}
        return tuple(lengths[axis] for axis in self.axes)


@dataclass(frozen=True)
class Started:
    """The header of a stream. It describes the steps that follow.

    Attributes:
        request_id: The id of the request.
        model: The name of the model.
        source_text: The text of the source.
        source: The tokens of the source; for a decoder-only model, of the prompt.
        prefix: The tokens that the decoder starts with, before the first step.
        layouts: The axes of the arrays, for each kind of attention.
        scores: The names of the scores, in the order of the request.
        row: Which query a row belongs to.
        is_encoder_decoder: Whether the model has an encoder.
        seed: The seed of sampling, to resume a broken stream or to draw the same tokens again. None without sampling.
        top_k: How many positions of each row are sent, which are the greatest. 0: all positions.
        offset_unit: What the offsets of all tokens count.
        source_tokens_left_out: How many tokens of the source `truncate` has left out.
        target_tokens_left_out: How many tokens of the target or of the prefix `truncate` has left out.
        source_position_count: The number of source positions where the source is a recording, which has no tokens.
        method: What the numbers of attention measure.
        grouping: What one position and one step stand for.
        source_units: The units of the source. Empty without a grouping.
        prefix_units: The units of `prefix`. Empty without a grouping.
        sent_positions: The source positions, or units, that are sent. None: all.
        special_tokens: Whether special tokens were kept, or left out of each row.
        is_share: Whether the numbers of a row are shares of 1: there are no norms, sums or differences.
        is_difference: Whether the attention is that of the request minus that of its contrast.
    """

    request_id: str
    model: str
    source_text: str
    source: tuple[Token, ...]
    prefix: tuple[Token, ...]
    layouts: Mapping[AttentionKind, AttentionLayout]
    scores: tuple[Score, ...]
    row: Row
    is_encoder_decoder: bool
    seed: int | None = None
    top_k: int = 0
    offset_unit: OffsetUnit = "code_point"
    source_tokens_left_out: int = 0
    target_tokens_left_out: int = 0
    source_position_count: int = 0
    method: Method = "weights"
    grouping: Grouping = "token"
    source_units: tuple[Span, ...] = ()
    prefix_units: tuple[Span, ...] = ()
    sent_positions: tuple[int, ...] | None = None
    special_tokens: SpecialTokens = "keep"
    is_share: bool = True
    is_difference: bool = False

    @functools.cached_property
    def source_positions(self) -> tuple[Token | Span, ...]:
        """What the source positions of the arrays stand for: tokens, or units with a grouping."""
        positions = self.source if self.grouping == "token" else self.source_units
        return positions if self.sent_positions is None else tuple(positions[index] for index in self.sent_positions)

    @functools.cached_property
    def context_positions(self) -> tuple[Token | Span, ...]:
        """What the positions of decoder self-attention before the first step stand for."""
        prefix = self.prefix if self.grouping == "token" else self.prefix_units
        return prefix if self.is_encoder_decoder else (*self.source_positions, *prefix)

    @property
    def source_length(self) -> int:
        """The number of source positions in the arrays."""
        return len(self.source_positions) or self.source_position_count

    @property
    def first_position(self) -> int:
        """The position of the first step's token, or of the first unit, in decoder self-attention."""
        return len(self.context_positions)


@dataclass(frozen=True)
class PolicyDecision:
    """What the policy of a follow stream says of a step.

    Attributes:
        is_held: Whether more source may change the step. Otherwise the step may be shown.
        source_token: The index of the source token that the step looks at most.
        firm_source_tokens: How many source tokens, from the first, the target up to this step is firm up to.
    """

    is_held: bool
    source_token: int
    firm_source_tokens: int


@dataclass(frozen=True, eq=False)
class Step:
    """One token of the target and its attention.

    With `Started.top_k`, the arrays have 0 for the positions that were not sent.

    Attributes:
        index: The step's number in the stream, from 0.
        token: The token.
        text: The text that the step adds to the target.
        cross: `[source positions, layers, heads]`, or fewer axes if reduced (see `Started.layouts`). None if it was not
            captured.
        decoder_self: `[positions seen, layers, heads]`, or fewer axes if reduced. None if it was not captured.
        scores: The value of each score of the request.
        special_shares: For each kind, what special tokens took of the attention before they were left out,
            `[layers, heads]`, or fewer axes if reduced: the mean. Empty unless the capture renormalizes.
        decision: What the policy of a follow stream says. None without a policy.
        links: The links of the target words that are complete with this step. Empty if the request asks for none.
    """

    index: int
    token: Token
    text: str
    cross: FloatArray | None
    decoder_self: FloatArray | None
    scores: Mapping[Score, float]
    special_shares: Mapping[AttentionKind, FloatArray] = field(default_factory=dict[AttentionKind, FloatArray])
    decision: PolicyDecision | None = None
    links: tuple[Link, ...] = ()


class EncoderSelf(NamedTuple):
    """A part of encoder self-attention: `[queries, positions, ...]`, and the shares of special tokens.

    `first_query` is the source position of the first query.
    """

    attention: FloatArray
    special_shares: FloatArray | None = None
    first_query: int = 0


@dataclass(frozen=True, eq=False)
class Unit:
    """Consecutive steps that belong together, such as the tokens of a word, and their attention.

    Attributes:
        index: The unit's number in the target, from 0.
        span: The part of the target text that the unit covers.
        first_step: The first step of the unit.
        end_step: One past the last step of the unit.
        cross: `[source units, layers, heads]`, or fewer axes if reduced. None if it was not captured.
        decoder_self: `[units up to this one, layers, heads]`, or fewer axes if reduced. None if it was not captured.
        scores: The value of each score of the request.
        special_shares: For each kind, what special tokens took of the rows of the unit's steps, on average.
    """

    index: int
    span: Span
    first_step: int
    end_step: int
    cross: FloatArray | None
    decoder_self: FloatArray | None
    scores: Mapping[Score, float]
    special_shares: Mapping[AttentionKind, FloatArray] = field(default_factory=dict[AttentionKind, FloatArray])


@dataclass(frozen=True)
class Usage:
    """The cost of a request. Times are in seconds, from the request's arrival at the server."""

    source_tokens: int
    target_tokens: int
    attention_bytes: int
    queue_time: float
    time_to_first_step: float
    total_time: float
    seed: int | None


@dataclass(frozen=True)
class Hypothesis:
    """One hypothesis of a beam search.

    `score` is the sum of the log-probabilities, in nats, divided by length ** length_penalty. `stop_reason` says why
    the hypothesis ends.
    """

    text: str
    tokens: tuple[Token, ...]
    score: float
    stop_reason: StopReason


@dataclass(frozen=True)
class Finished:
    """The end of a stream: the whole text, the reason of the end, and the cost."""

    text: str
    stop_reason: StopReason
    usage: Usage
    hypotheses: tuple[Hypothesis, ...] = ()
    signals: Signals | None = None
    alignment: WordAlignment | None = None


@dataclass(frozen=True, eq=False)
class Attribution(NotebookMethods):
    """The whole result of a request.

    With a grouping, the arrays of attention have source units where this text says source positions, and units where
    it says steps: see `source_positions`, `decoder_positions` and `targets`.

    Arrays are float32, or float16 if the capture asked for it, and hold every position. If the capture asked for
    `top_k`, they have 0 for the positions that were not sent.

    Attributes:
        started: The header of the stream.
        steps: The tokens of the target, one for each step, in order.
        text: The text of the target.
        stop_reason: Why the target ends.
        usage: The cost of the request.
        cross: `[source positions, steps, layers, heads]`, Inseq's `source_attributions`; fewer axes if reduced. None if
            it was not captured. NaN for steps that carry no attention.
        decoder_self: `[positions, steps, layers, heads]`, Inseq's `target_attributions`. The positions are the prefix
            and the steps; for a decoder-only model the prompt, the prefix and the steps. NaN for positions that a step
            has not seen.
        encoder_self: `[queries, positions, layers, heads]`. None if it was not captured.
        scores: `[steps]` for each score of the request.
        special_shares: For each kind, what special tokens took of each row before they were left out: the shape of the
            kind's array without the axis of positions. Empty unless the capture renormalizes.
        hypotheses: The best hypotheses of a beam search.
        signals: Numbers that judge the target as a whole. None if the request did not ask for them.
        alignment: The links between the words of source and target. None if the request did not ask for them.
        first_step: The index of the first of `steps`. It is above 0 only for a resumed stream.
        units: With a grouping: the units of the target in order, without their attention.
        unit_scores: With a grouping: `[units]` for each score of the request.
    """

    started: Started
    steps: tuple[Token, ...]
    text: str
    stop_reason: StopReason
    usage: Usage
    cross: FloatArray | None = None
    decoder_self: FloatArray | None = None
    encoder_self: FloatArray | None = None
    scores: Mapping[Score, FloatArray] = field(default_factory=dict[Score, FloatArray])
    special_shares: Mapping[AttentionKind, FloatArray] = field(default_factory=dict[AttentionKind, FloatArray])
    hypotheses: tuple[Hypothesis, ...] = ()
    signals: Signals | None = None
    alignment: WordAlignment | None = None
    first_step: int = 0
    units: tuple[Unit, ...] = ()
    unit_scores: Mapping[Score, FloatArray] = field(default_factory=dict[Score, FloatArray])

    @property
    def layouts(self) -> Mapping[AttentionKind, AttentionLayout]:
        """The axes of the arrays, for each kind of attention."""
        return self.started.layouts

    @property
    def source(self) -> tuple[Token, ...]:
        """The tokens of the source; for a decoder-only model, of the prompt."""
        return self.started.source

    @property
    def context(self) -> tuple[Token, ...]:
        """The tokens that the decoder reads before the first step."""
        prompt = () if self.started.is_encoder_decoder else self.started.source
        return (*prompt, *self.started.prefix)

    @property
    def source_positions(self) -> tuple[Token | Span, ...]:
        """What the positions of `cross` stand for: the tokens of the source, or its units, as far as they are sent."""
        return self.started.source_positions

    @property
    def targets(self) -> tuple[Token | Span, ...]:
        """What the axis of steps stands for: the steps, or the units with a grouping."""
        return self.steps if self.started.grouping == "token" else tuple(unit.span for unit in self.units)

    @property
    def target_scores(self) -> Mapping[Score, FloatArray]:
        """The scores along the axis of steps: of the steps, or of the units with a grouping."""
        return self.scores if self.started.grouping == "token" else self.unit_scores

    @property
    def decoder_positions(self) -> tuple[Token | Span, ...]:
        """What the positions of `decoder_self` stand for. The first ones of a resumed stream are unknown tokens."""
        missing = self.first_step
        if self.started.grouping != "token":
            missing = self.units[0].index if self.units else 0
        return (*self.started.context_positions, *([_UNKNOWN_TOKEN] * missing), *self.targets)
