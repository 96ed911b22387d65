"""Text that grows token by token.

A text never changes behind its end: what later tokens may change is held back. How that is known depends on the
vocabulary; which way is right for a tokenizer is tried when it is loaded, against the text of all tokens at once.
Knows what tokens stand for; nothing of models or messages.
"""

from __future__ import annotations

import codecs
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from .offsets import trim
from .pieces import WORD_END
from .tokens import Token, TokenizedText

# Tokens of the prompt's end that a continuation's first token is decoded beside.
_CONTEXT = 8

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

# A mark at the end of a piece: of a word that goes on.
_GOES_ON = "@@"

# Texts that a tokenizer's way is tried with.
_SAMPLES = (
    "a ' b do n't I 'm it 's we 've they 're x . y ? z ! w , v it's . . ! ! n't",
    'The lazy dog, er sagt: "ja", und geht. "Nein!" it\'s \'ok\' - e-mail (x) 3.5 % of a/b',
    "Łódź  zloty\n漢字 日本語 한국어 مرحبا 😀👩‍👩‍👧 cafe\u0301 e\u0301\u0323 \ufffd � ##x a@@b @-@ <x> & ;",
)
_SEQUENCES, _LENGTH = 16, 24

# The two of a character.
_BYTES = b"\xde", b"\x90"


class Grown(NamedTuple):
    """What a token adds to a text.

    `text` is what it adds. Its first `skip` characters are of tokens before it. `opens`: characters that it begins or
    goes on with, and of which the rest is in later tokens: one, or two for half a surrogate.
    """

    text: str
    skip: int = 0
    opens: int = 0


class GrowingText(Protocol):
    """A way in which a text grows. Special tokens are left out by the caller.

    `has_text`: the caller has the text of the context. Spaces at its end belong to it, not to the text that grows.
    """

    def push(self, id_: int) -> Grown:
        """Adds a token."""
        ...

    def flush(self) -> str:
        """Ends the text; returns what was held back."""
        ...


class Vocabulary(Protocol):
    """What is asked of a vocabulary; see `pieces.Pieces`."""

    byte_vocabulary: Any
    piece: Callable[[int], str]
    unknown: int | None
    bytes_of: Callable[[int], bytes | None]
    text_behind_others: Callable[[int], str | None]

    is_silent: Callable[[int], bool]
    decode: Callable[[Sequence[int]], str]
    decode_before_letters: Callable[[Sequence[int]], str]


