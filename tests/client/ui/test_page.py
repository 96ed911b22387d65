"""The live page in Chromium, on the real server: what people see and do."""

from __future__ import annotations

import itertools
import json
import re
from urllib.parse import urlencode

import pytest
from harness import wait_until
from sidelight.client import Capture, Client

SENTENCE = "Where did you buy that old book?"
TARGET = "Wo hast du dieses alte Buch gekauft?"
WAIT = 60_000


def expect(locator, **options):
    from playwright.sync_api import expect

    return expect(locator, **options)


def state(url: str, **values: str) -> str:
    return f"{url}#{urlencode(values)}"


def wait_done(page) -> None:
    expect(page.locator("#status")).to_have_text("Ready", timeout=WAIT)


def words(page) -> list[str]:
    """The words of the target."""
    return page.locator(".target .words .word").all_inner_texts()


def strengths(page) -> list[str]:
    """How strongly the words of the source are coloured."""
    script = "nodes => nodes.map(node => node.style.getPropertyValue('--share'))"
    return page.locator(".look .words .word").evaluate_all(script)


def test_a_text_is_translated_while_it_is_typed(visit, page_url):
    page = visit.open(page_url)
    expect(page.locator(".target .words")).to_have_text(TARGET, timeout=WAIT)
    page.locator("#source").fill("A small dog.")
    expect(page.locator(".target .words")).to_have_text("Ein kleiner Hund.", timeout=WAIT)
    expect(page.locator(".target .count")).to_contain_text("confidence", timeout=WAIT)
    expect(page.locator(".map-room")).to_have_attribute("aria-label", "Heatmap: 5 lines, 5 columns", timeout=WAIT)
    page.locator("#source").fill("")
    expect(page.locator(".target .words")).to_have_text("", timeout=WAIT)


def test_a_text_that_is_cut_says_so(visit, page_url):
    page = visit.open(state(page_url, text="dog " * 200))
    expect(page.locator(".target .count")).to_contain_text("201 → 128 tokens, cut at the limit", timeout=WAIT)


@pytest.mark.slow
def test_a_new_text_and_stop_cancel_the_stream(visit, page_url):
    page = visit.open(state(page_url, text="<b> " * 60))  # a text that the model writes much about
    page.locator("#source").fill("A small dog.")
    expect(page.locator(".target .words")).to_have_text("Ein kleiner Hund.", timeout=WAIT)
    page.locator("#source").fill("<i> " * 60)
    expect(page.locator("#status")).to_have_text("Writing …", timeout=WAIT)
    page.keyboard.press("Escape")
    wait_done(page)
    expect(page.locator("#stop")).to_be_disabled()


def test_the_heatmap_has_the_colours_of_the_numbers(visit, page_url, bundled_server):
    page = visit.open(state(page_url, text=SENTENCE, layer="2", head="1"))
    wait_done(page)
    with Client(bundled_server) as client:
        result = client.attribute(SENTENCE, capture=Capture(heads=[(2, 1)], over_heads="mean")).result()
    pixels = page.locator(".map-room").evaluate(
        """async room => {
          // What has arrived is drawn with the next frame.
          await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
          const tiles = [...room.querySelectorAll('.map-tile canvas')].map(canvas => canvas.getContext('2d'));
          const cells = [];
          for (let line = 0; line < 9; line++) for (let column = 0; column < 9; column++) {
            const x = 128 + column * 64 + 30, y = (line % 8) * 22 + 10;
            const {data} = tiles[Math.floor(line / 8)].getImageData(x, y, 1, 1);
            cells.push(data[0] + data[1] + data[2]);
          }
          return cells;
        }"""
    )
    numbers = result.cross.T.ravel()  # a line for each step
    darkest = sorted(range(len(pixels)), key=lambda i: pixels[i])[:9]
    strongest = sorted(range(len(pixels)), key=lambda i: -numbers[i])[:9]
    assert darkest[:5] == strongest[:5]
    assert pixels[strongest[0]] < 200 < 600 < max(pixels)


