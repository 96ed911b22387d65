"""The words and the sentences of a text, by Unicode's boundaries (UAX 29). The text may grow.

ICU divides scripts without spaces (Chinese, Japanese, Thai, Khmer and others) by a dictionary. Where ICU is not
installed, each character of most of these scripts is a word: `WORD_BOUNDARIES` says which.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal

from unicode_segmentation_rs import split_word_bounds, unicode_sentences

from ..offsets import Span, trim_span

try:
    from icu4py import breakers as _icu_breakers
except ImportError:  # there is no ICU for this Python or this platform
    _icu_breakers = None

_icu: Any = _icu_breakers

Segmentation = Literal["word", "sentence"]

WORD_BOUNDARIES: Literal["icu", "uax29"] = "uax29" if _icu is None else "icu"

# The most characters that are looked at to find a boundary. A longer stretch without a certain boundary is divided
# there. So a step of a long text takes no longer than a step of a short text.
_MAX_STRETCH: dict[Segmentation, int] = {"word": 256, "sentence": 2048}

# The characters that ICU divides by a dictionary.
_IN_DICTIONARY = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff\u1950-\u19ff"  # Khmer, Tai Le, New Tai Lue
    "\u1a20-\u1aaf\uaa80-\uaadf\U00011700-\U0001174f"  # Tai Tham, Tai Viet, Ahom
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U0001aff0-\U0001b16f\U00020000-\U0003ffff"  # Chinese and Japanese
    "]"
)
# Marks and joiners belong to the character before them.
_MARKS = {"Mn", "Mc", "Me", "Cf"}
# After a letter, the end of a sentence before the letter is certain.
_LAST_LETTER = re.compile(r"[^\W\d_]")
_PARAGRAPH_ENDS = "\n\r\x85\u2028\u2029"

# Words of Latin letters and digits, single spaces, and marks before a space or the end: here all rules agree where the
# boundaries are. To ask ICU takes several times as long, and a text that grows is divided again with most tokens.
_LATIN = "0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
_NOT_LATIN = re.compile(rf"[^{_LATIN} .,!?]|  |[.,!?](?! |\Z)")
_LATIN_SEGMENT = re.compile(rf"[{_LATIN}]+|.")

# Marks of Chinese and Japanese, which are as wide as a character.
_WIDE_MARKS = re.compile("[\u3000-\u3004\u3008-\u3020\u3030\uff00-\uff65]")


def is_unspaced(character: str) -> bool:
    """Whether a character is of a script that is written without spaces."""
    return bool(_IN_DICTIONARY.match(character) or _WIDE_MARKS.match(character))


class Segments:
    """The words or the sentences of one text that grows. White space between words is a segment too.

    A boundary is certain where no further text can move it. The certain boundaries of a text that grows are the
    boundaries of the whole text.

    Attributes:
        certain_end: The last certain boundary.
    """

    def __init__(self, segmentation: Segmentation) -> None:
        self._segmentation: Segmentation = segmentation
        self._divide = _DIVIDE[segmentation]
        self._max_stretch = _MAX_STRETCH[segmentation]
        self._boundaries = [0]
        self._is_finished = False
        self.certain_end = 0

    def grow(self, text: str) -> None:
        """Reads the text once more, which begins as at the call before."""
        while (begin := self.certain_end) < len(text):
            stretch = text[begin : begin + self._max_stretch]
            ends = [begin + end for end in self._certain_ends(stretch)]
            if not ends and len(stretch) < self._max_stretch:
                return
            self._append(ends or [begin + end for end in self._divide(stretch)])

    def finish(self, text: str) -> None:
        """Reads the whole text, which does not grow any more: all boundaries become certain."""
        self.grow(text)
        self._is_finished = True
        if self.certain_end < len(text):
            self._append([self.certain_end + end for end in self._divide(text[self.certain_end :])])

    def index_at(self, offset: int) -> int | None:
        """Returns the number of the segment that holds a character; None where that is not certain yet."""
        is_certain = offset < self.certain_end or self._is_finished
        return bisect_right(self._boundaries, offset) if is_certain else None

    def spans(self, first: int = 0) -> list[Span]:
        """Returns the certain segments, from one of them on."""
        ends = self._boundaries[first + 1 :]
        return list(zip(self._boundaries[first:], ends))  # noqa: B905  # the second is shorter by one

    def _append(self, ends: list[int]) -> None:
        self._boundaries += ends
        self.certain_end = ends[-1]

    def _certain_ends(self, stretch: str) -> list[int]:
        """Returns the ends of segments of a stretch that do not depend on the text behind the stretch."""
        rest = stretch.removeprefix(" ")
        if self._segmentation == "word" and rest.isascii() and rest.isalnum():
            return []  # most tokens that come alone: what follows may belong to the word
        ends = self._divide(stretch)[:-1]
        if self._segmentation == "sentence":
            # What follows a full stop decides up to the next letter: "etc. (3) and" is one sentence.
            letters = list(_LAST_LETTER.finditer(stretch))
            last_letter = letters[-1].start() if letters else -1
            while ends and ends[-1] > last_letter and stretch[ends[-1] - 1] not in _PARAGRAPH_ENDS:
                ends.pop()
            return ends
        # A boundary before a full stop or an apostrophe depends on the character after it: "3.5", "don't". So a
        # boundary is certain if the next boundary is not the end.
        limit = len(stretch) - 1
        if WORD_BOUNDARIES == "icu" and (run := _find_dictionary_run(stretch)) is not None:
            limit = run
        while ends and ends[-1] > limit:
            ends.pop()
        return ends[:-1]


class WordFinder:
    """Finds the words of one text that grows, as `find_words` finds those of the whole text."""

    def __init__(self) -> None:
        self._segments = Segments("word")
        self._num_read = 0

    def grow(self, text: str) -> list[Span]:
        """Reads the text once more, which begins as at the call before. Returns the words that are now certain."""
        self._segments.grow(text)
        return self._read(text)

    def finish(self, text: str) -> list[Span]:
        """Reads the whole text. Returns the words that were not certain."""
        self._segments.finish(text)
        return self._read(text)

    def _read(self, text: str) -> list[Span]:
        spans = self._segments.spans(self._num_read)
        if not spans:
            return []
        self._num_read += len(spans)
        return _without_space(text, spans)


def find_words(text: str) -> list[Span]:
    """Finds the words of a text. A punctuation mark is a word of its own; white space is none."""
    return _find_segments(text, "word")


def find_sentences(text: str) -> list[Span]:
    """Finds the sentences of a text, without the white space around them."""
    return _find_segments(text, "sentence")


def _find_segments(text: str, segmentation: Segmentation) -> list[Span]:
    segments = Segments(segmentation)
    segments.finish(text)
    return _without_space(text, segments.spans())


def _without_space(text: str, segments: Sequence[Span]) -> list[Span]:
    return [trim_span(text, (begin, end)) for begin, end in segments if not text[begin:end].isspace()]


def _find_dictionary_run(text: str) -> int | None:
    """Returns where the run of dictionary characters at the end of a text begins; None without such a run.

    More characters at the end of the text may change all words of the run.
    """
    begin = None
    if text.isascii():
        return None
    for index in range(len(text) - 1, -1, -1):
        if _IN_DICTIONARY.match(text[index]):
            begin = index
        elif unicodedata.category(text[index]) not in _MARKS:
            break
    return begin


# ---- libraries ------------------------------------------------------------------------------------------------------


def _divide_into_words(text: str) -> list[int]:
    """Returns the ends of all segments of a text."""
    if _NOT_LATIN.search(text) is None:
        return list(accumulate(map(len, _LATIN_SEGMENT.findall(text))))
    pieces = split_word_bounds(text) if _icu is None else _icu.WordBreaker(text, "en")
    return list(accumulate(map(len, pieces)))


def _divide_into_sentences(text: str) -> list[int]:
    if _icu is not None:
        return list(accumulate(map(len, _icu.SentenceBreaker(text, "en"))))
    ends: list[int] = []
    end = 0
    for sentence in unicode_sentences(text):  # sentences without letters and digits are left out
        begin = text.index(sentence, end)
        if begin > end:
            ends.append(begin)
        end = begin + len(sentence)
        ends.append(end)
    return ends if end == len(text) else [*ends, len(text)]


_DIVIDE: dict[Segmentation, Callable[[str], list[int]]] = {
    "word": _divide_into_words,
    "sentence": _divide_into_sentences,
}
