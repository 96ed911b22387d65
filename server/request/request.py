"""A validated request, and what it may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...kernels import Encoding, Reduction
from ..alignment import Linker
from ..capture import CapturePlan
from ..policy import AlignAtt
from ..text import Grouping, OffsetUnit, Span, TokenizedText
from .targets import BeamParams, DecodingParams, EncodedTarget, FollowedTarget, GivenTarget

# The most bytes of attention that are computed at once for several messages, if a single row has no more: of the
# encoder, and of a given target.
MAX_PART_BYTES = 32 * 1024**2

# What looks at rows of its own, whatever the client captures.
Observer = Literal["policy", "links", "signals"]
OBSERVERS: tuple[Observer, ...] = get_args(Observer)

ContrastScore = Literal[
    "contrast_logits",
    "contrast_prob",
    "contrast_logits_diff",
    "contrast_prob_diff",
    "pcxmi",
    "kl_divergence",
    "in_context_pvi",
]
Score = Literal["probability", "logit", "entropy", "cross_entropy", "perplexity", "top_p_size", ContrastScore]
CONTRAST_SCORES: frozenset[Score] = frozenset(get_args(ContrastScore))


@dataclass(frozen=True, eq=False)
class SourceFeatures:
    """A source that is a recording: features float32 `[mel bins, frames]`, of which the encoder makes positions."""

    values: NDArray[np.float32]
    num_positions: int


@dataclass(frozen=True)
class UnitPlan:
    """How rows become what is sent, after their copy to the host: grouped, cut to slices, encoded.

    A request with a UnitPlan captures all positions as float32.

    Attributes:
        grouping: What one position and one step stand for. "token": the rows are only cut.
        over_positions: How the positions of a unit become one.
        over_steps: How the steps of a unit become one.
        over_scores: How the scores of a unit's steps become one.
        source_spans: The units of the source with the grouping "span".
        target_spans: The units of a given target with the grouping "span".
        source_slices: Only source positions that share a character with one of these spans are sent; empty: all.
        target_slices: Only steps of a given target that share a character with one of these spans carry attention.
        source_units: The tokens of each unit of the source, as ranges of their numbers. Empty without a grouping.
        source_positions: The positions, or units, of the source that are sent; None: all.
        encoding: The type of the numbers.
        top_k: How many positions of each row are sent, the greatest; 0: all.
        is_difference: Whether the rows are differences of two contexts, which may be negative.
    """

    grouping: Grouping
    over_positions: Reduction = "sum"
    over_steps: Reduction = "mean"
    over_scores: Reduction = "mean"
    source_spans: tuple[Span, ...] = ()
    target_spans: tuple[Span, ...] = ()
    source_slices: tuple[Span, ...] = ()
    target_slices: tuple[Span, ...] = ()
    source_units: tuple[range, ...] = ()
    source_positions: tuple[int, ...] | None = None
    encoding: Encoding = "float32"
    top_k: int = 0
    is_difference: bool = False

    @property
    def is_grouped(self) -> bool:
        """Whether several tokens become one unit."""
        return self.grouping != "token"

    @cached_property
    def source_begins(self) -> list[int]:
        """The first token of each unit of the source."""
        return [unit.start for unit in self.source_units]


@dataclass(frozen=True)
class Request:
    """A validated request to one model. In a follow stream: with the source so far.

    Attributes:
        request_id: For logs and for the client.
        source: What the model reads. Without tokens where the source is a recording.
        decoder_prompt_ids: The tokens that the decoder reads between the source and step 0: the start token and the
            prefix.
        target: How the model generates the target, or the target itself.
        capture: Which attention is captured.
        scores: The scores of each step, in the client's order.
        score_top_p: The probability mass for the score "top_p_size".
        resume_at: The first step that the client wants; earlier steps are computed and not sent.
        prefix: The prefix as a text, which the last of `decoder_prompt_ids` are the tokens of. None if the client
            gave no prefix, or gave token ids.
        offset_unit: What offsets count on the wire. Here, all offsets count code points.
        target_tokens_left_out: How many tokens of the given target or of the prefix truncation has left out.
        contrast: The second context, in which the model is run as well.
        has_parts: Whether a long given target is read in parts. With a contrast it is not, nor by a model that gives
            whole matrices.
        features: The source of a speech model.
        units: How rows are grouped and cut; None: rows are sent as they are captured.
        policy: Says which steps of a follow stream are held while the source is not complete; None: no step.
        linker: Links the words of the source and of the target; None: they are not linked.
        observed: For each observer, the plan of its rows. A plan keeps one number for each position of one kind, and
            all steps.
    """

    request_id: str
    source: TokenizedText
    decoder_prompt_ids: tuple[int, ...]
    target: DecodingParams | GivenTarget | FollowedTarget
    capture: CapturePlan
    scores: tuple[Score, ...] = ()
    score_top_p: float = 0.9
    resume_at: int = 0
    prefix: TokenizedText | None = None
    offset_unit: OffsetUnit = "code_point"
    target_tokens_left_out: int = 0
    contrast: Contrast | None = None
    has_parts: bool = True
    features: SourceFeatures | None = None
    units: UnitPlan | None = None
    policy: AlignAtt | None = None
    linker: Linker | None = None
    observed: Mapping[Observer, CapturePlan] = field(default_factory=dict[Observer, CapturePlan])

    @property
    def source_length(self) -> int:
        """The number of positions of the source."""
        return len(self.source.tokens) if self.features is None else self.features.num_positions

    @property
    def beam(self) -> BeamParams | None:
        """The beam search that writes the target; None where no search does."""
        return self.target.beam if isinstance(self.target, DecodingParams) else None

    @property
    def num_sequences(self) -> int:
        """How many sequences of a runner the request takes: none with a given target, which has passes of its own."""
        if isinstance(self.target, GivenTarget):
            return 0
        if self.beam is not None:  # a contrast has a pass over what the search has found
            return self.beam.width
        return 1 if self.contrast is None else 2

    @property
    def feature_bytes(self) -> int:
        """The size of the recordings that the request holds, also in the context of its contrast."""
        other = None if self.contrast is None else self.contrast.request.features
        held = (self.features, None if other is self.features else other)
        return sum(features.values.nbytes for features in held if features is not None)

    @property
    def first_row_step(self) -> int:
        """The first step whose attention is computed. A unit may begin before the first step that is sent."""
        return 0 if self.units is not None and self.units.is_grouped else self.resume_at

    @property
    def max_num_tokens(self) -> int:
        """The most tokens that source and target can have together, in both contexts, of all hypotheses of a beam."""
        if isinstance(self.target, GivenTarget):
            target = len(self.target.text.tokens)
        else:
            target = self.target.max_new_tokens * (1 if self.beam is None else self.beam.width)
        other = 0 if self.contrast is None else self.contrast.request.max_num_tokens
        return self.source_length + len(self.decoder_prompt_ids) + target + other

    @property
    def captured_steps(self) -> range:
        """The steps of a given target whose attention is sent."""
        assert isinstance(self.target, GivenTarget)
        num_steps = len(self.target.text.tokens)
        end = num_steps if self.capture.end_step is None else min(num_steps, self.capture.end_step)
        return range(max(self.capture.first_step, self.first_row_step), end if self.capture.kinds else 0)

    def step_bytes(self, num_read: int) -> int:
        """Returns the bytes of attention of a step behind which the decoder has read so many tokens."""
        positions = {"cross": self.source_length, "decoder_self": num_read}
        return sum(self.capture.row_bytes(kind, positions[kind]) for kind in self.capture.kinds if kind in positions)

    @property
    def single_pass_bytes(self) -> int:
        """The most bytes of attention that one forward pass computes and several messages carry.

        These are encoder self-attention, and the steps of a given target that one pass computes. The encoder's states
        count as attention. 0 if all attention is computed step by step.
        """
        source = self.source_length
        num_bytes = 0
        if "encoder_self" in self.capture.kinds:
            num_bytes = self._held_bytes(self.capture.row_bytes("encoder_self", source), source)
        if isinstance(self.target, GivenTarget):
            # In a decoder-only model, decoder self-attention covers the source too.
            num_read = source + len(self.decoder_prompt_ids) + len(self.target.text.tokens)
            num_bytes += self._held_bytes(self.step_bytes(num_read), len(self.captured_steps))
            observed_bytes = sum(plan.row_bytes("cross", source) for plan in self.observed.values())
            num_bytes += observed_bytes * len(self.target.text.tokens)  # held until the last step
        if isinstance(self.target, EncodedTarget):
            num_bytes += self.target.count_bytes(source)
        if self.contrast is not None:  # to subtract is to hold both for a moment
            num_bytes = max(num_bytes, 2 * self.contrast.request.single_pass_bytes)
        return num_bytes

    def _held_bytes(self, row_bytes: int, num_rows: int) -> int:
        """Returns the most bytes of some rows that are in memory at once."""
        num_bytes = row_bytes * num_rows
        return min(num_bytes, max(MAX_PART_BYTES, row_bytes)) if self.has_parts else num_bytes


@dataclass(frozen=True)
class Contrast:
    """A second context of a request.

    Attributes:
        request: The request in this context. Captures the attention that is subtracted, if any, and has no scores.
        steps: For each step of a given target, the step of the contrast target that it is compared with. None: the step
            of the same number.
        subtracts_attention: Whether the attention of this context is subtracted from the attention of the request.
        kl_top_p: The score "kl_divergence" keeps the likeliest tokens of both contexts together that reach this sum.
        kl_top_k: Of these it keeps so many; 0: all.
    """

    request: Request
    steps: tuple[int, ...] | None = None
    subtracts_attention: bool = False
    kl_top_p: float = 1.0
    kl_top_k: int = 0
