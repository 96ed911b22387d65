"""Where tokens stand in a text: character offsets, and the rule that holds for every tokenizer.

Offsets count Unicode code points of the exact text, half-open. The rule, which is the contract's:

- spans lie in the text, and their begins do not decrease;
- every character that is no white space belongs to at least one token;
- white space around a word belongs to no token, but for tokens that are nothing else, such as a line break;
- tokens that are nothing but spaces, and special tokens, cover nothing, and stand where the token before them ends.

Tokenizers say where their tokens come from, each in its own way; `settle` makes the rule of it. `align` is for the few
tokenizers that say nothing. Knows strings only: no tokenizer, no model.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal

Span = tuple[int, int]

Role = Literal["word", "space", "special"]
"""What a token stands for: characters, nothing but spaces (in vocabularies often a mark of its own), or no text."""

# SentencePiece's mark for a space.
SPACE = "▁"

# Marks of subword vocabularies at the end of a piece, for the end of a word or for a word that goes on.
_END_MARKS = ("</w>", "@@")

# A mark at the beginning of a piece, for a word that goes on.
_BEGIN_MARK = "##"

# What Moses writes for characters that mean something to it.
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|#91|#93|#124);")

# Characters that are compared at once where a text and its pieces differ.
_WINDOW = 24


def trim(text: str, span: Span) -> Span:
    """`span` without the white space at its ends, unless there is nothing else in it."""
    begin, end = span
    if begin < end and not text[begin].isspace() and not text[end - 1].isspace():
        return span
    inner = text[begin:end].strip()
    if not inner:
        return span
    begin += text[begin:end].index(inner)
    return begin, begin + len(inner)


# ---- the rule -------------------------------------------------------------------------------------------------------


def settle(text: str, spans: Sequence[Span], roles: Sequence[Role]) -> list[Span]:
    """The spans of a text's tokens as the rule has them.

    `spans` are the tokenizer's own, in the tokens' order. The characters of special tokens that stand in the text
    belong to no token.
    """
    settled: list[Span] = []
    free = bytearray(b"\1") * len(text)  # whether a character belongs to no token
    first = 0  # the begin of the token before
    for (start, stop), role in zip(spans, roles, strict=True):
        begin = min(max(start, 0), len(text))
        span = begin, min(max(stop, begin), len(text))
        if role == "word":
            span = trim(text, span)
            first = max(span[0], first)
            span = first, max(first, span[1])
            settled.append(span)
        else:
            settled.append((first, first))
        if role != "space":
            free[span[0] : span[1]] = bytes(span[1] - span[0])
    _give_out(text, free, settled, roles)
    _place_empty(settled, roles)
    return settled


def _give_out(text: str, free: bytearray, spans: list[Span], roles: Sequence[Role]) -> None:
    """Gives characters that a tokenizer has dropped, or has not accounted for, to the tokens where they stand."""
    words = [index for index, role in enumerate(roles) if role == "word"]
    if not words:  # a mark of a space that stands in the text is one
        words = [index for index, role in enumerate(roles) if role == "space"]
    following: list[int | None] = [None] * (len(words) + 1)  # for each word: the next that covers something
    for place in range(len(words) - 1, -1, -1):
        covers = spans[words[place]][0] < spans[words[place]][1]
        following[place] = place if covers else following[place + 1]
    before: int | None = None
    place = 0
    for begin, end in _unaccounted(text, free):
        while place < len(words) and spans[words[place]][0] < begin:
            if spans[words[place]][0] < spans[words[place]][1]:
                before = place
            place += 1
        after = following[place]
        here: list[int] = []  # tokens that cover nothing else stand for them
        near = place
        while near < len(words) and spans[words[near]][0] <= end:
            if spans[words[near]][0] == spans[words[near]][1]:
                here.append(words[near])
            near += 1
        if before is None and after is None and not here and words:  # all cover nothing: the next, or the last
            after = place if place < len(words) else None
            before = len(words) - 1 if after is None else None
        if here:
            for word in here:
                spans[word] = begin, end
        elif before is not None and (
            after is None or spans[words[before]][1] == begin or spans[words[after]][0] != end
        ):
            begin = spans[words[before]][0]
            _widen(spans, words, before, trim(text, (begin, end)))
        elif after is not None:
            end = max(spans[words[after]][1], end)
            _widen(spans, words, after, trim(text, (begin, end)))
            for word in words[place:after]:
                spans[word] = begin, begin
        free[begin:end] = bytes(end - begin)


def _unaccounted(text: str, free: bytearray) -> Iterator[Span]:
    """Runs of characters that are no white space and belong to no token; `free` may change meanwhile."""
    begin = free.find(1)
    while begin >= 0:
        end = begin
        while end < len(text) and free[end] and not text[end].isspace():
            end += 1
        if end > begin:
            yield begin, end
        begin = free.find(1, max(end, begin + 1))


def _widen(spans: list[Span], words: Sequence[int], place: int, span: Span) -> None:
    """Gives a token another span, and the tokens beside it that share its characters."""
    old = spans[words[place]]
    spans[words[place]] = span
    for step in (-1, 1):
        other = place + step
        while 0 <= other < len(words) and spans[words[other]] == old and old[0] < old[1]:
            spans[words[other]] = span
            other += step


def _place_empty(spans: list[Span], roles: Sequence[Role]) -> None:
    """Spaces and special tokens cover nothing, and stand where the token before them ends."""
    following: list[int | None] = []  # for each token: where the next word begins
    after: int | None = None
    for span, role in zip(reversed(spans), reversed(roles), strict=True):
        after = span[0] if role == "word" or span[0] < span[1] else after
        following.append(after)
    end = 0
    for index, after in enumerate(reversed(following)):
        begin, stop = spans[index]
        if roles[index] == "word" or begin < stop:
            end = stop
        else:
            place = end if after is None else min(end, after)
            spans[index] = place, place


# ---- tokenizers that say nothing ------------------------------------------------------------------------------------


def align(text: str, pieces: Sequence[str]) -> list[Span]:
    """The span of each piece in the text that it was made from, for tokenizers that do not tell.

    Pieces are compared with the text in order, modulo case and compatibility decomposition (NFKD), since tokenizers
    normalise, and where both differ the fewest edits decide. A ligature in two pieces is in both. A piece that has
    nothing in common with the text is empty, such as "" for an unknown token: `settle` gives it what is left over.
    """
    characters, places = _folded(text)
    spans: list[Span | None] = [None] * len(pieces)
    known, owners = _surfaces(pieces)
    for left, right in _matches(characters, known):
        begin = places[left]
        first, last = owners[right]
        for piece in range(first, last + 1):
            span = spans[piece]
            spans[piece] = (begin, begin + 1) if span is None else (span[0], max(span[1], begin + 1))
    end = 0
    settled: list[Span] = []
    for span in spans:
        if span is None:  # it stands for what comes next, if for anything
            while end < len(text) and text[end].isspace():
                end += 1
            span = end, end
        settled.append(span)
        end = span[1]
    return settled


def _folded(text: str) -> tuple[str, list[int]]:
    """The text without white space, decomposed and case-folded, and each character's place in the original."""
    characters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        for part in _fold(character):
            characters.append(part)
            places.append(place)
    return "".join(characters), places


