"""The theme of the live page: from the first picture on, as the system has it or as the user has chosen."""

from __future__ import annotations

import pytest
from harness import wait_until

pytestmark = pytest.mark.slow

BACKGROUND = "getComputedStyle(document.body).backgroundColor"
DARK, LIGHT = "rgb(21, 20, 18)", "rgb(247, 245, 241)"
# The theme at the time when the document gets its body: before anything of it is drawn.
WATCH_BODY = """
new MutationObserver((_, observer) => {
  if (!document.body) return;
  window.themeAtBody = document.documentElement.dataset.theme;
  observer.disconnect();
}).observe(document, { childList: true, subtree: true });
"""
REFUSE_STORAGE = """
Object.defineProperty(window, "localStorage", { get() { throw new DOMException("refused", "SecurityError"); } });
"""


def expect(locator):
    from playwright.sync_api import expect

    return expect(locator)


def test_the_theme_can_be_switched_and_stays(visit, page_url):
    page = visit.open(page_url, color_scheme="dark")
    assert page.evaluate(BACKGROUND) == DARK
    page.locator("#theme").click()
    assert page.evaluate(BACKGROUND) == LIGHT
    page.add_init_script(WATCH_BODY)
    page.reload()
    expect(page.locator("#theme")).to_have_text("Theme: light")
    assert page.evaluate("themeAtBody") == "light"
    assert page.evaluate(BACKGROUND) == LIGHT
    page.emulate_media(color_scheme="light")
    page.locator("#theme").click()
    assert page.evaluate(BACKGROUND) == DARK


def test_the_theme_follows_the_system(visit, page_url):
    page = visit.open(page_url, color_scheme="light")
    expect(page.locator(".map-room")).to_be_visible(timeout=60_000)
    corner = "room => [...room.firstChild.getContext('2d').getImageData(2, 2, 1, 1).data].slice(0, 3)"
    for scheme, background, card in (("dark", DARK, [30, 28, 26]), ("light", LIGHT, [255, 255, 255])):
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("body")).to_have_css("background-color", background)
        wait_until(lambda card=card: page.locator(".map-room").evaluate(corner) == card)
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == scheme


def test_without_storage_the_theme_can_be_switched(visit, page_url):
    page = visit.open("about:blank", color_scheme="dark")
    page.add_init_script(REFUSE_STORAGE + WATCH_BODY)
    page.goto(page_url)
    assert page.evaluate("themeAtBody") == "dark"
    expect(page.locator("#theme")).to_have_text("Theme: auto")
    page.locator("#theme").click()
    expect(page.locator("#theme")).to_have_text("Theme: light")
    assert page.evaluate(BACKGROUND) == LIGHT
