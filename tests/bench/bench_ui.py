"""The live page in Chromium: from a keystroke to the first drawn row, frames a second, and the bytes of the page.

Keystrokes are measured with the bundled model. Frames are counted while a model with random weights writes a text of
1,000 tokens about a source of as many, with all its heads. Then the page gets the same messages again, as a stream of
120 tokens a second, and no model computes beside it: this is what the page itself can do.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers as tf
from playwright.sync_api import CDPSession, Page, expect, sync_playwright
from rich.console import Console
from rich.table import Table
from sidelight.server.models.loader import LoadedModel, bundled_model, load

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from harness import serving
from model_zoo import Family, build_model, seq2seq

TOKENS = 1000
REPLAY = 120  # tokens a second: two for each frame
WAIT = 240_000

# Keeps the messages of the newest stream.
_RECORD = """
  window.WebSocket = class extends WebSocket {
    constructor(url) {
      super(url);
      window.messages_ = [];
      this.addEventListener("message", ({ data }) => window.messages_.push(data));
    }
  };
"""
# Gives the messages that were kept to the next stream.
_REPLAY = """(rate) => {
  const messages = window.messages_;
  window.WebSocket = class {
    static OPEN = 1;
    readyState = 1;
    constructor() { setTimeout(() => this.onopen()); }
    send() {
      let sent = 0;
      const begin = performance.now();
      const go = () => {
        const due = Math.min(messages.length, 1 + (performance.now() - begin) * rate / 1000);
        while (sent + 1 <= due) this.onmessage({ data: messages[sent++] });
        if (sent < messages.length) setTimeout(go, 4);
      };
      go();
    }
    close() {}
  };
}"""
# The frames that the browser draws, and how many of them show more steps than the frame before.
_WATCH = """() => {
  const steps = document.querySelector(".scrubber output");
  window.frames_ = [];
  window.new_ = 0;
  let last = "";
  const tick = (time) => {
    window.frames_.push(time);
    if (steps.textContent !== last) window.new_++;
    last = steps.textContent;
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}"""
# When the heatmap has its first line.
_TYPE = """(text) => new Promise((done) => {
  const box = document.getElementById("source"), canvas = document.querySelector(".map-room");
  let isOver = false; // the text before
  const words = new MutationObserver((changes) => (isOver ||= changes.some(({ removedNodes }) => removedNodes.length)));
  words.observe(document.querySelector(".target .words"), { childList: true });
  const watcher = new MutationObserver(() => {
    if (!isOver || !/: [1-9]/.test(canvas.getAttribute("aria-label"))) return;
    watcher.disconnect();
    words.disconnect();
    done(performance.now() - begin);
  });
  canvas.setAttribute("aria-label", "");
  watcher.observe(canvas, { attributes: true });
  box.value = text;
  const begin = performance.now();
  box.dispatchEvent(new Event("input", { bubbles: true }));
})"""


def long_model() -> tuple[Any, Any]:
    """A model that writes until its positions are full: 3 layers of 4 heads, as the bundled model has."""
    tokenizer = tf.AutoTokenizer.from_pretrained(bundled_model())
    model, _ = seq2seq(
        tf.MarianConfig,
        tf.MarianMTModel,
        tokenizer,
        vocab_size=6001,
        decoder_start_token_id=6000,
        scale_embedding=True,
        decoder_attention_heads=4,
        max_position_embeddings=TOKENS + 1,
    )
    model.generation_config.bad_words_ids = [[6000], [0]]
    return model, None


@contextmanager
def serving_page(*models: LoadedModel) -> Iterator[str]:
    """Runs a server and `sidelight ui` before it. Gives the address of the page."""
    command = str(Path(sys.executable).with_name("sidelight"))
    with serving(*models) as address:
        arguments = [command, "ui", "--address", address, "--listen", "127.0.0.1:0"]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield process.stdout.readline().split()[-1]
            finally:
                process.terminate()


def measure_bytes(page: Page, url: str) -> dict[str, int]:
    """Returns the size of each file that the page loads."""
    sizes: dict[str, int] = {}
    page.on("response", lambda answer: sizes.update({answer.url.removeprefix(url): len(answer.body())}))
    page.goto(url)
    expect(page.locator("#status")).to_have_text("Ready", timeout=WAIT)
    return sizes


def measure_keystrokes(page: Page, rounds: int) -> list[float]:
    """Returns milliseconds from a keystroke to the first row that is drawn, the page's pause for more included."""
    times: list[float] = []
    for number in range(rounds + 1):
        times.append(page.evaluate(_TYPE, f"Where did you buy that old book, {number}?"))
        expect(page.locator("#status")).to_have_text("Ready", timeout=WAIT)
    return times[1:]


@dataclass(frozen=True)
class Stream:
    """What the browser did while a text was written."""

    gaps: list[float]  # milliseconds between frames
    new: int  # frames that show new steps
    tokens: int
    seconds: float
    work: dict[str, float]  # seconds of the page's main thread: all tasks, and scripts, styles and layouts among them

    def row(self) -> list[str]:
        """The figures of the table."""
        frames = max(1, len(self.gaps))
        late = sorted(self.gaps)[int(0.99 * (frames - 1))]
        work = [1000 * self.work[name] / max(1, self.new) for name in _WORK]
        rates = [count / self.seconds for count in (self.tokens, frames, self.new)]
        figures = [*rates, statistics.median(self.gaps), late, *work]
        return [str(self.tokens), *(f"{figure:.1f}" for figure in figures)]


_WORK = ("TaskDuration", "ScriptDuration", "RecalcStyleDuration", "LayoutDuration")
_WRITE = """(text) => new Promise((done) => {
  const box = document.getElementById("source"), status = document.getElementById("status");
  box.value = text;
  box.dispatchEvent(new Event("input", { bubbles: true }));
  let begin = 0;
  const look = () => {
    const isWriting = status.textContent.startsWith("Writing") && document.querySelector(".target .word");
    if (!begin && isWriting) { begin = performance.now(); window.frames_.length = window.new_ = 0; }
    if (begin && status.textContent === "Ready") return done((performance.now() - begin) / 1000);
    setTimeout(look, 5);
  };
  setTimeout(look, 300);
})"""


def open_view(page: Page, url: str, view: str) -> None:
    """Opens the page anew, to have its frames and messages kept."""
    page.goto("about:blank")
    page.goto(f"{url}#view={view}")
    expect(page.locator("#status")).to_have_text("Ready", timeout=WAIT)
    page.evaluate(_WATCH)


def measure_frames(page: Page) -> Stream:
    """Has a text of 1,000 tokens written, and counts the frames meanwhile."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # what the thread computes, not what it waits
    before = _read_work(session)
    seconds = page.evaluate(_WRITE, " ".join(["dog"] * (TOKENS - 1)))
    work = {name: after - before[name] for name, after in _read_work(session).items()}
    times: list[float] = page.evaluate("window.frames_")
    new: int = page.evaluate("window.new_")
    session.detach()
    count = int(page.locator(".scrubber output").inner_text().split("/")[1])
    return Stream([after - before for before, after in itertools.pairwise(times)], new, count, seconds, work)


def _read_work(session: CDPSession) -> dict[str, float]:
    metrics = session.send("Performance.getMetrics")["metrics"]
    return {metric["name"]: metric["value"] for metric in metrics if metric["name"] in _WORK}


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="keystrokes")
    args = parser.parse_args()
    console = Console(width=140)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        console.print("bench_ui: skipped, there is no Chromium on this machine")
        return 0
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with serving_page(load()) as url:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            sizes = measure_bytes(page, url)
            times = measure_keystrokes(page, args.rounds)
        table = Table("keystroke to first drawn row", "ms")
        table.add_row("median", f"{statistics.median(times):.0f}")
        table.add_row("fastest, slowest", f"{min(times):.0f}, {max(times):.0f}")
        console.print(table)
        code = {name: size for name, size in sizes.items() if name != "models"}
        console.print(f"the page: {len(code)} files, {sum(code.values()):,} bytes; no other host is asked\n")
        path = build_model("long", Path(folder), Family(long_model, seed=27))
        heads = ("view", "stream", "tokens", "tokens/s", "frames/s", "new/s", "median, ms", "99% within")
        table = Table(*heads, "ms a new frame", "scripts", "styles", "layout")
        with serving_page(load(str(path))) as url:
            page.add_init_script(_RECORD)
            for view in ("map", "curves"):
                open_view(page, url, view)
                table.add_row(view, "model", *measure_frames(page).row())
                page.evaluate(_REPLAY, REPLAY)
                table.add_row(view, "replayed", *measure_frames(page).row())
        console.print(table)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
