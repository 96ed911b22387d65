import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sidelight.server.alignment import (
    LINK_METHODS,
    AlignmentHead,
    AlignmentPreset,
    Lexicon,
    Linker,
    LinkMethod,
    TargetLinks,
    WordedText,
)
from sidelight.server.alignment.preset import SPECIAL_TOKENS, SpecialTokens
from sidelight.server.text import Token

_TEXTS = st.lists(
    st.sampled_from(["ab", " ", ".", "don't", "x3.5", "  ", "ヴ", "語学", ",", "house", "Haus", "Häuser"]), max_size=12
).map("".join)
_LEXICON = Lexicon.of_pairs([("ab", "haus", 0.5), ("house", "haus", 0.9), ("house", "häuser", 0.4), (".", ".", 0.2)])
_WEIGHTS = st.sampled_from(
    [{"attention": 1.0}, {"attention": 0.7, "spelling": 5.0}, {"attention": 0.5, "lexicon": 0.7, "spelling": 0.0}]
)


def _cut(text: str, *, with_end: bool = False) -> list[Token]:
    """Tokens of two characters each."""
    ends = [(begin, min(len(text), begin + 2)) for begin in range(0, len(text), 2)]
    tokens = [Token(5, text[begin:end], begin, end, False, text[begin:end]) for begin, end in ends]
    return [*tokens, Token(1, "</s>", len(text), len(text), True, "")] if with_end else tokens


def _make_pair(source_text: str, target_text: str) -> tuple[WordedText, WordedText, np.ndarray]:
    source = WordedText.of_text(source_text, _cut(source_text, with_end=True))
    target = WordedText.of_text(target_text, _cut(target_text, with_end=True))
    rows = np.random.default_rng(len(source_text)).random((len(target.tokens), len(source.tokens)), np.float32)
    return source, target, rows / rows.sum(1, keepdims=True)


@pytest.mark.parametrize("special_tokens", SPECIAL_TOKENS)
@pytest.mark.parametrize("method", LINK_METHODS)
@settings(deadline=None, max_examples=40)
@given(source_text=_TEXTS, target_text=_TEXTS, weights=_WEIGHTS, num_together=st.sampled_from([1, 2, 100]))
def test_a_target_that_grows_gets_the_links_of_the_whole_target(
    special_tokens: SpecialTokens,
    method: LinkMethod,
    source_text: str,
    target_text: str,
    weights: dict,
    num_together: int,
) -> None:
    source, target, rows = _make_pair(source_text, target_text)
    preset = AlignmentPreset((AlignmentHead(0, 0),), "predicting", special_tokens, method, {}, weights, _LEXICON)
    linker = Linker(preset)
    growing, live = TargetLinks(linker, source), []
    for first in range(0, len(target.tokens), num_together):
        tokens = target.tokens[first : first + num_together]
        growing.add_rows(rows[first : first + num_together])
        is_last = first + num_together >= len(target.tokens)
        live += growing.add_tokens(tokens, target_text[: tokens[-1].end], is_last=is_last)
    whole, links = linker.link(rows, source, target), growing.decide()
    assert growing.words == target.words
    assert [link[:2] for link in links] == [link[:2] for link in whole]
    np.testing.assert_allclose([link.score for link in links], [link.score for link in whole], atol=1e-5)
    if method in ("argmax", "threshold"):
        assert live == links


def test_a_word_has_links_once_the_rows_of_its_tokens_are_there() -> None:
    source, target, rows = _make_pair("old house", "alte Häuser")
    preset = AlignmentPreset((AlignmentHead(0, 0),), method="argmax", weights={"attention": 1.0})
    growing, text = TargetLinks(Linker(preset), source), ""
    found: list[list[int]] = []
    for number, token in enumerate(target.tokens):
        text += token.text
        growing.add_rows(rows[max(0, number - 1) : number])  # of the token before
        links = growing.add_tokens([token], text, is_last=token.special)
        found.append([link.target for link in links])
    assert found == [[], [], [], [0], [], [], [1]]
    whole = Linker(preset).link(rows, source, target)
    assert [link[:2] for link in growing.decide()] == [link[:2] for link in whole]


@pytest.mark.parametrize("special_tokens", SPECIAL_TOKENS)
@pytest.mark.parametrize("method", LINK_METHODS)
@pytest.mark.parametrize("text", ["Ein", "Ein Hund. " * 20])
def test_words_before_the_first_row_have_no_links(special_tokens: SpecialTokens, method: LinkMethod, text: str) -> None:
    """The words of a prefix, behind which the target ends at once."""
    source = WordedText.of_text("A dog.", _cut("A dog.", with_end=True))
    preset = AlignmentPreset((AlignmentHead(0, 0),), "reading", special_tokens, method, {}, {"attention": 1.0})
    links = TargetLinks(Linker(preset), source)
    end = Token(1, "</s>", len(text), len(text), True, "")
    found = links.add_tokens([end], text, is_last=True)
    assert all(link.score == 0 for link in found)
    assert len(links.words) > 0
    links.decide()
