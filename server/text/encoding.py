"""What an encoder does: one text in, token ids and spans out.

`fast_encoder` and `slow_encoder` are the two encoders, for the two kinds of tokenizers that transformers has.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from .languages import Languages
from .offsets import Span
from .tokens import TextOptions


class EncodedText(NamedTuple):
    """The token ids of one text, and the spans that the tokenizer gives them.

    `num_added` counts the tokens that the tokenizer has put before the text and behind it.
    """

    ids: list[int]
    spans: list[Span]
    num_added: tuple[int, int] = (0, 0)

    def without_beginning(self) -> EncodedText:
        """Returns the tokens without the tokens that the tokenizer has put before the text."""
        count, end = self.num_added
        return EncodedText(self.ids[count:], self.spans[count:], (0, end))

    def after(self, num_tokens: int, num_characters: int) -> EncodedText:
        """Returns the tokens after the first `num_tokens`, for a text that begins after `num_characters`."""
        spans = [
            (max(0, begin - num_characters), max(0, end - num_characters)) for begin, end in self.spans[num_tokens:]
        ]
        return EncodedText(self.ids[num_tokens:], spans)


class Encoder(Protocol):
    """Turns one text into token ids with spans. The caller holds the tokenizer's lock and has set its languages."""

    def encode(self, text: str, options: TextOptions, languages: Languages, *, as_target: bool) -> EncodedText:
        """Encodes a text as a source, or as a target."""
        ...
