"""Tokens are grouped by words, sentences and spans, and the units of a text that grows are those of the whole text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sidelight.server.text import Detokenizer, Token, TokenGrouper, cover, group_tokens
from tokenizer_zoo import TOKENIZERS, zoo_tokenizer

SENTENCE = 'My grandmother\'s friend (82) said: "No, thanks." Then she left... 3.5 km! 😀é 漢字かな สวัสดี\nשלום'


def make_token(begin: int, end: int, *, special: bool = False) -> Token:
    return Token(0, "", begin, end, special, "")


def grown_tokens(name: str, ids: list[int]) -> tuple[list[Token], list[str], str]:
    """The tokens of a text that grows, the text after each token, and the whole text: what a decoded request has."""
    tokenizer = zoo_tokenizer(name)
    detokenizer = Detokenizer(tokenizer)
    tokens, texts = [], []
    for id_ in ids:
        tokens.append(detokenizer.add(id_)[1])
        texts.append(detokenizer.text)
    if tokens:
        tokens[-1] = detokenizer.finish(tokens[-1])[1]
        texts[-1] = detokenizer.text
    return tokens, texts, detokenizer.text


def grown_units(tokens: list[Token], texts: list[str], grouping: str) -> list[range]:
    grouper = TokenGrouper(grouping)
    units: list[range] = []
    for index, (token, text) in enumerate(zip(tokens, texts, strict=True)):
        complete = grouper.add(token, text)
        assert all(unit.stop <= index for unit in complete)  # a unit comes before the step that completes it
        assert sum(map(len, units + complete)) <= grouper.num_decided <= index + 1
        units += complete
    return units + grouper.finish(texts[-1] if texts else "")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_units_of_a_text_that_grows_are_those_of_the_whole_text(name):
    tokenizer = zoo_tokenizer(name)
    sizes = tokenizer._tokenizer.vocab_size

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.text(st.sampled_from(SENTENCE), max_size=40) | st.lists(st.integers(0, sizes - 1), max_size=25))
    def check(source):
        ids = tokenizer.encode_source(source).ids if isinstance(source, str) else source
        tokens, texts, text = grown_tokens(name, ids)
        for grouping in ("word", "sentence"):
            units = grown_units(tokens, texts, grouping)
            assert units == group_tokens(tokens, text, grouping)
            assert [index for unit in units for index in unit] == list(range(len(tokens)))  # each token in one unit

    check()


@pytest.mark.parametrize("name", sorted(set(TOKENIZERS) - {"word-piece", "prophetnet", "blenderbot-small"}))
def test_the_tokens_of_a_word_are_a_unit(name):
    """Whatever the tokenizer: the words are the same, where no token is of two words."""
    tokenizer = zoo_tokenizer(name)
    text = "The lazy dog's friend, is 3.5 years old."
    tokenized = tokenizer.encode_source(text)
    units = group_tokens(tokenized.tokens, text, "word")
    covered = [text[slice(*cover(tokenized.tokens[unit.start : unit.stop]))] for unit in units]
    expected = ["The", "lazy", "dog's", "friend", ",", "is", "3.5", "years"]
    assert [word for word in covered if word][: len(expected)] == expected
    assert "".join(covered).endswith("years" + "old.")  # some vocabularies have the token "d."


def test_a_special_token_is_a_unit_of_its_own():
    tokens = [make_token(0, 0, special=True), make_token(0, 0, special=True), make_token(0, 2), make_token(2, 4)]
    tokens += [make_token(4, 4, special=True), make_token(4, 6)]
    assert group_tokens(tokens, "abcdef", "word") == [range(1), range(1, 2), range(2, 4), range(4, 5), range(5, 6)]


def test_a_token_that_covers_nothing_belongs_to_the_next():
    tokens = [make_token(0, 2), make_token(2, 2), make_token(2, 2), make_token(3, 5), make_token(5, 5)]
    assert group_tokens(tokens, "ab cd", "word") == [range(1), range(1, 4), range(4, 5)]
    before_special = [make_token(0, 2), make_token(2, 2), make_token(2, 2, special=True)]
    assert group_tokens(before_special, "ab", "word") == [range(1), range(1, 2), range(2, 3)]
    within = [make_token(0, 2), make_token(2, 2), make_token(2, 4)]
    assert group_tokens(within, "abcd", "word") == [range(3)]


def test_a_token_of_two_words_belongs_to_the_word_of_its_first_character():
    # "the cat" as one token, and "s" behind it
    tokens = [make_token(0, 7), make_token(7, 8), make_token(9, 11)]
    units = group_tokens(tokens, "the cats do", "word")
    assert units == [range(1), range(1, 2), range(2, 3)]
    assert [cover(tokens[unit.start : unit.stop]) for unit in units] == [(0, 7), (7, 8), (9, 11)]


def test_a_token_belongs_to_the_first_span_that_it_shares_a_character_with():
    tokens = [make_token(begin, begin + 2) for begin in range(0, 10, 2)]
    text = "abcdefghij"
    # The second span shares a character with the token at 4, which belongs to the first span.
    units = group_tokens(tokens, text, "span", [(1, 5), (5, 7), (9, 10)])
    assert units == [range(3), range(3, 4), range(4, 5)]
    assert group_tokens(tokens, text, "span") == [range(index, index + 1) for index in range(5)]


def test_a_unit_is_complete_as_soon_as_the_next_token_is_certain_to_begin_another():
    text = "ist gültig."
    tokens = [make_token(*span) for span in ((0, 3), (4, 5), (5, 8), (8, 10), (10, 11))]
    grouper = TokenGrouper("word")
    complete = [grouper.add(token, text[: token.end]) for token in tokens]
    assert complete == [[], [range(1)], [], [], []]  # behind the full stop, the word could go on
    assert grouper.finish(text) == [range(1, 4), range(4, 5)]


def test_bytes_of_one_character_are_one_unit():
    tokens, texts, _ = grown_tokens("bytes", zoo_tokenizer("bytes").encode_source("a 🤖 b").ids)
    units = grown_units(tokens, texts, "word")
    covered = [texts[-1][slice(*cover(tokens[unit.start : unit.stop]))] for unit in units]
    assert [word for word in covered if word] == ["a", "🤖", "b"]
    assert all(one.stop == other.start for one, other in itertools.pairwise(units))
