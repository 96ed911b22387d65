"""Decoders that turn token ids into text one token at a time, and the choice of the right one for a vocabulary.

Text that a decoder has returned never changes: the decoder holds back what later tokens may change. How a decoder knows
that depends on the vocabulary. At load, `select_decoder` compares each candidate with the text of all tokens at once.
"""

from __future__ import annotations

import codecs
import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from .vocabulary import WORD_END, Vocabulary

# How many of the last tokens of a prompt the first tokens after the prompt are decoded together with.
_CONTEXT = 8

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

# The end of a piece if its word continues in the next piece.
_CONTINUES = "@@"

# Texts that every candidate has to decode.
_SAMPLES = (
    "a ' b do n't I 'm it 's we 've they 're x . y ? z ! w , v it's . . ! ! n't",
    'The lazy dog, er sagt: "ja", und geht. "Nein!" it\'s \'ok\' - e-mail (x) 3.5 % of a/b',
    "Łódź  zloty\n漢字 日本語 한국어 مرحبا 😀👩‍👩‍👧 cafe\u0301 e\u0301\u0323 \ufffd � ##x a@@b @-@ <x> & ;",
)
_NUM_SEQUENCES, _SEQUENCE_LENGTH = 16, 24

# The two bytes of one character.
_BYTES = b"\xde", b"\x90"


class TextDelta(NamedTuple):
    """What a token adds to a text.

    Attributes:
        text: The characters that the token adds.
        num_earlier: How many of the first of these characters belong to earlier tokens.
        num_open: How many characters the token begins or continues that later tokens complete: 0 or 1, or 2 for half a
            surrogate pair.
        open_bytes: The bytes of these characters so far, from their first byte on, if the vocabulary says which bytes
            its tokens are.
    """

    text: str
    num_earlier: int = 0
    num_open: int = 0
    open_bytes: bytes = b""


class IncrementalDecoder(Protocol):
    """Decodes one text, token by token. The caller leaves special tokens out."""

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int], *, has_text: bool) -> None:
        """Starts a text after the tokens of a context.

        `has_text` says that the caller has the text of the context. Spaces at its end then belong to the context, not
        to the text that is decoded.
        """
        ...

    def push(self, id_: int) -> TextDelta:
        """Adds a token."""
        ...

    def flush(self) -> str:
        """Ends the text. Returns what was held back."""
        ...


def select_decoder(vocabulary: Vocabulary, encode: Callable[[str], Sequence[int]]) -> type[IncrementalDecoder]:
    """Returns the first decoder class that decodes every trial to the text of all its tokens at once.

    The trials are sample texts, and random tokens in an order that no text has. `encode` gives a text's tokens.
    """
    trials = _make_trials(vocabulary, encode)
    has_word_ends = any(vocabulary.piece(id_).endswith(WORD_END) for id_ in range(vocabulary.size))
    candidates: list[type[IncrementalDecoder]] = [
        WindowDecoder,
        MarkedWordDecoder if has_word_ends else SpacedWordDecoder,
    ]
    if vocabulary.byte_encoding in ("byte_level", "bytes"):
        candidates = [ByteDecoder]
    for candidate in candidates:
        if all(_decode_each(candidate, vocabulary, ids) == vocabulary.decode(ids) for ids in trials):
            return candidate
    return WholeTextDecoder


def _make_trials(vocabulary: Vocabulary, encode: Callable[[str], Sequence[int]]) -> list[Sequence[int]]:
    random_ids = random.Random(0)
    trials: list[Sequence[int]] = [encode(text) for text in _SAMPLES]
    trials += [random_ids.choices(range(vocabulary.size), k=_SEQUENCE_LENGTH) for _ in range(_NUM_SEQUENCES)]
    trials = [[id_ for id_ in ids if not vocabulary.is_special(id_)] for ids in trials]
    trials += [ids[:-1] for ids in trials]
    if vocabulary.byte_encoding is not None and vocabulary.unknown_id is not None:
        # An unknown token inside a character, as in no text.
        id_of_bytes = {vocabulary.bytes_of(id_): id_ for id_ in range(vocabulary.size)}
        if _BYTES[0] in id_of_bytes and _BYTES[1] in id_of_bytes:
            begin, end = (id_of_bytes[byte] for byte in _BYTES)
            trials.append([begin, vocabulary.unknown_id, end, end])
    return trials


