"""The page in a real browser: its pickers, pictures and keys."""

from __future__ import annotations

import dataclasses
import html
import re

import numpy as np
import pytest
from sidelight.client import AttentionLayout, Attribution, Capture, Client, Link, Started, Token, Usage
from sidelight.client.offset_units import Span
from sidelight.client.results import WordAlignment

TEXTS = ["one two three", "four <img src=x onerror=alert(1)> five"]


@pytest.fixture
def results(fake) -> list[Attribution]:
    capture = Capture(kinds=("cross", "decoder_self", "encoder_self"))
    with Client(fake.address) as client:
        return [client.attribute(text, capture=capture, scores=["perplexity"]).result() for text in TEXTS]


def strengths(document: str) -> np.ndarray:
    """Returns the strength of each cell's colour, row by row."""
    return np.array([float(match) for match in re.findall(r'class="cell" style="--v: ?([0-9.]+);"', document)])


def check(document: str, expected: np.ndarray) -> None:
    """Checks that the cells show `expected`, `[columns, rows]`, divided by its maximum. NaN has no cell."""
    flat = expected.T.ravel()
    flat = flat[~np.isnan(flat)]
    np.testing.assert_allclose(strengths(document), flat / flat.max(), atol=2e-3)


def test_a_picture_picks_its_head(results, open_page):
    document = open_page(results, "document.querySelectorAll('#all button')[5].click()")
    check(document, results[0].cross[:, :, 1, 2])
    assert document.count("<canvas") == 6


def test_pickers_leave_the_mean_over_the_rest(results, open_page):
    script = "const box = document.getElementById('pick-head'); box.value = '1'; box.onchange();"
    check(open_page(results, script), results[0].cross[:, :, :, 1].mean(2))


@pytest.mark.parametrize("kind", ["decoder_self", "encoder_self"])
def test_kinds(results, open_page, kind):
    button = {"decoder_self": 1, "encoder_self": 2}[kind]
    document = open_page(results, f"document.querySelectorAll('.kinds button')[{button}].click()")
    numbers = results[0].decoder_self if kind == "decoder_self" else results[0].encoder_self.swapaxes(0, 1)
    check(document, numbers.mean((2, 3)))


def test_arrow_keys_turn_pages_and_markup_stays_text(results, open_page):
    key = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));"
    document = open_page(results, key * 3)  # two more than there are pages
    check(document, results[1].cross.mean((2, 3)))
    assert "<img" not in document
    assert "&lt;img" in document


def test_hovering_shows_words_and_numbers(results, open_page):
    script = """
    const cell = document.querySelectorAll('td.cell')[1];
    cell.parentElement.dispatchEvent(new MouseEvent('mouseenter'));
    cell.dispatchEvent(new MouseEvent('mousemove', {clientX: 5, clientY: 5}));
    """
    document = open_page(results, script)
    assert f"<bdi>eno</bdi> ← <bdi>two</bdi>  {results[0].cross[1, 0].mean():.4f}" in document
    assert document.count('class="word here"') == 1


def test_single_heads_reduced_layers_and_scores_without_end(results, open_page):
    first = results[0]
    started = first.started
    pairs = AttentionLayout("cross", ("pair",), (), 0, ((0, 1), (1, 2)))
    single_heads = dataclasses.replace(
        first,
        started=dataclasses.replace(started, layouts={"cross": pairs}),
        cross=np.stack([first.cross[:, :, 0, 1], first.cross[:, :, 1, 2]], 2),
        decoder_self=None,
        encoder_self=None,
        scores={"perplexity": np.array([np.inf, np.nan, 1, 2], np.float32)},
    )
    document = open_page([single_heads], "document.querySelectorAll('#all button')[1].click()")
    check(document, first.cross[:, :, 1, 2])
    assert document.count(">–</td>") == 2
    flat = dataclasses.replace(
        single_heads,
        started=dataclasses.replace(started, layouts={"cross": AttentionLayout("cross", (), (0, 1), 3, ())}),
        cross=first.cross.mean((2, 3)),
    )
    document = open_page([flat])
    check(document, flat.cross)
    assert "<canvas" not in document


def test_nothing_captured_is_said(fake, open_page):
    with Client(fake.address) as client:
        result = client.attribute("one two", capture=Capture(none=True)).result()
    assert "Nothing was captured." in open_page([result])


def attribution(source: list[Token], text: str) -> Attribution:
    """Makes an attribution of one step, whose attention grows from token to token of the source."""
    shares = np.arange(1, len(source) + 1, dtype=np.float32)[:, None]
    layout = AttentionLayout("cross", (), (0,), 1, ())
    started = Started("r", "m", text, tuple(source), (), {"cross": layout}, (), "predicting", True)
    step = Token(9, "▁x", 0, 1, False, "x")
    usage = Usage(len(source), 1, 0, 0.0, 0.0, 0.0, None)
    return Attribution(started, (step,), "x", "end_token", usage, cross=shares / shares.sum())


def tokens_of(text: str, spans: list[tuple[int, int]]) -> list[Token]:
    return [Token(n, f"<0x{n:02X}>", begin, end, False, text[begin:end]) for n, (begin, end) in enumerate(spans)]


def text_of_element(document: str, name: str) -> str:
    """Returns the text of the element with this id, without markup."""
    match = re.search(rf'id="{name}"[^>]*>(.*?)</bdi></p>', document, re.DOTALL)
    return html.unescape(re.sub("<[^>]*>", "", match[1]))


