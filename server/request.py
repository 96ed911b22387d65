"""What the engine is asked for, and what it answers: the domain's own types, free of protobuf.

A `Request` is a request that has been checked; its events come back in order: one Started, perhaps one EncoderSelf,
Steps, one Finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .capture import AttentionArrays, CapturePlan
from .text.tokenizer import Token, TokenizedText

StopReason = Literal["end_token", "length", "stop_text", "given"]
Score = Literal["probability", "logit", "entropy", "cross_entropy", "perplexity", "top_p_size"]


@dataclass(frozen=True)
class DecodingParams:
    """A target that the model writes. `generation` overrides the model's generation config, by its field names."""

    max_new_tokens: int
    do_sample: bool
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    generation: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class GivenTarget:
    """A target that is known. Every token is a step."""

    encoded: TokenizedText


@dataclass(frozen=True)
class Request:
    """A request, checked and resolved against its model."""

    request_id: str
    source: TokenizedText
    context_ids: tuple[int, ...]  # what the decoder reads between source and step 0: start token and prefix
    target: DecodingParams | GivenTarget
    capture: CapturePlan
    scores: tuple[Score, ...] = ()
    score_top_p: float = 0.9
    resume_at: int = 0
    prefix: TokenizedText | None = None  # the text of the last of `context_ids`; None where none was given as a text

    @property
    def size(self) -> int:
        """Tokens of source and target, at most."""
        target = len(self.target.encoded.tokens) if isinstance(self.target, GivenTarget) else self.target.max_new_tokens
        return len(self.source.tokens) + len(self.context_ids) + target

    @property
    def whole_bytes(self) -> int:
        """The most bytes of attention that are made of it at once and sent in parts; 0 where all comes step by step."""
        source = len(self.source.tokens)
        whole = self.capture.row_bytes("encoder_self", source) * source if "encoder_self" in self.capture.kinds else 0
        if isinstance(self.target, GivenTarget):
            count = len(self.target.encoded.tokens)
            # Of a decoder-only model, decoder self-attention sees the source too.
            positions = {"cross": source, "decoder_self": source + len(self.context_ids) + count}
            rows = [self.capture.row_bytes(kind, positions[kind]) for kind in self.capture.kinds if kind in positions]
            whole += sum(rows) * count
        return whole


@dataclass(frozen=True)
class Started:
    """What comes before all work. `context` are the tokens of `Request.context_ids`; `seed` is the one of sampling."""

    context: tuple[Token, ...]
    seed: int | None = None


@dataclass(frozen=True)
class EncoderSelf:
    """Some queries of encoder self-attention, `[queries, positions, layers, heads]` or fewer axes when reduced."""

    first_query: int
    attention: AttentionArrays


@dataclass(frozen=True)
class Step:
    """A token and its attention, `[positions, layers, heads]` or fewer axes when reduced."""

    index: int
    token: Token
    text: str
    scores: Sequence[float] = ()
    cross: AttentionArrays | None = None
    decoder_self: AttentionArrays | None = None


@dataclass(frozen=True)
class Finished:
    """The whole text and why it ends. `seed` is the one that sampling used."""

    text: str
    stop_reason: StopReason
    steps: int
    seed: int | None = None


Output = Started | EncoderSelf | Step | Finished
