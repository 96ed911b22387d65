"""Offsets in units: the same substrings as Python's, by encoding a text and slicing the code."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from sidelight.server.text import Detokenizer, OffsetMap
from sidelight.server.text.offset_units import count_units
from tokenizer_zoo import TOKENIZERS, zoo_tokenizer

# Emoji, one of several code points, combining marks, CJK beyond the BMP, right to left, and what bytes leave.
TEXTS = ("a😀b", "👩‍👩‍👧 x", "cafe\u0301 e\u0323\u0301", "𠀋 漢字 𝒳", "שלום مرحبا 😀", "\ufffd\x00\U0010ffff\uffff", "")

CODES = {"code_point": ("utf-32-le", 4), "utf16": ("utf-16-le", 2), "utf8": ("utf-8", 1)}


def cut(text: str, begin: int, end: int, unit: str) -> str:
    """As a client slices its strings. Fails inside a character."""
    encoding, size = CODES[unit]
    assert end * size <= len(text.encode(encoding))
    return text.encode(encoding)[begin * size : end * size].decode(encoding)


@pytest.mark.parametrize("unit", CODES)
@settings(deadline=None, max_examples=60)
@given(pieces=st.lists(st.sampled_from(TEXTS) | st.text(max_size=6), max_size=8))
@example(pieces=["😀", "", "😀"])
def test_every_offset_of_a_growing_text(unit, pieces):
    pieces = [piece.encode("utf-8", "ignore").decode() for piece in pieces]
    offsets, text = OffsetMap(unit), ""
    for piece in pieces:
        text += piece
        offsets.append(piece)
        assert offsets.to_units(len(text)) == count_units(text, unit)
    places = [offsets.to_units(offset) for offset in range(len(text) + 1)]
    for offset, place in enumerate(places):
        assert cut(text, 0, place, unit) == text[:offset]
        assert offsets.to_code_points(place) == offset
    for place in {*range(places[-1] + 2)} - {*places}:
        with pytest.raises(ValueError, match="behind the text" if place > places[-1] else "inside a character"):
            offsets.to_code_points(place)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=8)
@given(text=st.lists(st.sampled_from(TEXTS) | st.text(max_size=4), max_size=5).map(" ".join))
@example(text="日本語 😀 é 𠀋 the dog 👩‍👩‍👧 مرحبا")
def test_tokens_have_the_same_substrings_while_a_text_grows(name, text):
    """What is sent with each token holds for the whole text, also for the first bytes of a character."""
    text = text.encode("utf-8", "ignore").decode()
    tokenizer = zoo_tokenizer(name)
    detokenizer = Detokenizer(tokenizer)
    maps = {unit: OffsetMap(unit) for unit in ("utf16", "utf8")}
    sent = []
    for id_ in tokenizer.encode_source(text).ids:
        added, token = detokenizer.add(id_)
        for offsets in maps.values():
            offsets.append(added)
        begins = {unit: offsets.to_units(token.begin) for unit, offsets in maps.items()}
        ends = {unit: offsets.to_units(token.end, token.open_bytes) for unit, offsets in maps.items()}
        sent.append((token, begins, ends))
    detokenizer.flush()
    whole = detokenizer.text
    if "\ufffd" in whole and "\ufffd" not in text:  # a vocabulary without these bytes: a character is never complete
        return
    for token, begins, ends in sent:
        for unit in maps:
            assert (
                cut(whole, begins[unit], min(ends[unit], count_units(whole, unit)), unit)
                == (whole[token.begin : token.end])
            )


@pytest.mark.parametrize(
    ("data", "num_characters", "units"),
    [(b"\xf0\x9f", 1, (2, 4)), (b"\xe6", 1, (1, 3)), (b"\xc3", 1, (1, 2)), (b"\xed\xa0", 2, (2, 6)), (b"", 1, (1, 3))],
)
def test_characters_to_come_count_as_whole_characters(data, num_characters, units):
    for unit, expected in zip(("utf16", "utf8"), units, strict=True):
        assert OffsetMap(unit, "é").to_units(1 + num_characters, data) == count_units("é", unit) + expected
