"""What is made of attention: links between words, and numbers that judge a target as a whole. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..offset_units import Span

HeadSource = Literal["calibration", "request", "default"]


class Link(NamedTuple):
    """A link between a word of the source and a word of the target.

    Attributes:
        source: The number of the source word, from 0.
        target: The number of the target word, from 0.
        score: How sure the link is, from 0 to 1.
    """

    source: int
    target: int
    score: float


@dataclass(frozen=True)
class WordAlignment:
    """The words of a source and of its target, and their links.

    Attributes:
        source: The words of the source. A punctuation mark is a word of its own.
        target: The words of the target.
        links: The links, in the order of the target.
        pharaoh: The links as "source-target" pairs that count from 0: the Pharaoh format.
        head_source: Where the heads come from. "default": they were not measured for the model.
    """

    source: tuple[Span, ...]
    target: tuple[Span, ...]
    links: tuple[Link, ...]
    pharaoh: str
    head_source: HeadSource | None


@dataclass(frozen=True)
class Signals:
    """Numbers that judge a target as a whole, from its attention. The contract's message Signals has the formulas.

    All are from 0 to 1, but `attention_entropy`. A number is None where there is nothing to compute it from.

    Attributes:
        coverage: How much of the source was looked at. Low: an omission.
        end_token_attention: The share of the attention that goes to the end token of the source.
        attention_entropy: The mean entropy of the rows, in nats.
        special_token_attention: The share of the attention that goes to special tokens of the source.
        normalized_attention_entropy: The entropy divided by that of a uniform row. High: a hallucination.
        attention_repetition: The share of the attention that goes to source tokens again. High: a repetition.
        target_repetition: The share of the pairs of target tokens that have come before.
        ignored_source: The share of the source tokens that get nearly no attention: Attn-ign-SRC.
        wasserstein_to_uniform: How far the attention is from a uniform one: Wass-to-Unif (arXiv:2212.09631).
    """

    coverage: float | None = None
    end_token_attention: float | None = None
    attention_entropy: float | None = None
    special_token_attention: float | None = None
    normalized_attention_entropy: float | None = None
    attention_repetition: float | None = None
    target_repetition: float | None = None
    ignored_source: float | None = None
    wasserstein_to_uniform: float | None = None

    def by_name(self) -> dict[str, float]:
        """Returns the numbers that there are, by their names."""
        return {name: value for name, value in vars(self).items() if value is not None}
