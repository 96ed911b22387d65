"""Tokens, and texts with their tokens: plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """A token, and its place: it covers `text[begin:end]` of the exact text. A special token covers nothing."""

    id: int
    piece: str
    begin: int
    end: int
    special: bool
    text: str


@dataclass(frozen=True)
class TextOptions:
    """How a text becomes tokens.

    Attributes:
        parses_special: A control token that is written out in a text, such as "</s>", becomes a control token instead
            of text.
        adds_special: The tokenizer puts its own special tokens around the text.
    """

    parses_special: bool = False
    adds_special: bool = True


@dataclass(frozen=True)
class TokenizedText:
    """A text and its tokens.

    `options` say how the text became these tokens. They are None if the tokens were given, or if the text was not
    tokenized by itself.
    """

    text: str
    tokens: tuple[Token, ...]
    options: TextOptions | None = None

    @property
    def ids(self) -> list[int]:
        """The ids of the tokens."""
        return [token.id for token in self.tokens]
