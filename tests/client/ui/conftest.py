"""The live page: the command in a process of its own, before a server on the bundled model, and Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from live_page import serving_page


@pytest.fixture(scope="session")
def page_url(bundled_server: str) -> Iterator[str]:
    """The address of the page of `sidelight ui`, which shows the bundled model."""
    with serving_page(bundled_server) as url:
        yield url


@pytest.fixture
def visit(browser):
    """Opens the page, with the state of its address. Fails on any error in the console of the browser."""
    problems: list[str] = []
    opened = []

    def open_page(url: str, *, width: int = 1280, height: int = 900, **options):
        options = {"color_scheme": "light", **options}
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        opened.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.goto(url)
        return page

    yield SimpleNamespace(open=open_page, problems=problems)
    for context in opened:
        context.close()
    assert problems == []
