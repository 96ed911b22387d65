"""Words: which tokens a view shows as one."""

from __future__ import annotations

from client_tokens import SHORT, byte_tokens, tokens
from hypothesis import given
from hypothesis import strategies as st
from sidelight.client import Token
from sidelight.client.views.words import find_words


def test_pieces_of_a_word_are_shown_as_one():
    assert [word.label for word in find_words(SHORT)] == ["My", "grandmother", "is", "old", ".", "</s>"]
    assert [word.positions for word in find_words(SHORT)] == [(0,), (1, 2), (3,), (4,), (5,), (6,)]


def test_words_of_scripts_without_spaces_stay_apart():
    assert [word.label for word in find_words(tokens("猫", "は", "いる"))] == ["猫", "は", "いる"]
    assert [word.label for word in find_words(tokens("고양", "이", " 있다"))] == ["고양이", "있다"]
    assert [word.label for word in find_words(tokens("हिन्", "दी"))] == ["हिन्दी"]
    assert [word.label for word in find_words(tokens("ไทย", "ไทย"))] == ["ไทย", "ไทย"]
    assert [word.label for word in find_words(tokens("don", "'", "t", "."))] == ["don", "'", "t", "."]


def labels(*parts: tuple[int, int, str]) -> list[tuple[str, tuple[int, ...]]]:
    return [(word.label, word.positions) for word in find_words(byte_tokens(*parts))]


def test_bytes_of_one_character_are_one_word():
    korean = [(0, 1, "한")] * 3 + [(1, 2, "국")] * 3
    assert labels(*korean) == [("한국", (0, 1, 2, 3, 4, 5))]
    assert labels(*korean, (3, 4, "x")) == [("한국", (0, 1, 2, 3, 4, 5)), ("x", (6,))]
    assert labels(*[(0, 1, "日")] * 3, *[(1, 2, "本")] * 3) == [("日", (0, 1, 2)), ("本", (3, 4, 5))]
    assert labels(*[(0, 1, "😀")] * 4, *[(1, 2, "😀")] * 4) == [("😀", (0, 1, 2, 3)), ("😀", (4, 5, 6, 7))]
    assert labels((0, 1, "é"), (0, 1, "é"), (1, 4, "tat")) == [("état", (0, 1, 2))]


def test_a_token_that_ends_in_one_character_and_begins_in_another():
    assert labels((0, 1, "한"), (0, 2, "한국"), (1, 2, "국")) == [("한국", (0, 1, 2))]
    assert labels((0, 3, "a 한"), (2, 3, "한"), (2, 4, "한국"), (3, 4, "국")) == [("a 한국", (0, 1, 2, 3))]


def test_bytes_become_a_word_when_their_character_is_complete():
    streamed = [(0, 1, ""), (0, 1, ""), (0, 1, "한"), (1, 2, ""), (1, 2, "국")]
    last_labels = [labels(*streamed[:count])[-1][0] for count in range(1, 6)]
    assert last_labels == ["…", "…", "한", "…", "국"]
    # A token that ends a word and begins a character has only a part of its text at first.
    partly = [(0, 1, "a"), (1, 3, "b"), (2, 3, ""), (2, 3, "한")]
    assert [labels(*partly[:count])[-1][0] for count in range(1, 5)] == ["a", "ab", "ab", "ab한"]
    token = Token(5, "Å", 4, 5, False, "")
    assert token.label == "…"


def test_white_space_is_shown_as_a_sign_and_an_empty_token_as_its_piece():
    white = Token(1, "Ċ", 3, 4, False, "\n"), Token(2, "Ġ", 4, 5, False, " "), Token(3, "▁", 5, 5, False, "")
    assert [word.label for word in find_words(white)] == ["␊", "␣", "▁"]
    assert Token(0, "</s>", 5, 5, True, "").label == "</s>"


@given(st.text(st.sampled_from("aé한日😀 \n"), max_size=12), st.data())
def test_words_have_every_position_once_and_every_character(text, data):
    """With byte tokens of any length. A token's span covers every character of which the token has a byte."""
    index_of_byte = [index for index, character in enumerate(text) for _ in character.encode()]
    parts, begin = [], 0
    while begin < len(index_of_byte):
        end = min(len(index_of_byte), begin + data.draw(st.integers(1, 4)))
        first, last = index_of_byte[begin], index_of_byte[end - 1] + 1
        parts.append((first, last, text[first:last]))
        begin = end
    words = find_words(byte_tokens(*parts))
    assert [position for word in words for position in word.positions] == list(range(len(parts)))
    visible = "".join(word.label for word in words).translate({ord(c): None for c in " \n␣␊"})
    assert visible == text.translate({ord(c): None for c in " \n"})
