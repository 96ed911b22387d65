"""The page, used in a real browser: what its pickers, pictures and keys do."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sidelight.client import Attribution, Capture, Client, Layout, save

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

TEXTS = ["one two three", "four <img src=x onerror=alert(1)> five"]


@pytest.fixture
def results(fake) -> list[Attribution]:
    capture = Capture(kinds=("cross", "decoder_self", "encoder_self"))
    with Client(fake.address) as client:
        return [client.attribute(text, capture=capture, scores=["perplexity"]).result() for text in TEXTS]


def opened(results: list[Attribution], folder: Path, script: str = "") -> str:
    """The page's document after a script has used it. Fails on any message in the browser's console."""
    path = folder / "out.html"
    save(results, path)
    path.write_text(path.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    command = [CHROMIUM, *options, "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    return done.stdout


def strengths(document: str) -> np.ndarray:
    """How hot each cell is, row by row."""
    return np.array([float(found) for found in re.findall(r'class="cell" style="--v: ?([0-9.]+);"', document)])


def check(document: str, expected: np.ndarray) -> None:
    """Cells are `expected` `[columns, rows]`, scaled by the greatest; NaN has no cell."""
    flat = expected.T.ravel()
    flat = flat[~np.isnan(flat)]
    np.testing.assert_allclose(strengths(document), flat / flat.max(), atol=2e-3)


def test_a_picture_picks_its_head(results, tmp_path):
    document = opened(results, tmp_path, "document.querySelectorAll('#all button')[5].click()")
    check(document, results[0].cross[:, :, 1, 2])
    assert document.count("<canvas") == 6


def test_pickers_leave_the_mean_over_the_rest(results, tmp_path):
    script = "const box = document.getElementById('pick-head'); box.value = '1'; box.onchange();"
    check(opened(results, tmp_path, script), results[0].cross[:, :, :, 1].mean(2))


@pytest.mark.parametrize("kind", ["decoder_self", "encoder_self"])
def test_kinds(results, tmp_path, kind):
    place = {"decoder_self": 1, "encoder_self": 2}[kind]
    document = opened(results, tmp_path, f"document.querySelectorAll('.kinds button')[{place}].click()")
    numbers = results[0].decoder_self if kind == "decoder_self" else results[0].encoder_self.swapaxes(0, 1)
    check(document, numbers.mean((2, 3)))


def test_arrow_keys_turn_pages_and_markup_stays_text(results, tmp_path):
    key = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));"
    document = opened(results, tmp_path, key * 3)  # twice beyond the last one
    check(document, results[1].cross.mean((2, 3)))
    assert "<img" not in document
    assert "&lt;img" in document


def test_hovering_shows_words_and_numbers(results, tmp_path):
    script = """
    const cell = document.querySelectorAll('td.cell')[1];
    cell.parentElement.dispatchEvent(new MouseEvent('mouseenter'));
    cell.dispatchEvent(new MouseEvent('mousemove', {clientX: 5, clientY: 5}));
    """
    document = opened(results, tmp_path, script)
    assert f"eno ← two  {results[0].cross[1, 0].mean():.4f}" in document
    assert document.count('class="word here"') == 1


def test_single_heads_reduced_layers_and_scores_without_end(results, tmp_path):
    first = results[0]
    started = first.started
    pairs = Layout("cross", ("pair",), (), 0, ((0, 1), (1, 2)))
    few = dataclasses.replace(
        first,
        started=dataclasses.replace(started, layouts={"cross": pairs}),
        cross=np.stack([first.cross[:, :, 0, 1], first.cross[:, :, 1, 2]], 2),
        decoder_self=None,
        encoder_self=None,
        scores={"perplexity": np.array([np.inf, np.nan, 1, 2], np.float32)},
    )
    document = opened([few], tmp_path, "document.querySelectorAll('#all button')[1].click()")
    check(document, first.cross[:, :, 1, 2])
    assert document.count(">–</td>") == 2
    flat = dataclasses.replace(
        few,
        started=dataclasses.replace(started, layouts={"cross": Layout("cross", (), (0, 1), 3, ())}),
        cross=first.cross.mean((2, 3)),
    )
    document = opened([flat], tmp_path)
    check(document, flat.cross)
    assert "<canvas" not in document


def test_nothing_captured_is_said(fake, tmp_path):
    with Client(fake.address) as client:
        result = client.attribute("one two", capture=Capture(none=True)).result()
    assert "Nothing was captured." in opened([result], tmp_path)
