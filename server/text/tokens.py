"""Tokens, and texts with their tokens. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """A token and where it stands: `text[begin:end]` of the exact text. Special tokens cover nothing."""

    id: int
    piece: str
    begin: int
    end: int
    special: bool
    text: str


@dataclass(frozen=True)
class TextOptions:
    """How texts become tokens.

    Attributes:
        parses_special: Control tokens that are written out in a text, such as "</s>", become control tokens instead of
            text.
        adds_special: The tokenizer's own special tokens are put around a text.
    """

    parses_special: bool = False
    adds_special: bool = True


@dataclass(frozen=True)
class TokenizedText:
    """A text and its tokens. `options` are how the text became these tokens; None where it did not, or not as one."""

    text: str
    tokens: tuple[Token, ...]
    options: TextOptions | None = None

    @property
    def ids(self) -> list[int]:
        """The tokens' ids."""
        return [token.id for token in self.tokens]
