"""Where tokens stand in a text: character offsets, and one rule for every tokenizer.

Offsets count Unicode code points of the exact text. A span is half-open. The rule, which is the contract's:

- Spans lie in the text, and their begins do not decrease.
- Every character that is not white space belongs to at least one token.
- White space around a word belongs to no token, unless the token is only white space, such as a line break.
- A token that is only spaces, and a special token, cover nothing. Their place is the end of the token before.

Tokenizers give spans, each in its own way. `normalize_spans` applies the rule. `align_pieces` finds spans for the few
tokenizers that give none.
"""

from __future__ import annotations

import html
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal

Span = tuple[int, int]

Role = Literal["word", "space", "special"]
"""What a token stands for: characters, only spaces (in many vocabularies a mark of its own), or no text."""

# SentencePiece's mark for a space.
SPACE = "▁"

# Marks at the end of a piece, for the end of a word or for a word that continues.
_END_MARKS = ("</w>", "@@")

# A mark at the beginning of a piece, for a word that continues.
_BEGIN_MARK = "##"

# What Moses writes for characters that have a meaning in its own syntax.
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|#91|#93|#124);")

# How many characters are compared at once where a text and its pieces differ.
_WINDOW = 24


def trim_span(text: str, span: Span) -> Span:
    """Returns a span without the white space at its ends. A span that is only white space stays as it is."""
    begin, end = span
    if begin < end and not text[begin].isspace() and not text[end - 1].isspace():
        return span
    inner = text[begin:end].strip()
    if not inner:
        return span
    begin += text[begin:end].index(inner)
    return begin, begin + len(inner)


# ---- the rule -------------------------------------------------------------------------------------------------------


def normalize_spans(text: str, spans: Sequence[Span], roles: Sequence[Role]) -> list[Span]:
    """Returns the spans of a text's tokens by the rule.

    `spans` are the tokenizer's own, in the tokens' order. Characters of special tokens that are written in the text
    belong to no token.
    """
    normalized: list[Span] = []
    is_free = bytearray(b"\1") * len(text)  # 1 for each character that belongs to no token
    last_begin, length = 0, len(text)
    for span, role in zip(spans, roles, strict=True):
        begin, end = span
        if not 0 <= begin <= end <= length:
            begin = min(max(begin, 0), length)
            span = begin, end = begin, min(max(end, begin), length)
        if role == "word":
            begin, end = span = trim_span(text, span)
            if begin < last_begin:
                begin, end = span = last_begin, max(last_begin, end)
            last_begin = begin
            normalized.append(span)
        else:
            normalized.append((last_begin, last_begin))
        if role != "space" and begin < end:
            is_free[begin:end] = bytes(end - begin)
    if "".join(itertools.compress(text, is_free)).strip():
        _assign_free_characters(text, is_free, normalized, roles)
    _place_empty_spans(normalized, roles)
    return normalized


def _assign_free_characters(text: str, is_free: bytearray, spans: list[Span], roles: Sequence[Role]) -> None:
    """Gives characters without a token to the tokens at their place: the tokenizer has dropped or not counted them."""
    words = [index for index, role in enumerate(roles) if role == "word"]
    if not words:  # a mark of a space that is written in the text is a word
        words = [index for index, role in enumerate(roles) if role == "space"]
    following = _find_following(spans, words)
    before: int | None = None
    place = 0
    for begin, end in _free_runs(text, is_free):
        while place < len(words) and spans[words[place]][0] < begin:
            if spans[words[place]][0] < spans[words[place]][1]:
                before = place
            place += 1
        after = following[place]
        empty = _find_empty_words(spans, words, place, end)
        if before is None and after is None and not empty and words:  # no word covers anything: the next, or the last
            after = place if place < len(words) else None
            before = len(words) - 1 if after is None else None
        if empty:
            for word in empty:
                spans[word] = begin, end
        elif before is not None and (
            after is None or spans[words[before]][1] == begin or spans[words[after]][0] != end
        ):
            begin = spans[words[before]][0]
            _set_span(spans, words, before, trim_span(text, (begin, end)))
        elif after is not None:
            end = max(spans[words[after]][1], end)
            _set_span(spans, words, after, trim_span(text, (begin, end)))
            for word in words[place:after]:
                spans[word] = begin, begin
        is_free[begin:end] = bytes(end - begin)


def _find_following(spans: Sequence[Span], words: Sequence[int]) -> list[int | None]:
    """Returns for each word the place in `words` of the first word from there on that covers something."""
    following: list[int | None] = [None] * (len(words) + 1)
    for place in range(len(words) - 1, -1, -1):
        covers = spans[words[place]][0] < spans[words[place]][1]
        following[place] = place if covers else following[place + 1]
    return following


def _find_empty_words(spans: Sequence[Span], words: Sequence[int], place: int, end: int) -> list[int]:
    """Returns the words from a place on that begin by `end` and cover nothing."""
    empty: list[int] = []
    while place < len(words) and spans[words[place]][0] <= end:
        if spans[words[place]][0] == spans[words[place]][1]:
            empty.append(words[place])
        place += 1
    return empty


def _free_runs(text: str, is_free: bytearray) -> Iterator[Span]:
    """Yields runs of characters that are not white space and belong to no token. `is_free` may change meanwhile."""
    begin = is_free.find(1)
    while begin >= 0:
        end = begin
        while end < len(text) and is_free[end] and not text[end].isspace():
            end += 1
        if end > begin:
            yield begin, end
        begin = is_free.find(1, max(end, begin + 1))


