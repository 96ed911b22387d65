"""What an `align` call may ask for. Names are those of the contract. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

MarkupFormat = Literal["spans", "html", "xml", "xliff", "placeholders"]
LinkMethod = Literal["argmax", "threshold", "optimal_transport", "itermax"]
LinkFeature = Literal["attention", "lexicon", "spelling", "encoder_states"]
Symmetrization = Literal["grow_diag_final_and", "intersection", "union"]
LinkUnit = Literal["word", "token"]

Pair = tuple[str, str | None] | tuple[str, str | None, Mapping[str, Any]]
"""A source and its target, and options of its own if it has any. A target of None: the model writes it."""


@dataclass(frozen=True)
class MarkupSpan:
    """A marked span of a text: the characters from `begin` to before `end`. Where both are equal: a point."""

    id: str
    begin: int
    end: int


@dataclass(frozen=True)
class Markup:
    """Markup of a source, to be carried over to the target.

    Attributes:
        format: What the source is: HTML, XML, a text with XLIFF's inline elements, a text with placeholders, or a plain
            text with `spans`.
        spans: The marked spans, with the format "spans".
        strict: Whether malformed markup is refused. None: not in HTML, but in XML and XLIFF.
        split: An element whose words come apart in the target is repeated around each part.
        placeholders: Placeholders in HTML, XML and XLIFF are kept, too.
        placeholder_pattern: One more pattern of placeholders, in the syntax of RE2.
        split_sentences: Each sentence is translated by itself. Only without a target.
    """

    format: MarkupFormat = "spans"
    spans: Sequence[MarkupSpan] = ()
    strict: bool | None = None
    split: bool = False
    placeholders: bool = False
    placeholder_pattern: str = ""
    split_sentences: bool = False


@dataclass(frozen=True)
class LinkOptions:
    """How links are decided.

    Attributes:
        method: How links are chosen from the scores of pairs of words. None: as calibration has chosen for the model.
        features: What the scores are made of. Empty: as calibration has chosen for the model. "encoder_states"
            goes with `align` and `align_many`, and costs two more passes of the encoder.
        reverse_model: The name of a loaded model for the other direction. The links of both directions are joined.
        symmetrization: How the links of two directions are joined. None: "grow_diag_final_and".
    """

    method: LinkMethod | None = None
    features: Sequence[LinkFeature] = ()
    reverse_model: str = ""
    symmetrization: Symmetrization | None = None