def _decode_each(decoder_class: type[IncrementalDecoder], vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    decoder = decoder_class(vocabulary, (), has_text=False)
    return "".join([*(decoder.push(id_).text for id_ in ids), decoder.flush()])


class _OpenCharacter:
    """The bytes of an incomplete character at the end of a text."""

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int]) -> None:
        self._bytes = b""
        for id_ in context:
            own_bytes = vocabulary.bytes_of(id_)
            self._bytes = b"" if own_bytes is None else _decode_start(self._bytes + own_bytes)[1]
        self.num_of_context = self.num_characters  # characters that belong to the context

    def __bool__(self) -> bool:
        return bool(self._bytes)

    @property
    def first_bytes(self) -> bytes:
        """The bytes so far."""
        return self._bytes

    @property
    def num_characters(self) -> int:
        """How many characters the bytes are if no more bytes come: two for half a surrogate pair."""
        return len(self._bytes.decode("utf-8", "replace"))

    def push(self, data: bytes) -> tuple[str, bool]:
        """Adds bytes. Returns the text that is complete, and whether the bytes continue the open character."""
        before = self._bytes
        text, self._bytes = _decode_start(before + data)
        continues = True
        if before and text.startswith(_INCOMPLETE):
            joined = before + data[:1]
            continues = _decode_start(joined)[0] == "" or joined == _INCOMPLETE.encode()
        return text, continues

    def close(self) -> str:
        """Ends the character as it is. Returns it."""
        text, self._bytes = self._bytes.decode("utf-8", "replace"), b""
        return text


def _decode_start(data: bytes) -> tuple[str, bytes]:
    """Returns the complete characters of some bytes, and the bytes of an incomplete character at their end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return text, decoder.getstate()[0]


def _last_tokens(vocabulary: Vocabulary, context: Sequence[int]) -> list[int]:
    """Returns the last tokens of a context: a few, from the begin of a character, and enough to have some text."""
    shown = [id_ for id_ in context if not vocabulary.is_skipped(id_)]
    count = _CONTEXT
    while True:
        begin = max(0, len(shown) - count)
        while begin > 0 and (vocabulary.bytes_of(shown[begin]) or b"a")[0] & 0xC0 == 0x80:
            begin -= 1
        if begin == 0 or vocabulary.decode(shown[begin:]).strip():
            return shown[begin:]
        count *= 2


class ByteDecoder:
    """For vocabularies in which every token is some bytes."""

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int], *, has_text: bool) -> None:
        del has_text  # the bytes have all spaces
        self._vocabulary = vocabulary
        self._open = _OpenCharacter(vocabulary, _last_tokens(vocabulary, context))

    def push(self, id_: int) -> TextDelta:
        """Adds a token."""
        own_bytes = self._vocabulary.bytes_of(id_)
        if not own_bytes:
            return TextDelta("")
        num_before = self._open.num_characters
        text, continues = self._open.push(own_bytes)
        num_earlier = 0
        if num_before and text:
            if self._open.num_of_context:
                text, self._open.num_of_context = text[self._open.num_of_context :], 0
            elif not continues:
                num_earlier = num_before
        num_open = max(0, self._open.num_characters - self._open.num_of_context)
        return TextDelta(text, num_earlier, num_open, self._open.first_bytes)

    def flush(self) -> str:
        """Ends the text. Returns what was held back."""
        text = self._open.close()
        return text[self._open.num_of_context :]


class WindowDecoder:
    """For vocabularies in which the text of a token depends on the few tokens before it, or on whether there are any.

    A window of the last tokens is decoded, once without the new token and once with it. The difference is new.
    """

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int], *, has_text: bool) -> None:
        self._vocabulary = vocabulary
        self._ids = _last_tokens(vocabulary, context)
        self._open = _OpenCharacter(vocabulary, self._ids)
        self._window = 0  # the index of the first token that is decoded
        self._read = len(self._ids)  # the text of the tokens before this index has been returned
        decode = vocabulary.decode_before_letters if has_text else vocabulary.decode
        # How many characters of the window's text have been returned. None: not counted yet, at least one.
        self._num_returned: int | None = self._count(self._ids, decode)
        self._has_text = has_text
        self._is_new = True  # the context may end in a space that is not decoded before something follows it

    def push(self, id_: int) -> TextDelta:
        """Adds a token."""
        vocabulary = self._vocabulary
        if vocabulary.is_skipped(id_):
            return TextDelta("")
        # After text, with nothing held back, the text of the token may be known without decoding.
        follows_text = self._read == len(self._ids) and self._num_returned != 0 and not self._is_new
        known = vocabulary.fixed_text(id_) if follows_text and not self._open else None
        self._is_new = False
        if known is not None:
            self._ids.append(id_)
            self._window, self._read, self._num_returned = self._read, len(self._ids), None
            return TextDelta(known)
        own_bytes = vocabulary.bytes_of(id_)
        num_before, num_of_context = self._open.num_characters, self._open.num_of_context
        broken, continues = "", False
        if own_bytes is None:
            self._open.close()
        else:
            _, continues = self._open.push(own_bytes)
            if num_before and not continues:  # the open character stays incomplete for ever
                broken = self._return(self._pending())
                self._open.num_of_context = 0
        num_earlier = 0 if continues or num_of_context else num_before
        self._ids.append(id_)
        if self._open:
            num_open = max(0, self._open.num_characters - self._open.num_of_context)
            return TextDelta(broken, num_earlier, num_open, self._open.first_bytes)
        pending = self._pending()
        if own_bytes is None and self._is_incomplete(pending, id_):
            return TextDelta("", 0, num_open=1)
        self._open.num_of_context = 0
        return TextDelta(broken + self._return(self._without_mark(pending, id_)), num_earlier)

    def flush(self) -> str:
        """Ends the text. Returns what was held back."""
        self._open.close()
        if self._is_new and self._has_text:  # a mark at the end of the context is not part of the text
            return ""
        return self._return(self._pending())

    def _is_incomplete(self, text: str, id_: int) -> bool:
        """Whether a text ends in half a character, for vocabularies that do not say which bytes their tokens are."""
        if self._vocabulary.byte_encoding is not None or not text.endswith(_INCOMPLETE):
            return False
        return _INCOMPLETE not in self._vocabulary.piece(id_)

    def _without_mark(self, text: str, id_: int) -> str:
        """Returns a text without the mark at its end, which the next token removes."""
        return text.removesuffix(_CONTINUES) if self._vocabulary.piece(id_).endswith(_CONTINUES) else text

    def _pending(self) -> str:
        """Returns the text of the window that has not been returned."""
        if self._num_returned is None:
            self._num_returned = self._count(self._ids[self._window : self._read], self._vocabulary.decode)
        return self._vocabulary.decode(self._ids[self._window :])[self._num_returned :]

    def _count(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
        """Returns the length of the tokens' text."""
        return len(self._without_mark(decode(ids), ids[-1])) if ids else 0

    def _return(self, text: str) -> str:
        # A tokenizer may strip a single space at the end of a text. The window then stays until something follows.
        if text:
            self._window, self._read = self._read, len(self._ids)
            self._num_returned = self._count(self._ids[self._window :], self._vocabulary.decode)
        return text