@pytest.mark.slow
def test_a_word_shows_where_it_looked_head_by_head(visit, page_url, bundled_server):
    page = visit.open(state(page_url, text=SENTENCE))
    wait_done(page)
    page.locator(".target .words .word", has_text="Buch").hover()
    expect(page.locator(".look-head")).to_contain_text("Buch looked at")
    expect(page.locator(".looks li").first).to_contain_text("book")
    shares = dict(zip(page.locator(".look .words .word").all_inner_texts(), strengths(page), strict=True))
    assert shares["book"] == "100%"
    assert int(shares["Where"][:-1]) < 30
    assert page.locator(".head").count() == 12
    last = page.locator(".head").nth(8)
    expect(last).to_have_attribute("aria-label", "layer 2, head 0, looks most at book")
    last.click()
    expect(last).to_have_attribute("aria-pressed", "true")
    page.locator(".target .words .word", has_text="Buch").hover()
    with Client(bundled_server) as client:
        result = client.attribute(SENTENCE, capture=Capture(heads=[(2, 0)])).result()
    book = [token.text for token in result.source].index("book")
    expect(page.locator(".looks .number").first).to_have_text(f"{100 * result.cross[book, 5, 0]:.0f}%")
    page.get_by_role("button", name="Unpin").click()
    expect(last).to_have_attribute("aria-pressed", "false")


@pytest.mark.slow
def test_the_end_of_a_long_text_stays_in_sight(visit, page_url):
    page = visit.open(state(page_url, text=SENTENCE), height=600)
    wait_done(page)
    scrolled = "node => [node.scrollTop, node.scrollHeight - node.clientHeight]"
    assert page.locator(".map").evaluate(scrolled) == [0, 0]  # it has room
    page.locator("#source").fill("dog " * 150)
    page.locator(".target .words .word").nth(100).wait_for(timeout=WAIT)
    wait_done(page)
    lines = int(page.locator(".scrubber output").inner_text().split("/")[1])
    at_end = "node => node.scrollTop > 100 && node.scrollTop > node.scrollHeight - node.clientHeight - 2"
    for box in (".target .words", ".map"):
        wait_until(lambda box=box: page.locator(box).evaluate(at_end))
    words, width = page.locator(".target .words"), page.viewport_size["width"]
    page.set_viewport_size({"width": width, "height": 500})  # which leaves less room for the words
    wait_until(lambda: words.evaluate("node => node.clientHeight") == 200)
    wait_until(lambda: words.evaluate(at_end))
    words.hover()
    page.mouse.wheel(0, -90)
    wait_until(lambda: not words.evaluate(at_end))
    place = words.evaluate("node => node.scrollTop")
    page.set_viewport_size({"width": width, "height": 600})
    wait_until(lambda: words.evaluate("node => node.clientHeight") == 240)
    page.set_viewport_size({"width": width, "height": 500})
    wait_until(lambda: words.evaluate("node => node.clientHeight") == 200)
    assert words.evaluate("node => node.scrollTop") == place  # the user is away from the end, and stays there
    words.evaluate("node => node.scrollTop = node.scrollHeight")
    page.mouse.move(0, 0)
    tiles = page.locator(".map-tile")
    assert 1 < tiles.count() < lines / 8 - 4  # those in sight
    page.locator(".map").evaluate("node => node.scrollTop = 0")
    expect(tiles.first).to_have_css("top", "86px")
    colors = "node => new Set(node.getContext('2d').getImageData(0, 0, node.width, 170).data).size"
    assert page.locator(".map-tile canvas").last.evaluate(colors) > 20


@pytest.mark.slow
def test_a_long_text_is_in_blocks_whose_lines_look_like_one(visit, page_url):
    page = visit.open(state(page_url, text="A small dog sleeps under the old table. " * 20))
    wait_done(page)
    read = "node => [...node.querySelectorAll('.word')].map(w => [w.textContent, w.getBoundingClientRect().top])"
    source = page.locator(".look .words")
    assert source.locator(".lines").count() > 3
    before = source.evaluate(read)
    assert source.inner_text().strip() == page.locator("#source").input_value().strip()  # no new ends of lines
    source.evaluate("node => node.replaceChildren(...[...node.children].flatMap(({childNodes}) => [...childNodes]))")
    after = source.evaluate(read)
    heads = [
        [word for (_, above), (word, top) in itertools.pairwise(places) if top > above] for places in (before, after)
    ]
    assert heads[0] == heads[1]  # lines begin with the same words
    assert len(heads[0]) > 15
    page.set_viewport_size({"width": 700, "height": 900})
    page.locator("#source").fill("A small dog.")
    expect(page.locator(".target .words")).to_have_text("Ein kleiner Hund.", timeout=WAIT)