def _fold(text: str) -> str:
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(folded.split())


def _surfaces(pieces: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """What the pieces stand for, folded, and for each character the first and the last piece that it is of."""
    surface: list[str] = []
    owner: list[int] = []
    for index, piece in enumerate(pieces):
        shown = piece.replace(SPACE, " ")
        for mark in _END_MARKS:
            shown = shown.removesuffix(mark)
        shown = shown.removeprefix(_BEGIN_MARK) or shown
        surface.append(shown)
        owner += [index] * len(shown)
    whole = "".join(surface)
    characters: list[str] = []
    owners: list[tuple[int, int]] = []
    at = 0
    for match in (*_ENTITY.finditer(whole), None):
        begin = len(whole) if match is None else match.start()
        for place in range(at, begin):
            for part in _fold(whole[place]):
                characters.append(part)
                owners.append((owner[place], owner[place]))
        if match is not None:
            characters.append(html.unescape(match.group()))
            owners.append((owner[begin], owner[match.end() - 1]))
            at = match.end()
    return "".join(characters), owners


def _matches(one: str, other: str) -> Iterator[tuple[int, int]]:
    """Places of two strings that belong together, in order; equal stretches at once, others a window at a time."""
    i = j = 0
    while i < len(one) and j < len(other):
        if one[i] == other[j]:
            yield i, j
            i, j = i + 1, j + 1
            continue
        left, right = one[i : i + _WINDOW], other[j : j + _WINDOW]
        # What the edits are at a window's end depends on what follows it: half of them are taken.
        last = i + _WINDOW >= len(one) and j + _WINDOW >= len(other)
        di = dj = 0
        for di, dj, together in _edits(left, right, whole=last):
            if together:
                yield i + di - 1, j + dj - 1
            if not last and max(di, dj) >= _WINDOW // 2:
                break
        i, j = i + di, j + dj


def _edits(one: str, other: str, *, whole: bool) -> list[tuple[int, int, bool]]:
    """The fewest edits between two strings: how far each leads in both, and whether it puts characters together.

    Without `whole` either string may go on where the other ends.
    """
    costs = [[*range(len(other) + 1)]]
    for i, character in enumerate(one):
        row = [i + 1]
        for j, candidate in enumerate(other):
            together = costs[i][j] + (character != candidate)
            row.append(min(together, costs[i][j + 1] + 1, row[j] + 1))
        costs.append(row)
    i, j = len(one), len(other)
    if not whole:
        ends = [(i, place) for place in range(j + 1)] + [(place, j) for place in range(i + 1)]
        i, j = min(ends, key=lambda end: (costs[end[0]][end[1]], -sum(end)))
    path: list[tuple[int, int, bool]] = []
    while i or j:
        if i and j and costs[i][j] == costs[i - 1][j - 1] + (one[i - 1] != other[j - 1]):
            path.append((i, j, True))
            i, j = i - 1, j - 1
        elif i and costs[i][j] == costs[i - 1][j] + 1:
            path.append((i, j, False))
            i -= 1
        else:
            path.append((i, j, False))
            j -= 1
    return path[::-1]