class Detokenizer:
    """Text that grows token by token, and where each token stands in it.

    Characters come out when they are complete. All tokens of a character that is several stand where the character
    stands, those too that come before it is complete.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = (), prefix: TokenizedText | None = None) -> None:
        """Starts a text; `context` are tokens before it that it continues, such as a prompt's.

        The text starts with the `prefix`, exactly: its tokens do not say what is unknown in it, or what the tokenizer
        has changed. A character that begins in the context belongs to it, wherever it ends.
        """
        self._tokenizer = tokenizer
        before = [*context, *([] if prefix is None else map(tokenizer.stand_in, prefix.ids))]
        before = [id_ for id_ in before if not tokenizer.is_special(id_)]
        self._growing: GrowingText = tokenizer.growing_text(tokenizer, before, has_text=prefix is not None)
        self.text = "" if prefix is None else prefix.text
        self._begin = len(self.text)  # of what later tokens add
        # A tokenizer may drop the space that the prefix ends with, and have it at the start of the next word.
        ends_in_space = self.text.strip() != "" and self.text[-1].isspace()
        self._has_space = ends_in_space and not tokenizer.decode_before_letters(before)[-1:].isspace()
        # Of the last token that covers something.
        self._end = 0 if prefix is None else max((token.end for token in prefix.tokens), default=0)

    def add(self, id_: int) -> tuple[str, Token]:
        """Adds a token; returns what it adds to the text, and the token with its place in it."""
        piece, role = self._tokenizer.piece(id_), self._tokenizer.role(id_)
        # Where a token without text stands: at an open character's begin, as the character's other tokens will.
        place = min(self._end, len(self.text))
        if role == "special":
            return "", Token(id_, piece, place, place, True, "")
        begin = len(self.text)
        text, skip, opens = self._growing.push(id_)
        if not skip:
            text = self._without_second_space(text)
        self.text += text
        if role == "space" and not text.strip():
            return text, Token(id_, piece, place, place, False, "")
        end = len(self.text)
        begin, stop = trim(self.text, (begin + skip, end))
        if opens:  # the character that is not complete will stand here
            begin, stop = begin if self.text[begin:stop].strip() else end, end + opens
        if begin < stop:
            self._end = stop
        else:
            begin = stop = place if not text else self._end
        return text, Token(id_, piece, begin, stop, False, self.text[begin:stop])

    def flush(self) -> str:
        """Ends the text; returns what was held back because it was incomplete."""
        text = self._without_second_space(self._growing.flush())
        self.text += text
        return text

    def _without_second_space(self, text: str) -> str:
        """What follows the prefix, less the space at its start where the prefix ends with that space."""
        if self._has_space and text:
            self._has_space = False
            return text.removeprefix(" ")
        return text

    def finish(self, token: Token) -> tuple[str, Token]:
        """Ends the text behind its last token; returns what was held back, and the token with all it stands for."""
        text = self.flush()
        if token.special:  # behind a character that was open
            end = max(token.end, min(self._end, len(self.text)))
            return text, replace(token, begin=end, end=end)
        if not text and token.begin == token.end:
            return text, token
        begin = max(token.begin, self._begin) if text else token.begin
        begin, end = trim(self.text, (begin, len(self.text) if text else token.end))
        return text, replace(token, begin=begin, end=end, text=self.text[begin:end])


def find_growing_text(vocabulary: Any, encode: Callable[[str], Sequence[int]], size: int) -> type[GrowingText]:
    """The way in which a vocabulary's texts grow to what they are when decoded at once.

    Tried with texts, and with tokens in an order that no text has. `encode` gives a text's tokens; ids are below
    `size`.
    """
    chance = random.Random(0)
    trials: list[Sequence[int]] = [encode(text) for text in _SAMPLES]
    trials += [chance.choices(range(size), k=_LENGTH) for _ in range(_SEQUENCES)]
    trials = [[id_ for id_ in ids if not vocabulary.is_special(id_)] for ids in trials]
    trials += [ids[:-1] for ids in trials]
    if vocabulary.byte_vocabulary is not None and vocabulary.unknown is not None:
        # An unknown token inside a character, as in no text.
        single = {vocabulary.bytes_of(id_): id_ for id_ in range(size)}
        if _BYTES[0] in single and _BYTES[1] in single:
            begin, end = (single[byte] for byte in _BYTES)
            trials.append([begin, vocabulary.unknown, end, end])
    has_word_ends = any(vocabulary.piece(id_).endswith(WORD_END) for id_ in range(size))
    ways: list[type[GrowingText]] = [TextOfWindows, TextOfMarkedWords if has_word_ends else TextOfSpacedWords]
    if vocabulary.byte_vocabulary in ("byte_level", "bytes"):
        ways = [TextOfBytes]
    for way in ways:
        if all(_grown(way, vocabulary, ids) == vocabulary.decode(ids) for ids in trials):
            return way
    return TextAtOnce


def _grown(way: Any, vocabulary: Any, ids: Sequence[int]) -> str:
    growing: GrowingText = way(vocabulary, (), has_text=False)
    return "".join([*(growing.push(id_).text for id_ in ids), growing.flush()])


class _OpenCharacter:
    """The bytes of a character that is not complete, at the end of a text."""

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int]) -> None:
        self._bytes = b""
        for id_ in context:
            own = vocabulary.bytes_of(id_)
            self._bytes = b"" if own is None else _decode_start(self._bytes + own)[1]
        self.of_context = self.count  # characters that are the context's

    def __bool__(self) -> bool:
        return bool(self._bytes)

    @property
    def count(self) -> int:
        """Characters that the bytes are if no more come: two for half a surrogate."""
        return len(self._bytes.decode("utf-8", "replace"))

    def push(self, data: bytes) -> tuple[str, bool]:
        """Adds bytes; returns the text that is complete, and whether the open character was part of the bytes."""
        before = self._bytes
        text, self._bytes = _decode_start(before + data)
        joins = True
        if before and text.startswith(_INCOMPLETE):
            joins = _decode_start(before + data[:1])[0] == "" or before + data[:1] == _INCOMPLETE.encode()
        return text, joins

    def close(self) -> str:
        """Ends the character as it is; returns it."""
        text, self._bytes = self._bytes.decode("utf-8", "replace"), b""
        return text


def _decode_start(data: bytes) -> tuple[str, bytes]:
    """The complete characters of some bytes, and the bytes of an incomplete one at their end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return text, decoder.getstate()[0]


