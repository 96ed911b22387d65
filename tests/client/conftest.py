"""A fake server and a browser for the tests of the client."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from fake_server import FakeServer
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sidelight.client import Attribution, save
from sidelight.v1.attribution_service_pb2_grpc import add_AttributionServiceServicer_to_server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A fake server for one test, on a real socket. It is healthy, and its service "asleep" is not."""
    servicer, health_servicer = FakeServer(), health.HealthServicer()
    health_servicer.set("asleep", health_pb2.HealthCheckResponse.NOT_SERVING)
    with ThreadPoolExecutor(16) as pool:
        server = grpc.server(pool)
        add_AttributionServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        servicer.address = f"127.0.0.1:{port}"
        server.start()
        try:
            yield servicer
        finally:
            servicer.cancelled.set()
            server.stop(0).wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Chromium, for the tests of one file: while it runs, this thread can run no other event loop."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path) -> Iterator[Callable[..., str]]:
    """Opens the page that `save` makes of results. Returns the page's document after a script has run in it.

    Fails on any message in the browser's console.
    """
    messages: list[str] = []
    context = browser.new_context()

    def open_(results: list[Attribution], script: str = "") -> str:
        path = tmp_path / "out.html"
        save(results, path)
        path.write_text(path.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>"), "utf-8")
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(path.as_uri())
        return page.content()

    yield open_
    context.close()
    assert messages == []
