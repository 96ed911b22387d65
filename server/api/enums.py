"""The numbers of the contract's enums, and the domain's words for them.

A table has the words of a domain type. The contract's names are the same words: ATTENTION_KIND_CROSS is "cross". A word
without a name in the contract is an error when this module is imported.
"""

from __future__ import annotations

from typing import Any, TypeVar, get_args

import numpy as np
from sidelight.v1 import attention_pb2, text_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from ...kernels import Encoding, Reduction
from ..alignment import AlignmentPreset, LinkFeature, LinkMethod, MarkupFormat, Placement, Symmetrization
from ..capture import METHODS as CAPTURE_METHODS
from ..capture import AttentionKind, Row
from ..request import EarlyStopping, Score, StopReason
from ..text import Grouping, OffsetUnit

W = TypeVar("W", bound=str)


class Words(dict[int, W]):
    """The word for each of an enum's numbers.

    Attributes:
        numbers: The number of each word; the first number, if the word has several.
    """

    def __init__(self, words: dict[int, W]) -> None:
        super().__init__(words)
        self.numbers = {word: number for number, word in reversed(words.items())}


def _words(enum: Any, prefix: str, literal: Any) -> Words[Any]:
    """Returns the words of a literal type."""
    return Words({enum.Value(f"{prefix}{word.upper()}"): word for word in get_args(literal)})


ATTENTION_KINDS: Words[AttentionKind] = _words(attention_pb2.AttentionKind, "ATTENTION_KIND_", AttentionKind)
ROWS: Words[Row] = _words(attention_pb2.Row, "ROW_", Row)
REDUCTIONS: Words[Reduction] = _words(attention_pb2.Reduction, "REDUCTION_", Reduction)
GROUPINGS: Words[Grouping] = _words(attention_pb2.Grouping, "GROUPING_", Grouping)
ENCODINGS: Words[Encoding] = _words(attention_pb2.Encoding, "ENCODING_", Encoding)
METHODS: Words[str] = Words({attention_pb2.Method.Value(f"METHOD_{name.upper()}"): name for name in CAPTURE_METHODS})
SCORES: Words[Score] = _words(attention_pb2.Score, "SCORE_", Score)
OFFSET_UNITS: Words[OffsetUnit] = Words(
    {
        **_words(text_pb2.OffsetUnit, "OFFSET_UNIT_", OffsetUnit),
        text_pb2.OFFSET_UNIT_UNSPECIFIED: "code_point",  # the last: `number_of` returns the first
    }
)
EARLY_STOPPINGS: Words[EarlyStopping] = _words(text_pb2.EarlyStopping, "EARLY_STOPPING_", EarlyStopping)
STOP_REASONS: Words[StopReason] = _words(text_pb2.StopReason, "STOP_REASON_", StopReason)
MARKUP_FORMATS: Words[MarkupFormat] = Words(
    {
        **_words(service_pb.MarkupFormat, "MARKUP_FORMAT_", MarkupFormat),
        service_pb.MARKUP_FORMAT_UNSPECIFIED: "spans",
    }
)
PLACEMENTS: Words[Placement] = _words(service_pb.Placement, "PLACEMENT_", Placement)
LINK_METHODS: Words[LinkMethod] = _words(service_pb.LinkMethod, "LINK_METHOD_", LinkMethod)
LINK_FEATURES: Words[LinkFeature] = _words(service_pb.LinkFeature, "LINK_FEATURE_", LinkFeature)
SYMMETRIZATIONS: Words[Symmetrization] = Words(
    {
        **_words(service_pb.Symmetrization, "SYMMETRIZATION_", Symmetrization),
        service_pb.SYMMETRIZATION_UNSPECIFIED: "grow_diag_final_and",
    }
)

# The encoding of numbers by their type. By name it would be slow: NumPy takes as long to name a type as all the rest of
# a message takes.
ENCODING_OF_DTYPE: dict[np.dtype[Any], Any] = {np.dtype(word): number for number, word in ENCODINGS.items()}


def number_of(words: Words[W], word: W | None) -> Any:
    """Returns the enum number of a word; 0, which means unspecified, for None."""
    return 0 if word is None else words.numbers[word]


def head_source_of(preset: AlignmentPreset | None) -> service_pb.HeadSource.ValueType:
    """Returns where the heads of a model with this preset come from, unless a request names heads."""
    return service_pb.HEAD_SOURCE_DEFAULT if preset is None else service_pb.HEAD_SOURCE_CALIBRATION
