"""Models side by side in the live page: four models of one server, with other heads, kinds and languages."""

from __future__ import annotations

import json
import re
from urllib.parse import urlencode

import pytest
from harness import serving
from live_page import serving_page
from model_zoo import SOURCE, build_model
from sidelight.client import Client
from sidelight.server.models.loader import load

pytestmark = pytest.mark.slow

SENTENCE = "Where did you buy that old book?"
WAIT = 60_000


def expect(locator, **options):
    from playwright.sync_api import expect

    return expect(locator, **options)


@pytest.fixture(scope="module")
def many_models(bundled, tmp_path_factory):
    """A server with the bundled model, a Marian with 2 heads, a Llama and an NLLB."""
    folder = tmp_path_factory.mktemp("models")
    others = [load(str(build_model(name, folder))) for name in ("marian", "llama", "nllb")]
    with serving(bundled, *others) as address:
        yield address


@pytest.fixture(scope="module")
def many_url(many_models):
    with serving_page(many_models) as url:
        yield url


@pytest.fixture(scope="module")
def names(many_models):
    """The names of the models: of the bundled one, and of the others, which are those of their families."""
    with Client(many_models) as client:
        listed = [model.name for model in client.list_models()]
    others = ("marian", "llama", "nllb")
    return {"bundled": next(name for name in listed if name not in others), **{name: name for name in others}}


def open_comparison(visit, url: str, *, accept_downloads: bool = False, **values: str):
    page = visit.open(
        f"{url}#{urlencode({'mode': 'compare', 'text': SENTENCE, **values})}", accept_downloads=accept_downloads
    )
    expect(page.locator("#status")).to_have_text("Ready", timeout=WAIT)
    return page


def count_heads(page) -> list[int]:
    return [page.locator(".stage").nth(pane).locator(".head").count() for pane in (0, 1)]


def notes(page) -> list[str]:
    return page.locator(".stage .main > .note").all_inner_texts()


def test_two_models_stand_side_by_side(visit, many_url, many_models, names):
    page = open_comparison(visit, many_url)
    assert page.locator("#model").input_value() == names["bundled"]
    assert page.locator("#model2").input_value() == names["marian"]  # another one, though nothing is picked
    with Client(many_models) as client:
        texts = [client.attribute(SENTENCE, model=names[one]).result().text for one in ("bundled", "marian")]
    assert page.locator(".target .words").all_inner_texts() == texts
    assert count_heads(page) == [12, 6]
    assert page.locator(".map-room").count() == 2
    assert notes(page) == ["", ""]
    page.locator("#model2").select_option(names["bundled"])
    expect(page.locator(".target .words").nth(1)).to_have_text(texts[0], timeout=WAIT)
    assert count_heads(page) == [12, 12]
    page.get_by_role("button", name=re.compile("link that restores")).click()
    again = visit.open(page.evaluate("location.href"))
    expect(again.locator("#model2")).to_have_value(names["bundled"])


def test_each_pane_has_its_own_exports(visit, many_url, tmp_path):
    page = open_comparison(visit, many_url, accept_downloads=True)
    texts = page.locator(".target .words").all_inner_texts()
    assert texts[0] != texts[1]
    for stage, name, text in zip(page.locator(".stage").all(), ("sidelight", "sidelight-compared"), texts, strict=True):
        saved = {}
        for kind in ("SVG", "PNG", "JSON"):
            with page.expect_download() as download:
                stage.get_by_role("button", name=re.compile(f"as {kind}")).click()
            assert download.value.suggested_filename == f"{name}.{kind.lower()}"
            download.value.save_as(tmp_path / kind)
            saved[kind] = (tmp_path / kind).read_bytes()
        sequence = json.loads(saved["JSON"])["attributes"]["sequence_attributions"][0]["attributes"]
        words = [token["attributes"]["token"].strip("▁") for token in sequence["target"]]
        assert all(word in text for word in words if not word.startswith("<"))
        svg_texts = re.findall(r"<text[^>]*>([^<]*)</text>", saved["SVG"].decode())
        steps = int(stage.locator(".scrubber output").inner_text().split()[0])
        assert len(svg_texts) == len(sequence["source"]) + steps
        assert saved["PNG"].startswith(b"\x89PNG")


def test_picks_that_the_second_model_lacks_are_named(visit, many_url):
    page = open_comparison(visit, many_url, preset="alignment")
    assert count_heads(page) == [4, 6]
    first, second = notes(page)
    assert (first, "preset “alignment”" in second) == ("", True)
    page = open_comparison(visit, many_url, layer="2", head="3")
    assert notes(page) == ["", "This model has no layer 2, head 3: its default is shown."]
    page.locator("#pick-head").select_option("1")
    assert notes(page) == ["", ""]
    assert page.locator("#error").inner_text() == ""


def test_a_model_without_cross_attention_shows_what_it_has(visit, many_url, names):
    page = open_comparison(visit, many_url, model2=names["llama"], text=SOURCE)
    first, second = page.locator(".map-room").evaluate_all("nodes => nodes.map(node => node.ariaLabel)")
    assert first.startswith("Heatmap: ")
    steps = int(re.search(r"(\d+) lines", second)[1])
    assert int(re.search(r"(\d+) columns", second)[1]) > steps > 0  # the text and what is written
    assert notes(page)[1] == "This model has no cross-attention: its default is shown."
    assert page.locator("#error").inner_text() == ""


def test_only_models_with_languages_get_them(visit, many_url, names):
    page = open_comparison(visit, many_url, model2=names["nllb"], **{"from": "eng_Latn", "to": "deu_Latn"})
    assert page.locator("#source-language").is_visible()
    assert page.locator("#error").inner_text() == ""
    page.locator("#target-language").fill("xyz")
    page.locator("#target-language").press("Enter")
    expect(page.locator("#error")).to_have_text(re.compile("^Compared with: target_language: "), timeout=WAIT)
    page.locator("#model2").select_option(names["marian"])
    expect(page.locator("#error")).to_be_empty()
    assert not page.locator("#source-language").is_visible()


def test_a_model_beside_a_given_target(visit, many_url, names):
    target = "Wo <b>ist</b> das Buch?"
    page = open_comparison(visit, many_url, target=target, model2=names["bundled"])
    first, second = page.locator(".target .words").all_inner_texts()
    assert first == "Wo hast du dieses alte Buch gekauft?"
    assert second.replace(" ", "") == target.replace(" ", "")
    assert page.locator("main b").count() == 0
    page.locator("#given").fill("Hund " * 400)
    expect(page.locator("#error")).to_have_text(re.compile("^Compared with: given.text: has 401 tokens"), timeout=WAIT)
    assert page.locator("#given").get_attribute("aria-invalid") == "true"
    page.locator("#given").fill("Wo ist das alte Buch?")
    expect(page.locator(".target .words").nth(1)).to_have_text("Wo ist das alte Buch?", timeout=WAIT)
    assert page.locator("#given").get_attribute("aria-invalid") is None
