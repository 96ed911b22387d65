"""The live page for all: axe-core finds nothing, narrow screens, and scripts from right to left and without spaces."""

from __future__ import annotations

import importlib.resources
from urllib.parse import urlencode

import pytest

pytestmark = pytest.mark.slow

WAIT = 60_000
SENTENCE = "Where did you buy that old book?"
STATES = {
    "heatmap": {"text": SENTENCE},
    "curves": {"text": SENTENCE, "view": "curves"},
    "compare": {"text": SENTENCE, "mode": "compare", "target": "Wo ist das Buch?"},
    "markup": {"text": "My <b>sister</b> is here.", "mode": "markup"},
    "live": {"text": "Where did you buy that ", "mode": "live"},
    "error": {"text": "dog " * 300},
}


def open_state(visit, url: str, values: dict[str, str], **options):
    from playwright.sync_api import expect

    page = visit.open(f"{url}#{urlencode(values)}", **options)
    is_live = values.get("mode") == "live"
    expect(page.locator("#status")).to_have_text("Writing …" if is_live else "Ready", timeout=WAIT)
    if is_live:
        expect(page.locator(".draft bdi")).not_to_be_empty(timeout=WAIT)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", STATES)
def test_axe_finds_nothing(visit, page_url, name, scheme):
    page = open_state(visit, page_url, STATES[name], color_scheme=scheme)
    axe = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    page.evaluate(axe)
    result = page.evaluate("axe.run()")
    problems = [(problem["id"], [node["html"][:200] for node in problem["nodes"]]) for problem in result["violations"]]
    assert problems == []
    assert len(result["passes"]) > 15


@pytest.mark.parametrize("name", STATES)
def test_no_part_is_wider_than_a_narrow_screen(visit, page_url, name):
    page = open_state(visit, page_url, STATES[name], width=320, height=640)
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_a_source_from_right_to_left_has_its_columns_so(visit, page_url):
    page = open_state(visit, page_url, {"text": "أين اشتريت هذا الكتاب القديم؟"})
    assert page.locator(".look .words").evaluate("node => getComputedStyle(node).direction") == "rtl"
    lefts = page.locator(".look .words .word").evaluate_all("nodes => nodes.map(n => n.getBoundingClientRect().left)")
    assert lefts == sorted(lefts, reverse=True)
    box = page.locator(".map").bounding_box()
    page.mouse.move(box["x"] + 128 + 20, box["y"] + 86 + 10)
    assert "</s>" in page.locator("#tip").inner_text()  # the last column is on the left


def test_characters_without_spaces_are_words(visit, page_url):
    page = open_state(visit, page_url, {"text": "その古い本はどこで買ったのですか。"})
    assert "".join(page.locator(".look .words .word").all_inner_texts()) == "その古い本はどこで買ったのですか。"


def test_reduced_to_the_keyboard_every_control_can_be_reached(visit, page_url):
    page = open_state(visit, page_url, {"text": SENTENCE})
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.classList[0] || ''"))
    wanted = {"tab-translate", "theme", "source", "run", "word", "map", "head", "model", "pick-kind", "pick-reduction"}
    assert wanted <= reached