def _set_span(spans: list[Span], words: Sequence[int], place: int, span: Span) -> None:
    """Gives a new span to a word, and to the words beside it that share its characters."""
    old = spans[words[place]]
    spans[words[place]] = span
    for direction in (-1, 1):
        other = place + direction
        while 0 <= other < len(words) and spans[words[other]] == old and old[0] < old[1]:
            spans[words[other]] = span
            other += direction


def _place_empty_spans(spans: list[Span], roles: Sequence[Role]) -> None:
    """Puts the spans of spaces and special tokens, which cover nothing, at the end of the token before."""
    following: list[int | None] = []  # for each token from the last one: where the next word begins
    next_begin: int | None = None
    for span, role in zip(reversed(spans), reversed(roles), strict=True):
        next_begin = span[0] if role == "word" or span[0] < span[1] else next_begin
        following.append(next_begin)
    last_end = 0
    for index, next_begin in enumerate(reversed(following)):
        begin, end = spans[index]
        if roles[index] == "word" or begin < end:
            last_end = end
        else:
            place = last_end if next_begin is None else min(last_end, next_begin)
            spans[index] = place, place


# ---- tokenizers that give no spans ----------------------------------------------------------------------------------


def align_pieces(text: str, pieces: Sequence[str]) -> list[Span]:
    """Returns the span of each piece in the text that the pieces were made from.

    Pieces are compared with the text in order, modulo case and compatibility decomposition (NFKD), since tokenizers
    normalize. Where text and pieces differ, the fewest edits decide. A ligature in two pieces belongs to both. A piece
    without a character in common with the text has an empty span, such as "" for an unknown token: `normalize_spans`
    gives it the characters that are left over.
    """
    characters, places = _fold_text(text)
    spans: list[Span | None] = [None] * len(pieces)
    surface, owners = _fold_pieces(pieces)
    for text_index, surface_index in _match_characters(characters, surface):
        begin = places[text_index]
        first, last = owners[surface_index]
        for piece in range(first, last + 1):
            span = spans[piece]
            spans[piece] = (begin, begin + 1) if span is None else (span[0], max(span[1], begin + 1))
    end = 0
    aligned: list[Span] = []
    for span in spans:
        if span is None:  # the piece stands for the next characters, if for any
            while end < len(text) and text[end].isspace():
                end += 1
            span = end, end
        aligned.append(span)
        end = span[1]
    return aligned


def _fold_text(text: str) -> tuple[str, list[int]]:
    """Returns the text without white space, decomposed and case-folded, and each character's place in the original."""
    characters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        for folded in _fold(character):
            characters.append(folded)
            places.append(place)
    return "".join(characters), places


def _fold(text: str) -> str:
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(folded.split())


def _fold_pieces(pieces: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Returns what the pieces stand for, folded, and for each character its first and its last piece."""
    surfaces: list[str] = []
    piece_of: list[int] = []
    for index, piece in enumerate(pieces):
        surface = piece.replace(SPACE, " ")
        for mark in _END_MARKS:
            surface = surface.removesuffix(mark)
        surface = surface.removeprefix(_BEGIN_MARK) or surface
        surfaces.append(surface)
        piece_of += [index] * len(surface)
    joined = "".join(surfaces)
    characters: list[str] = []
    owners: list[tuple[int, int]] = []
    start = 0
    for match in (*_ENTITY.finditer(joined), None):
        end = len(joined) if match is None else match.start()
        for place in range(start, end):
            for folded in _fold(joined[place]):
                characters.append(folded)
                owners.append((piece_of[place], piece_of[place]))
        if match is not None:
            characters.append(html.unescape(match.group()))
            owners.append((piece_of[end], piece_of[match.end() - 1]))
            start = match.end()
    return "".join(characters), owners


def _match_characters(one: str, other: str) -> Iterator[tuple[int, int]]:
    """Yields places of two strings that belong together, in order. Unequal stretches are compared window by window."""
    i = j = 0
    while i < len(one) and j < len(other):
        if one[i] == other[j]:
            yield i, j
            i, j = i + 1, j + 1
            continue
        one_window, other_window = one[i : i + _WINDOW], other[j : j + _WINDOW]
        # The edits at a window's end depend on what follows the window: only the first half of the edits is taken.
        is_last = i + _WINDOW >= len(one) and j + _WINDOW >= len(other)
        di = dj = 0
        for di, dj, is_match in _find_edits(one_window, other_window, whole=is_last):
            if is_match:
                yield i + di - 1, j + dj - 1
            if not is_last and max(di, dj) >= _WINDOW // 2:
                break
        i, j = i + di, j + dj


def _find_edits(one: str, other: str, *, whole: bool) -> list[tuple[int, int, bool]]:
    """Returns the fewest edits between two strings (Levenshtein).

    Each edit is the place in both strings after it, and whether it puts two characters together. Without `whole`,
    either string may continue after the other's end.
    """
    costs = [[*range(len(other) + 1)]]
    for i, character in enumerate(one):
        row = [i + 1]
        for j, candidate in enumerate(other):
            match = costs[i][j] + (character != candidate)
            row.append(min(match, costs[i][j + 1] + 1, row[j] + 1))
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
