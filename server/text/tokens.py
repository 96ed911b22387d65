"""Tokens, and texts with their tokens: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Token(NamedTuple):
    """A token, and its place: it covers `text[begin:end]` of the exact text. A special token covers nothing.

    Offsets count code points. `open_bytes` are the bytes, so far, of the characters at the end of the token that later
    tokens complete; empty if all characters are complete, or if the bytes are not known.
    """

    id: int
    piece: str
    begin: int
    end: int
    special: bool
    text: str
    open_bytes: bytes = b""


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

    Attributes:
        text: The exact text.
        tokens: The tokens.
        options: How the text became these tokens. None if the tokens were given, or if the text was not tokenized by
            itself.
        num_left_out: How many tokens are left out because they were too many.
        begin: Where the part of the text begins that the tokens stand for. It is above 0 if the first tokens are left
            out.
    """

    text: str
    tokens: tuple[Token, ...]
    options: TextOptions | None = None
    num_left_out: int = 0
    begin: int = 0

    @property
    def ids(self) -> list[int]:
        """The ids of the tokens."""
        return [token.id for token in self.tokens]
