"""Token ids to a text that grows, token by token, with the place of each token in the text.

Text that has been returned never changes: what later tokens may change is held back (see `incremental_decoders`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

from .incremental_decoders import IncrementalDecoder
from .offsets import trim_span
from .tokens import Token, TokenizedText
from .vocabulary import Vocabulary


class IncrementalTokenizer(Protocol):
    """A tokenizer, as far as a detokenizer needs one."""

    vocabulary: Vocabulary
    decoder_class: type[IncrementalDecoder]


class Detokenizer:
    """One text that grows token by token. For one thread at a time.

    A character comes out when it is complete. All tokens of a character stand where the character stands, also the
    tokens before the character is complete.

    Attributes:
        text: The text so far.
    """

    def __init__(
        self, tokenizer: IncrementalTokenizer, context: Sequence[int] = (), prefix: TokenizedText | None = None
    ) -> None:
        """Starts a text that continues a context, such as a prompt, and begins with a prefix.

        Args:
            tokenizer: The tokenizer of all tokens.
            context: Tokens before the text. A character that begins in the context belongs to it, wherever it ends.
            prefix: The text's beginning, exactly. Its tokens do not say which characters are unknown, nor what the
                tokenizer has changed.
        """
        self._vocabulary = vocabulary = tokenizer.vocabulary
        before = [*context, *([] if prefix is None else map(vocabulary.replace_unknown, prefix.ids))]
        before = [id_ for id_ in before if not vocabulary.is_special(id_)]
        has_text = prefix is not None
        self._decoder: IncrementalDecoder = tokenizer.decoder_class(vocabulary, before, has_text=has_text)
        self.text = "" if prefix is None else prefix.text
        self._prefix_length = len(self.text)
        # If the prefix ends with a space, a tokenizer may drop the space, and put it before the next word.
        ends_in_space = self.text.strip() != "" and self.text[-1].isspace()
        self._drops_space = ends_in_space and not vocabulary.decode_before_letters(before)[-1:].isspace()
        # The end of the last token that covers characters.
        self._end = 0 if prefix is None else max((token.end for token in prefix.tokens), default=0)

    def copy(self) -> Detokenizer:
        """Returns a detokenizer that goes on from the same text by itself."""
        return copy.deepcopy(self, {id(self._vocabulary): self._vocabulary})

    def add(self, id_: int) -> tuple[str, Token]:
        """Adds a token. Returns what it adds to the text, and the token with its place in the text."""
        piece, role = self._vocabulary.piece(id_), self._vocabulary.role(id_)
        # The place of a token without text. In an incomplete character it is the character's begin, where the other
        # tokens of the character will be.
        place = min(self._end, len(self.text))
        if role == "special":
            return "", Token(id_, piece, place, place, True, "")
        begin = len(self.text)
        text, num_earlier, num_open, open_bytes = self._decoder.push(id_)
        if not num_earlier:
            text = self._drop_second_space(text)
        self.text += text
        if role == "space" and not text.strip():
            return text, Token(id_, piece, place, place, False, "")
        text_end = len(self.text)
        begin, end = trim_span(self.text, (begin + num_earlier, text_end))
        if num_open:  # the incomplete character will stand at the end of the text
            begin, end = begin if self.text[begin:end].strip() else text_end, text_end + num_open
        if begin < end:
            self._end = end
        else:
            begin = end = place if not text else self._end
        open_bytes = open_bytes if num_open else b""
        return text, Token(id_, piece, begin, end, False, self.text[begin:end], open_bytes)

    def flush(self) -> str:
        """Ends the text. Returns what was held back because it was incomplete."""
        text = self._drop_second_space(self._decoder.flush())
        self.text += text
        return text

    def finish(self, token: Token) -> tuple[str, Token]:
        """Ends the text after its last token. Returns what was held back, and the token with all that it covers."""
        text = self.flush()
        if token.special:  # a special token may follow an incomplete character
            end = max(token.end, min(self._end, len(self.text)))
            return text, token._replace(begin=end, end=end)
        if not text and token.begin == token.end:
            return text, token
        begin = max(token.begin, self._prefix_length) if text else token.begin
        begin, end = trim_span(self.text, (begin, len(self.text) if text else token.end))
        return text, token._replace(begin=begin, end=end, text=self.text[begin:end], open_bytes=b"")

    def _drop_second_space(self, text: str) -> str:
        """Returns the first text after the prefix without the space that the prefix already ends with."""
        if self._drops_space and text:
            self._drops_space = False
            return text.removeprefix(" ")
        return text


class StopTexts:
    """The texts that end a target. The prefix of the target does not count."""

    def __init__(self, texts: Sequence[str], prefix_length: int) -> None:
        """`prefix_length` is the length of the prefix in characters."""
        self._texts = tuple(texts)
        self._prefix_length = prefix_length
        # A stop text may begin in text that was searched before: the search goes back by its length less one.
        self._overlap = max(map(len, self._texts), default=1) - 1

    def are_in(self, text: str, num_searched: int) -> bool:
        """Whether any of them is in a text of which so many characters have been searched before."""
        if not self._texts:
            return False
        tail = text[max(self._prefix_length, num_searched - self._overlap) :]
        return any(stop in tail for stop in self._texts)