def _context_of(vocabulary: Vocabulary, context: Sequence[int]) -> list[int]:
    """The last tokens of a context, from a character's beginning on: a few, and so many that they are some text."""
    shown = [id_ for id_ in context if not vocabulary.is_silent(id_)]
    count = _CONTEXT
    while True:
        begin = max(0, len(shown) - count)
        while begin > 0 and (vocabulary.bytes_of(shown[begin]) or b"a")[0] & 0xC0 == 0x80:
            begin -= 1
        if begin == 0 or vocabulary.decode(shown[begin:]).strip():
            return shown[begin:]
        count *= 2


class TextOfBytes:
    """Texts of vocabularies in which every token is some bytes."""

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int], *, has_text: bool) -> None:
        del has_text  # bytes say all
        self._vocabulary = vocabulary
        self._open = _OpenCharacter(vocabulary, _context_of(vocabulary, context))

    def push(self, id_: int) -> Grown:
        """Adds a token."""
        own = self._vocabulary.bytes_of(id_)
        if not own:
            return Grown("")
        before = self._open.count
        text, joins = self._open.push(own)
        skip = 0
        if before and text:
            if self._open.of_context:
                text, self._open.of_context = text[self._open.of_context :], 0
            elif not joins:
                skip = before
        return Grown(text, skip, max(0, self._open.count - self._open.of_context))

    def flush(self) -> str:
        """Ends the text; returns what was held back."""
        text = self._open.close()
        return text[self._open.of_context :]