class WholeTextDecoder:
    """For vocabularies in which all text may change until the end. All tokens are decoded together."""

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int], *, has_text: bool) -> None:
        self._vocabulary = vocabulary
        self._ids = [*context]
        self._before = (vocabulary.decode_before_letters if has_text else vocabulary.decode)(self._ids)
        self._has_text = has_text
        self._text = ""

    def push(self, id_: int) -> TextDelta:
        """Adds a token."""
        self._ids.append(id_)
        return TextDelta("")

    def flush(self) -> str:
        """Ends the text. Returns what was held back."""
        return self._return(self._decode())

    def _decode(self) -> str:
        """Returns the text of all tokens after the context, as if no more tokens came."""
        text = self._vocabulary.decode(self._ids)
        characters = enumerate(zip(self._before, text, strict=False))
        place = next((place for place, (old, new) in characters if old != new), len(self._before))
        if self._has_text:  # later tokens may remove spaces of the context, such as before a closing quotation mark
            num_left = len("".join(self._before[place:].split()))
            while num_left and place < len(text):
                num_left -= not text[place].isspace()
                place += 1
        return text[place:]

    def _return(self, text: str) -> str:
        """Returns what `text` adds to the text that has been returned; nothing if it changes that text."""
        if not text.startswith(self._text):
            return ""
        new, self._text = text[len(self._text) :], text
        return new


class MarkedWordDecoder(WholeTextDecoder):
    """For texts that depend on all tokens, such as on open quotation marks, and on the rest of a word.

    A word comes out when a mark says that the word is complete. Letters of an incomplete word come out at once.
    """

    def push(self, id_: int) -> TextDelta:
        """Adds a token."""
        self._ids.append(id_)
        text = self._decode()
        if not self._vocabulary.piece(id_).endswith(WORD_END):
            letters = re.match(r"\s*[^\W_]+", text[len(self._text) :])
            text = text[: len(self._text) + letters.end()] if letters else self._text
        return TextDelta(self._return(text))


class SpacedWordDecoder(WholeTextDecoder):
    """For texts in which later tokens may change a word, and the space before it, until the next space."""

    def push(self, id_: int) -> TextDelta:
        """Adds a token."""
        self._ids.append(id_)
        text = self._decode()
        return TextDelta(self._return(text[: max(len(self._text), text.rfind(" "))]))