@pytest.mark.slow
def test_a_source_word_shows_what_looked_at_it(visit, page_url):
    page = visit.open(state(page_url, text=SENTENCE))
    wait_done(page)
    page.locator(".look .words .word", has_text="book").hover()
    script = "nodes => nodes.map(node => [node.textContent, parseInt(node.style.getPropertyValue('--share'))])"
    shares = dict(page.locator(".target .words .word").evaluate_all(script))
    assert max(shares, key=lambda word: shares[word]) == "Buch"


@pytest.mark.slow
def test_words_and_steps_go_by_keyboard(visit, page_url):
    page = visit.open(state(page_url, text=SENTENCE))
    wait_done(page)
    page.locator(".target .words .word").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".look-head")).to_contain_text("hast looked at")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".look-head")).to_contain_text("gekauft looked at")
    page.keyboard.press("Enter")
    page.locator(".scrubber input").focus()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    expect(page.locator(".scrubber output")).to_have_text("3 / 9")
    expect(page.locator(".look-head")).to_contain_text("du looked at")
    assert page.locator(".target .words .word.later").all_inner_texts() == words(page)[3:]
    assert page.locator(".scrubber input").get_attribute("aria-valuetext") == "step 3 of 9: du"
    page.locator("#tab-translate").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-compare")).to_have_attribute("aria-selected", "true")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pick", "value", "columns"),
    [("kind", "decoder_self", 10), ("kind", "encoder_self", 9), ("method", "rollout", 9), ("preset", "alignment", 9)],
)
def test_picks_of_the_model(visit, page_url, pick, value, columns):
    page = visit.open(state(page_url, text=SENTENCE))
    wait_done(page)
    page.locator(f"#pick-{pick}").select_option(value)
    wait_done(page)
    expect(page.locator(".map-room")).to_have_attribute("aria-label", f"Heatmap: 9 lines, {columns} columns")
    assert page.locator(".head").count() == {"rollout": 3, "alignment": 4}.get(value, 12)


@pytest.mark.slow
def test_picks_that_need_no_server(visit, page_url, bundled_server):
    page = visit.open(state(page_url, text=SENTENCE))
    wait_done(page)
    with Client(bundled_server) as client:
        for reduction in ("max", "l2", "prod"):
            page.locator("#pick-reduction").select_option(reduction)
            page.locator("#pick-layer").select_option("1")
            page.locator(".target .words .word", has_text="Buch").hover()
            shown = float(page.locator(".looks .number").first.inner_text())
            page.locator(".scrubber").hover()
            capture = Capture(layers=[1], over_heads=reduction, over_layers=reduction)
            row = client.attribute(SENTENCE, capture=capture).result().cross[:, 5]
            assert shown == pytest.approx(float(row.max()), rel=0.02)


@pytest.mark.slow
def test_curves_and_their_links(visit, page_url, bundled_server):
    page = visit.open(state(page_url, text=SENTENCE, view="curves"))
    wait_done(page)
    expect(page.locator(".curves .note")).to_contain_text("Word links of the server")
    with Client(bundled_server) as client:
        links = client.align(SENTENCE, TARGET).links
    paths = page.locator(".curves-svg path")
    drawn = paths.evaluate_all("nodes => nodes.map(({dataset}) => [Number(dataset.from), Number(dataset.to)])")
    assert {tuple(pair) for pair in drawn} == {(link.source, link.target) for link in links}
    page.locator(".curves-words.right li", has_text="Buch").hover()
    assert page.locator(".curves-words.left li.on").all_inner_texts() == ["book"]
    expect(page.locator(".look-head")).to_contain_text("Buch looked at")


@pytest.mark.slow
def test_a_given_target_is_compared(visit, page_url):
    page = visit.open(state(page_url, mode="compare", text=SENTENCE, target="Wo hast du das Buch her?"))
    wait_done(page)
    first, second = page.locator(".target .words").all_inner_texts()
    assert (first, second) == (TARGET, "Wo hast du das Buch her?")
    assert page.locator(".map-room").count() == 2
    page.locator("#given").fill("")
    expect(page.locator(".target .words").nth(1)).to_have_text(TARGET, timeout=WAIT)