class TextOfWindows:
    """Texts of vocabularies in which what a token adds depends on the few before it, or on whether there are any."""

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int], *, has_text: bool) -> None:
        self._vocabulary = vocabulary
        self._ids = _context_of(vocabulary, context)
        self._open = _OpenCharacter(vocabulary, self._ids)
        self._window = 0  # decoding starts here,
        self._read = len(self._ids)  # what is before this has come out already,
        # as so many characters of what is decoded. None: not counted yet, at least one.
        decode = vocabulary.decode_before_letters if has_text else vocabulary.decode
        self._before: int | None = self._count(self._ids, decode)
        self._has_text = has_text
        self._is_new = True  # the context may end in a space that is not decoded before something follows it

    def push(self, id_: int) -> Grown:
        """Adds a token."""
        vocabulary = self._vocabulary
        if vocabulary.is_silent(id_):
            return Grown("")
        own = vocabulary.bytes_of(id_)
        was_open, joins = self._open.count, own is not None
        of_context = self._open.of_context
        # Behind text, with nothing held back, a token may be one whose text is known.
        is_behind_text = self._read == len(self._ids) and self._before != 0 and not self._is_new
        known = vocabulary.text_behind_others(id_) if is_behind_text and not was_open else None
        self._is_new = False
        if known is not None:
            self._ids.append(id_)
            self._window, self._read, self._before = self._read, len(self._ids), None
            return Grown(known)
        broken = ""
        if own is None:
            self._open.close()
        else:
            _, joins = self._open.push(own)
            if was_open and not joins:  # the character that was open never will be one
                broken = self._take(self._pending())
                self._open.of_context = 0
        skip = 0 if joins or of_context else was_open
        self._ids.append(id_)
        if self._open:
            return Grown(broken, skip, max(0, self._open.count - self._open.of_context))
        new = self._pending()
        if own is None and self._is_incomplete(new, id_):
            return Grown("", 0, opens=1)
        self._open.of_context = 0
        return Grown(broken + self._take(self._lasting(new, id_)), skip)

    def flush(self) -> str:
        """Ends the text; returns what was held back."""
        self._open.close()
        if self._is_new and self._has_text:  # a mark at its end is not of the text
            return ""
        return self._take(self._pending())

    def _is_incomplete(self, text: str, id_: int) -> bool:
        """Whether a text ends in half a character, of vocabularies that do not say what their tokens' bytes are."""
        if self._vocabulary.byte_vocabulary is not None or not text.endswith(_INCOMPLETE):
            return False
        return _INCOMPLETE not in self._vocabulary.piece(id_)

    def _lasting(self, text: str, id_: int) -> str:
        """A text without the mark at its end that the next token takes away."""
        return text.removesuffix(_GOES_ON) if self._vocabulary.piece(id_).endswith(_GOES_ON) else text

    def _pending(self) -> str:
        if self._before is None:
            self._before = self._count(self._ids[self._window : self._read], self._vocabulary.decode)
        return self._vocabulary.decode(self._ids[self._window :])[self._before :]

    def _count(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
        """How many characters of tokens' text have come out."""
        return len(self._lasting(decode(ids), ids[-1])) if ids else 0

    def _take(self, new: str) -> str:
        # A space alone may be stripped at the end of a text: the window then stays until something follows it.
        if new:
            self._window, self._read = self._read, len(self._ids)
            self._before = self._count(self._ids[self._window :], self._vocabulary.decode)
        return new


class TextAtOnce:
    """Texts of which nothing is certain before their end. All tokens are decoded together."""

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int], *, has_text: bool) -> None:
        self._vocabulary = vocabulary
        self._ids = [*context]
        self._before = (vocabulary.decode_before_letters if has_text else vocabulary.decode)(self._ids)
        self._has_text = has_text
        self._text = ""

    def push(self, id_: int) -> Grown:
        """Adds a token."""
        self._ids.append(id_)
        return Grown("")

    def flush(self) -> str:
        """Ends the text; returns what was held back."""
        return self._take(self._decoded())

    def _decoded(self) -> str:
        """The text of all tokens behind the context's, as it would be if this were all."""
        whole = self._vocabulary.decode(self._ids)
        places = enumerate(zip(self._before, whole, strict=False))
        place = next((place for place, (one, other) in places if one != other), len(self._before))
        if self._has_text:  # what follows may take away spaces in it, such as before a closing quotation mark
            rest = len("".join(self._before[place:].split()))
            while rest and place < len(whole):
                rest -= not whole[place].isspace()
                place += 1
        return whole[place:]

    def _take(self, text: str) -> str:
        if not text.startswith(self._text):
            return ""
        new, self._text = text[len(self._text) :], text
        return new


class TextOfMarkedWords(TextAtOnce):
    """Texts that depend on all tokens, such as on the quotation marks that are open, and on the rest of a word.

    A word comes out when the mark says that it is complete, or letter by letter if it is letters.
    """

    def push(self, id_: int) -> Grown:
        """Adds a token."""
        self._ids.append(id_)
        text = self._decoded()
        if not self._vocabulary.piece(id_).endswith(WORD_END):
            letters = re.match(r"\s*[^\W_]+", text[len(self._text) :])
            text = text[: len(self._text) + letters.end()] if letters else self._text
        return Grown(self._take(text))


class TextOfSpacedWords(TextAtOnce):
    """Texts in which a word, and the space before it, may be changed by what follows before the next space."""

    def push(self, id_: int) -> Grown:
        """Adds a token."""
        self._ids.append(id_)
        text = self._decoded()
        return Grown(self._take(text[: max(len(self._text), text.rfind(" "))]))
