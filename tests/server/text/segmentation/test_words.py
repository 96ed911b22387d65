"""Words and sentences are Unicode's (UAX 29), and those of a text that grows are those of the whole text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sidelight.server.text.segmentation import words
from sidelight.server.text.segmentation.words import Segments, find_sentences, find_words

# Letters, digits and marks of each kind that UAX 29 knows, and of the scripts that need a dictionary.
LETTERS = "ab Z1٣.,'’:;!?\"_()-\n\r\t א״カひ漢字กขค๊\u0301\u200d😀🇦🇧ー。、・ﾞ゙́က្ខ各 \u2028\x85\u00adΣ한국"
TEXTS = st.text(st.sampled_from(LETTERS), max_size=40) | st.text(max_size=30)


@pytest.fixture(params=["icu", "uax29"])
def library(request, monkeypatch) -> str:
    """ICU, and what is there without ICU."""
    if request.param == "uax29":
        monkeypatch.setattr(words, "_icu", None)
        monkeypatch.setattr(words, "WORD_BOUNDARIES", "uax29")
    elif words._icu is None:
        pytest.skip("no ICU for this Python")
    return request.param


def split(find, text: str) -> list[str]:
    return [text[begin:end] for begin, end in find(text)]


# Most are lines of Unicode's WordBreakTest.txt and the examples of UAX 29.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('The quick ("brown") fox', ["The", "quick", "(", '"', "brown", '"', ")", "fox"]),
        ("can't jump 32.3 feet, right?", ["can't", "jump", "32.3", "feet", ",", "right", "?"]),
        ("3.x a.b. 1,000.5 a_b", ["3", ".", "x", "a.b", ".", "1,000.5", "a_b"]),
        ("e\u0301te\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467!", ["e\u0301te\u0301", "👨\u200d👩\u200d👧", "!"]),
        ("🇦🇧🇨", ["🇦🇧", "🇨"]),
        ("שלום עולם, ב״כ", ["שלום", "עולם", ",", "ב״כ"]),
        ("a\r\nb \n c", ["a", "b", "c"]),
        ("", []),
        (" \n ", []),
    ],
)
@pytest.mark.usefixtures("library")
def test_words_are_unicodes(text, expected):
    assert split(find_words, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 3.5 m. ok? Yes! He said “no.” Then (4) left.", 4),
        ("One etc. and so on. Two", 2),
        ("First\nSecond", 2),
        ("日本語です。はい。", 2),
        ("", 0),
    ],
)
@pytest.mark.usefixtures("library")
def test_sentences_are_unicodes(text, expected):
    sentences = split(find_sentences, text)
    assert len(sentences) == expected
    assert "".join(sentences).replace(" ", "") == text.replace(" ", "").replace("\n", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我喜欢北京大学。", ["我", "喜欢", "北京", "大学", "。"]),
        ("これは日本語です", ["これ", "は", "日本語", "です"]),
        ("สวัสดีครับ ok", ["สวัสดี", "ครับ", "ok"]),
    ],
)
def test_a_dictionary_divides_scripts_without_spaces(library, text, expected):
    found = split(find_words, text)
    if library == "icu":
        assert found == expected
    else:
        assert "".join(found) == "".join(expected)
        assert len(found) > len(expected)


@pytest.mark.parametrize("segmentation", ["word", "sentence"])
@pytest.mark.parametrize("library", ["icu", "uax29"])
def test_boundaries_of_a_text_that_grows_are_those_of_the_whole_text(segmentation, library):
    """At every length the certain boundaries are boundaries of the whole text, which are the library's own."""
    if library == "icu" and words._icu is None:
        pytest.skip("no ICU for this Python")

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(TEXTS, st.sets(st.integers(1, 40)))
    def check(text, missing):
        segments = Segments(segmentation)
        for length in range(1, len(text) + 1):
            if length not in missing:
                segments.grow(text[:length])
        segments.finish(text)
        assert [end for _, end in segments.spans()] == words._DIVIDE[segmentation](text)

    with pytest.MonkeyPatch.context() as patch:
        if library == "uax29":
            patch.setattr(words, "_icu", None)
            patch.setattr(words, "WORD_BOUNDARIES", "uax29")
        check()


@pytest.mark.parametrize("segmentation", ["word", "sentence"])
@pytest.mark.parametrize(
    "text",
    [
        "我喜欢北京大学，很大。これは日本語です。東京都に住んでいます 42！สวัสดีครับ ผมชื่อ ok ភាសាខ្មែរ",
        "One etc. (3) and so on. 1. 2. 3 a. Then, “no.” (5) He\nleft. 3.5 . 4",
        "don't can't. 3.x 1,000.5 a.b. ב״כ e\u0301. x\u0301\u0301.\u0301y",
    ],
)
@pytest.mark.usefixtures("library")
def test_common_texts_that_grow_are_divided_as_the_whole_text(segmentation, text):
    segments = Segments(segmentation)
    for length in range(1, len(text) + 1):
        segments.grow(text[:length])
    segments.finish(text)
    assert [end for _, end in segments.spans()] == words._DIVIDE[segmentation](text)


_LATIN = "".join(map(chr, range(0x30, 0x24F + 1)))


@pytest.mark.usefixtures("library")
def test_latin_texts_are_divided_as_the_library_divides_them():
    """Most texts are divided without the library."""
    divided: dict[str, list[int]] = {}

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(st.text(st.sampled_from("aZ1  .,!?'") | st.sampled_from(_LATIN), max_size=12))
    def divide(text):
        divided[text] = words._DIVIDE["word"](text)

    divide()
    for character in _LATIN:
        divided[f"a{character}1"] = words._DIVIDE["word"](f"a{character}1")
    assert sum(words._NOT_LATIN.search(text) is None for text in divided) > 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "_NOT_LATIN", re.compile(""))
        for text, ends in divided.items():
            assert words._DIVIDE["word"](text) == ends, text


@pytest.mark.usefixtures("library")
def test_words_come_as_soon_as_they_are_certain():
    segments = Segments("word")
    ends = []
    for length in range(1, 13):
        segments.grow("I don't mind"[:length])
        ends.append(segments.certain_end)
    # "I" is certain behind "d", since a mark could belong to the space; "don't" is certain behind "m".
    assert ends == [0, 0, 1, 1, 1, 2, 2, 2, 7, 7, 7, 7]


@pytest.mark.parametrize("text", ["字" * 1000, "ก" * 1000, "\u0301" * 1000, "a" * 1000, "字a\u0301" * 300])
@pytest.mark.usefixtures("library")
def test_a_step_of_a_long_stretch_looks_at_a_bounded_text(text, monkeypatch):
    """And a stretch that is divided before its end is divided in the same way when it grows."""
    lengths = []
    divide = words._DIVIDE["word"]
    monkeypatch.setitem(words._DIVIDE, "word", lambda stretch: lengths.append(len(stretch)) or divide(stretch))
    whole, grown = Segments("word"), Segments("word")
    whole.finish(text)
    for length in range(1, len(text) + 1):
        grown.grow(text[:length])
    grown.finish(text)
    assert list(grown.spans()) == list(whole.spans())
    assert max(lengths) == 256
