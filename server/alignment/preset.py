"""AlignmentPreset: how the words of a model's texts are linked best. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from .decisions import LinkMethod
from .features import LinkFeature
from .lexicon import Lexicon

# The name under which requests select the preset.
PRESET_NAME = "alignment"

Row = Literal["predicting", "reading"]
ROWS: tuple[Row, ...] = get_args(Row)
SpecialTokens = Literal["keep", "renormalize"]
SPECIAL_TOKENS: tuple[SpecialTokens, ...] = get_args(SpecialTokens)

DEFAULT_THRESHOLDS: Mapping[LinkMethod, float] = {
    "argmax": 0.0,
    "threshold": 0.25,
    "optimal_transport": 0.4,
    "itermax": 0.0,
}


class AlignmentHead(NamedTuple):
    """A head of cross-attention, and its weight in the mean."""

    layer: int
    head: int
    weight: float = 1.0


@dataclass(frozen=True)
class CalibrationFigures:
    """What was measured. Rates are from 0 to 1.

    Attributes:
        num_pairs: The pairs of texts that were measured.
        reference: What the links were compared with.
        error_rate: The alignment error rate of the preset.
        precision: The share of its links that the reference has.
        recall: The share of the reference's links that it has.
        head_error_rates: The error rate of each single head by argmax, for each row: lists of layers, of heads.
        states_error_rates: The error rates without and with the feature "encoder_states", cross-validated; None: this
            was not measured.
    """

    num_pairs: int
    reference: str
    error_rate: float
    precision: float
    recall: float
    head_error_rates: Mapping[Row, tuple[tuple[float, ...], ...]]
    states_error_rates: tuple[float, float] | None = None


@dataclass(frozen=True)
class LinkDecision:
    """How scores are made and links are decided.

    Attributes:
        weights: The features that scores are made of, each with its weight.
        method: How links are decided.
        thresholds: The threshold of each method; a method that is missing has its default.
    """

    weights: Mapping[LinkFeature, float]
    method: LinkMethod
    thresholds: Mapping[LinkMethod, float]

    def threshold(self, method: LinkMethod) -> float:
        """Returns the threshold of a method."""
        return self.thresholds.get(method, DEFAULT_THRESHOLDS[method])


@dataclass(frozen=True)
class AlignmentPreset:
    """Heads whose mean says which words belong together, and what is made of it.

    Attributes:
        heads: The heads of cross-attention.
        row: Which row of the attention matrix a target token has.
        special_tokens: "renormalize": each head's row leaves special tokens out before the mean. "keep": what the
            special tokens take is the null share of a target token.
        method: How links are decided.
        thresholds: The threshold of each method; a method that is missing has its default.
        weights: The features that scores are made of, each with its weight.
        lexicon: The table for the feature "lexicon"; None: there is none.
        figures: What was measured; None: nothing was.
        without_states: What decides links that are made without the feature "encoder_states", where `weights` has it:
            scores without the states have other thresholds. None: the same as with the states.
    """

    heads: tuple[AlignmentHead, ...]
    row: Row = "predicting"
    special_tokens: SpecialTokens = "renormalize"
    method: LinkMethod = "optimal_transport"
    thresholds: Mapping[LinkMethod, float] = field(default_factory=dict[LinkMethod, float])
    weights: Mapping[LinkFeature, float] = field(default_factory=lambda: {"attention": 1.0, "spelling": 5.0})
    lexicon: Lexicon | None = None
    figures: CalibrationFigures | None = None
    without_states: LinkDecision | None = None

    def decision(self, *, has_states: bool) -> LinkDecision:
        """Returns what decides links that are made with or without the feature "encoder_states"."""
        if self.without_states is not None and not has_states:
            return self.without_states
        return LinkDecision(self.weights, self.method, self.thresholds)


def default_preset(num_layers: int, num_heads: int) -> AlignmentPreset:
    """Returns the preset of a model that was not measured: all heads of the last two thirds of the layers."""
    layers = range(num_layers // 3, num_layers)
    return AlignmentPreset(tuple(AlignmentHead(layer, head) for layer in layers for head in range(num_heads)))