def test_no_character_is_cut_in_half(open_page):
    texts, expected = ["short"], ["short"]
    for character in ("😀", "👨‍👩‍👧‍👦", "🇩🇪", "e\u0301", "각", "न्दी"):
        for before in (0, 57, 58, 59, 60):
            texts.append("a" * before + character * 80)
            expected.append("a" * before + character * (60 - before) + "…")
    document = open_page([attribution(tokens_of("ab", [(0, 1)]), text) for text in texts])
    options = re.findall(r"<option value=\"\d+\">(.*?)</option>", document)
    assert options == [f"{number}. \u2068{text}\u2069" for number, text in enumerate(expected, 1)]


def test_bytes_of_one_character_are_one_word(open_page):
    text = "한국 x"
    source = tokens_of(text, [(0, 1), (0, 1), (0, 1), (1, 2), (1, 2), (3, 4)])
    hover = "document.querySelectorAll('thead th')[2].onmouseenter()"
    result = attribution(source, text)
    document = open_page([result], hover)
    assert text_of_element(document, "columns").split() == ["한국", "x"]
    assert document.count('class="word"') + document.count('class="word here"') == 4  # with the words of the target
    labels = re.findall(r"<div><bdi>(.*?)</bdi></div>", document)
    assert labels == ["한 1/3", "한 2/3", "한 3/3", "국 1/2", "국 2/2", "x"]
    check(document, result.cross[:, :])
    # A word's background shows the sum of its tokens' attention.
    row = open_page([result], "document.querySelector('tbody tr').onmouseenter()")
    tints = [
        float(tint) for tint in re.findall(r'class="word" style="background: rgba\(var\(--hot\), ([0-9.]+)\)', row)
    ]
    np.testing.assert_allclose(tints, np.minimum(1, np.array([6, 9, 6]) / 6), atol=1e-2)


def test_tokens_that_share_a_character_with_both_neighbours(open_page):
    source = tokens_of("한국x", [(0, 1), (0, 2), (1, 2), (2, 3)])
    document = open_page([attribution(source, "한국x")])
    assert text_of_element(document, "columns").split() == ["한국x"]
    labels = re.findall(r"<div><bdi>(.*?)</bdi></div>", document)
    assert labels == ["한국 1/3", "한국 2/3", "한국 3/3", "x"]


def test_a_prompt_and_its_target_are_two_texts(open_page):
    prompt = tokens_of("Once", [(0, 4)])
    result = attribution(prompt, "Once")
    layout = AttentionLayout("decoder_self", (), (0,), 1, ())
    started = dataclasses.replace(result.started, layouts={"decoder_self": layout}, is_encoder_decoder=False)
    steps = tuple(tokens_of("On a", [(0, 2), (3, 4)]))
    shares = np.array([[0.5, 0.25], [np.nan, 0.75], [np.nan, np.nan]], np.float32)
    result = dataclasses.replace(result, started=started, steps=steps, cross=None, decoder_self=shares)
    document = open_page([result])
    assert text_of_element(document, "columns").split() == ["Once", "On", "a"]
    assert text_of_element(document, "rows").split() == ["On", "a"]


def test_marks_of_direction_and_controls_are_shown_and_texts_stand_apart(open_page):
    text = "\u202eabc\u2066 \x1b\u2069 שלום"
    source = tokens_of(text, [(0, 4), (4, 5), (6, 8), (9, 13)])
    result = attribution(source, text)
    result = dataclasses.replace(result, started=dataclasses.replace(result.started, model="m\u202e<b>"))
    script = "document.querySelector('td.cell').dispatchEvent(new MouseEvent('mousemove', {clientX: 5, clientY: 5}));"
    document = open_page([result, result], script)
    body = document[: document.index('<script type="application/json"')]
    assert not set(body) & set("\u202e\u2066\x1b")
    assert body.count("\u2068") == body.count("\u2069") == 2  # they surround the texts in the list of sentences
    assert text_of_element(document, "columns").split() == ["\ufffdabc\ufffd", "␛\ufffd", "שלום"]
    assert "<bdi>m\ufffd&lt;b&gt;</bdi>" in body
    for label in ("\ufffdabc", "שלום"):
        assert f"<bdi>{label}</bdi>" in body
    assert '<bdi id="columns" dir="auto">' in body
    assert "<bdi>x</bdi> ← <bdi>\ufffdabc</bdi>" in body


def test_a_linked_word_brings_out_its_lines_of_the_heatmap(results, open_page):
    words = tuple(Span(step.begin, step.end, step.label) for step in results[0].steps if not step.special)
    source = tuple(Span(token.begin, token.end, token.label) for token in results[0].source if not token.special)
    alignment = WordAlignment(source, words, (Link(0, 1, 0.5),), "0-1", None)
    script = "document.querySelector('[data-target=\"1\"]').dispatchEvent(new Event('mouseenter'))"
    document = open_page([dataclasses.replace(results[0], alignment=alignment)], script)
    lines = re.findall(r'<tr(?: class="(\w*)")?><th[^>]*><bdi>', document.split("<tbody>")[1].split("</tbody>")[0])
    assert [number for number, name in enumerate(lines) if name == "linked"] == [1]
    assert document.count("<path ") == 1
    assert 'id="links" hidden' in open_page(results)
