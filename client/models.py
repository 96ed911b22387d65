"""Models that a server has loaded: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .parameters import AttentionKind, Method, Row, SpecialTokens

CapturePath = Literal["rows", "matrices"]


@dataclass(frozen=True)
class ModelAttention:
    """The numbers of layers and heads of one kind of attention in a model."""

    layers: int
    heads: int


@dataclass(frozen=True)
class RequestLimits:
    """How large a request may be. Sizes are in bytes of UTF-8. The server refuses a larger request and names the field.

    `max_texts_per_stream` is for `attribute_many`, and `max_follow_streams` counts the follow streams of all clients.
    A `max_beam_width` of 0: the model has no beam search. `max_new_tokens` is the most tokens that are written for a
    request; 0: the server is older, and does not say.
    """

    max_request_bytes: int
    max_source_bytes: int
    max_target_bytes: int
    max_chat_messages: int
    max_stop_texts: int
    max_stop_bytes: int
    max_beam_width: int
    max_texts_per_stream: int
    max_spans: int
    max_follow_streams: int
    max_new_tokens: int = 0


@dataclass(frozen=True)
class Calibration:
    """What `sidelight calibrate` has measured of a model: the heads that align words, and how well they do.

    Attributes:
        heads: (layer, head, weight) of each head.
        row: The row that is used.
        special_tokens: What is done with special tokens.
        pairs: The pairs of texts that were measured.
        reference: What the links were compared with, such as "gold".
        alignment_error_rate: From 0 to 1. Lower is better.
        precision: The share of the links that the reference has.
        recall: The share of the reference's links that were found.
        has_lexicon: Whether there is a table of translations of words.
        lexicon_entries: The number of pairs of words in the table.
        has_encoder_states: Whether the encoder's states are compared if a request names no features.
    """

    heads: tuple[tuple[int, int, float], ...]
    row: Row
    special_tokens: SpecialTokens
    pairs: int
    reference: str
    alignment_error_rate: float
    precision: float
    recall: float
    has_lexicon: bool
    lexicon_entries: int
    has_encoder_states: bool


@dataclass(frozen=True)
class Model:
    """A model that the server has loaded.

    `default` says whether it serves the requests that name no model, `batches` whether its requests share batches.
    `feature_shape` is the shape of a recording's features that are the source; empty if the model reads texts.

    `word_boundaries` says how words are found: "icu" divides scripts without spaces by a dictionary, "uax29" divides
    them into characters.

    `presets` are names of sets of heads, and `calibration` says what was measured of them. `capture_path` says whether
    the server computes only the rows that a request asks for, or the model computes whole matrices, which is slower.
    `limits` says how large a request may be.
    """

    name: str
    family: str
    is_encoder_decoder: bool
    attentions: Mapping[AttentionKind, ModelAttention]
    max_source_tokens: int
    max_target_tokens: int
    languages: tuple[str, ...]
    dtype: str
    device: str
    default: bool
    vocabulary_size: int
    batches: bool = False
    feature_shape: tuple[int, ...] = ()
    methods: tuple[Method, ...] = ()
    word_boundaries: str = ""
    presets: tuple[str, ...] = ()
    capture_path: CapturePath | None = None
    limits: RequestLimits | None = None
    calibration: Calibration | None = None
