"""Makes the README's pictures with Sidelight's own commands: `make pictures`.

heatmap.svg is what `sidelight attribute` prints; page.png is what `--save out.html` looks like in Chromium; ui.png is
the page of `sidelight ui`, with a word under the pointer. Without Playwright, ui.png is left as it is.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from rich.console import Console
from rich.terminal_theme import MONOKAI
from sidelight.client import Capture, Client, save
from sidelight.client.cli.attribute import print_attribution
from sidelight.client.cli.demo import bundled_server

OUT = Path(__file__).parents[1] / "client" / "pictures"
SENTENCE = "Where did you buy that old book?"
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def main() -> int:
    OUT.mkdir(exist_ok=True)
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    with bundled_server() as (_, address), Client(address) as client, tempfile.TemporaryDirectory() as folder:
        print_attribution(client, SENTENCE, {"capture": Capture(layers=[2], over_heads="mean")}, console)
        title = f'sidelight attribute "{SENTENCE}" --layers 2 --reduce-heads mean'
        console.save_svg(str(OUT / "heatmap.svg"), title=title, theme=MONOKAI)
        capture = Capture(kinds=("cross", "decoder_self", "encoder_self"))
        result = client.attribute(SENTENCE, capture=capture, scores=["probability", "entropy"]).result()
        page = Path(folder) / "page.html"
        save(result, page)
        browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if browser is None:
            print("no Chromium here: page.png is left as it is", file=sys.stderr)
            return 1
        size = ["--window-size=980,680", f"--user-data-dir={folder}/profile"]
        command = [browser, *OPTIONS, *size, f"--screenshot={OUT / 'page.png'}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        _take_live_page(address, browser)
    return 0


def _take_live_page(address: str, browser: str) -> None:
    """Takes the picture of `sidelight ui` before a server."""
    try:
        from playwright.sync_api import expect, sync_playwright
    except ModuleNotFoundError:
        print("no Playwright here: ui.png is left as it is", file=sys.stderr)
        return
    command = [str(Path(sys.executable).with_name("sidelight")), "ui", "--address", address, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, sync_playwright() as playwright:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = chromium.new_page(viewport={"width": 1240, "height": 860}, device_scale_factor=1.5)
            page.goto(f"{url}#{urlencode({'text': SENTENCE})}")
            expect(page.locator("#status")).to_have_text("Ready", timeout=60_000)
            page.locator(".target .words .word", has_text="Buch").hover()
            page.screenshot(path=str(OUT / "ui.png"))
            chromium.close()
        finally:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main())