def test_markup_is_text_everywhere(visit, page_url):
    attack = "<img src=x onerror=\"document.title='bad'\"><script>document.title='bad'</script>"
    text = f"<p>My <b>sister</b> is here.</p>{attack}"
    page = visit.open(state(page_url, mode="markup", text=text))
    expect(page.locator(".html")).to_contain_text("<b>Schwester</b>", timeout=WAIT)
    assert page.locator(".tagged").nth(1).inner_text().replace(" ", "").startswith("<p>Meine<b>Schwester</b>")
    assert page.locator("td", has_text="Schwester").count() == 2
    for mode in ("translate", "live"):
        page.locator(f"#tab-{mode}").click()
        page.locator("#source").fill("<img src=x onerror=\"document.title='bad'\"> <b>dog</b> \u202e cat ")
        expect(page.locator(".map-room").first).to_be_visible(timeout=WAIT)
    assert page.locator("main img, main script, main b, main p p").count() == 0
    assert page.title().startswith("Sidelight")


@pytest.mark.slow
def test_typing_commits_and_holds(visit, page_url):
    page = visit.open(state(page_url, mode="live"))
    page.locator("#source").press_sequentially("Where did you buy that ", delay=60)
    expect(page.locator(".target .words")).to_have_text("Wo hast du", timeout=WAIT)
    expect(page.locator(".draft bdi")).not_to_be_empty(timeout=WAIT)
    assert page.locator(".read .held").inner_text().strip().startswith("buy")
    page.locator("#source").press_sequentially("old book?", delay=60)
    page.get_by_role("button", name="The text ends here").click()
    expect(page.locator(".target .words")).to_have_text(TARGET, timeout=WAIT)
    expect(page.locator(".draft bdi")).to_be_empty()
    page.locator("#source").fill("A dog ")  # what was sent has changed: it begins anew
    expect(page.locator(".read")).to_have_text(re.compile("^A dog"), timeout=WAIT)


def test_errors_are_shown_with_their_field(visit, page_url):
    page = visit.open(state(page_url, text="dog " * 300))
    expect(page.locator("#error")).to_have_text(re.compile("^source.text: has .* at most 256"), timeout=WAIT)
    page.locator("#source").fill("A small dog.")
    expect(page.locator("#error")).to_be_empty()


@pytest.mark.slow
def test_exports(visit, page_url, tmp_path):
    page = visit.open(state(page_url, text="A <b> dog."), accept_downloads=True)
    wait_done(page)
    found = {}
    for name in ("SVG", "PNG", "JSON"):
        with page.expect_download() as download:
            page.get_by_role("button", name=re.compile(f"as {name}")).click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        found[name] = path.read_bytes()
    assert found["PNG"].startswith(b"\x89PNG")
    assert b"<svg" in found["SVG"]
    assert b"<b>" not in found["SVG"]
    sequence = json.loads(found["JSON"])["attributes"]["sequence_attributions"][0]
    assert sequence["attributes"]["source_attributions"]
    page.get_by_role("button", name=re.compile("as JSON")).is_enabled()


@pytest.mark.slow
def test_a_link_restores_the_state(visit, page_url):
    page = visit.open(page_url)
    wait_done(page)
    page.locator("#source").fill("A small dog.")
    expect(page.locator(".target .words")).to_have_text("Ein kleiner Hund.", timeout=WAIT)
    page.locator("#pick-layer").select_option("2")
    page.locator(".head").nth(9).click()
    page.get_by_role("button", name="Curves").click()
    page.get_by_role("button", name=re.compile("link that restores")).click()
    link = page.evaluate("location.href")
    assert "dog" in link.partition("#")[2]
    again = visit.open(link)
    expect(again.locator(".target .words")).to_have_text("Ein kleiner Hund.", timeout=WAIT)
    expect(again.locator("#pick-layer")).to_have_value("2")
    expect(again.locator(".head").nth(9)).to_have_attribute("aria-pressed", "true")
    expect(again.locator(".curves")).to_be_visible()
    again.evaluate("location.hash = 'text=A small cat.'")  # a link that is opened where the page is
    expect(again.locator(".target .words")).to_have_text("Eine kleine Katze.", timeout=WAIT)
    expect(again.locator(".map-room")).to_be_visible()
