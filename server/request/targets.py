"""The target of a request: how the model writes it, or what the client gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..text import TokenizedText

EarlyStopping = Literal["first", "unlikely", "never"]


@dataclass(frozen=True)
class BeamParams:
    """A beam search: the contract's message Beam, with every default filled in."""

    width: int  # hypotheses that each step keeps
    num_hypotheses: int  # hypotheses in the last output
    length_penalty: float
    early_stopping: EarlyStopping


@dataclass(frozen=True)
class DecodingParams:
    """How the model generates a target.

    `generation` overrides the model's generation config, by its field names. `forces_end` says that this configuration
    makes the last of `max_new_tokens` the end token.
    """

    max_new_tokens: int
    do_sample: bool
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    generation: dict[str, Any] = field(default_factory=dict[str, Any])
    beam: BeamParams | None = None  # None: greedy search or sampling
    forces_end: bool = False


@dataclass(frozen=True)
class GivenTarget:
    """A target that the client gives. Every token of its text is a step."""

    text: TokenizedText


@dataclass(frozen=True)
class EncodedTarget(GivenTarget):
    """A target that the encoder reads as if it were a source. Then the encoder's states of both texts are the outputs.

    `text` has the tokens of a source. `width` is the width of the states.
    """

    width: int

    def count_bytes(self, source_length: int) -> int:
        """Returns the size of the states of both texts, as float32."""
        return (source_length + len(self.text.tokens)) * self.width * 4


@dataclass(frozen=True)
class FollowedTarget:
    """A target that the client of a follow stream gives token by token. Every token is a step."""

    max_new_tokens: int
