"""Results in the libraries that notebooks use, from a real server."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from html import unescape

import numpy as np
import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from sidelight.client import AlignOptions, AsyncClient, Attribution, Capture, Client, Head

SOURCE = "I don't want to be your friend."
ALL = ("cross", "decoder_self", "encoder_self")


@pytest.fixture(scope="module")
def whole(bundled_server) -> Attribution:
    with Client(bundled_server) as client:
        return client.attribute(SOURCE, capture=Capture(kinds=ALL), scores=["probability"], timeout=60).result()


@pytest.fixture(scope="module")
def others(bundled_server) -> dict[str, Attribution]:
    """Results whose arrays have other axes."""
    captures = {
        "reduced": Capture(kinds=("cross",), over_heads="mean"),
        "scalar": Capture(kinds=("cross",), over_heads="mean", over_layers="mean"),
        "pairs": Capture(kinds=("cross",), heads=[Head(0, 1), Head(2, 3)]),
        "layer": Capture(kinds=("cross", "decoder_self"), layers=[2]),
        "words": Capture(kinds=ALL, grouping="word"),
    }
    with Client(bundled_server) as client:
        return {
            name: client.attribute(SOURCE, capture=capture, timeout=60).result() for name, capture in captures.items()
        }


def test_a_table_has_each_number_that_was_captured(whole, others):
    for result in (whole, *others.values()):
        for kind in result.layouts:
            array = getattr(result, kind)
            frame = result.to_pandas(kind)
            assert len(frame) == np.count_nonzero(~np.isnan(array))
            np.testing.assert_allclose(frame["attention"].sum(), np.nansum(array.astype(np.float64)), rtol=1e-5)
    frame = whole.to_pandas()
    line = frame[(frame.target_index == 3) & (frame.source_index == 2) & (frame.layer == 1) & (frame["head"] == 2)]
    assert line.attention.item() == whole.cross[2, 3, 1, 2]
    assert (line.target.item(), line.source.item()) == (whole.steps[3].label, whole.source[2].label)
    seen = whole.to_pandas("encoder_self")
    line = seen[(seen.target_index == 3) & (seen.source_index == 2) & (seen.layer == 1) & (seen["head"] == 2)]
    assert line.attention.item() == whole.encoder_self[3, 2, 1, 2]
    pairs = others["pairs"].to_pandas()
    assert sorted(set(zip(pairs.layer, pairs["head"], strict=True))) == [(0, 1), (2, 3)]
    assert set(others["layer"].to_pandas().layer) == {2}
    assert "head" not in others["reduced"].to_pandas()


def test_the_table_of_targets(whole, others):
    frame = whole.to_pandas("targets")
    assert list(frame.id) == [token.id for token in whole.steps]
    np.testing.assert_array_equal(frame.probability, whole.scores["probability"])
    assert [whole.text[begin:end] for begin, end in zip(frame.begin, frame.end, strict=True)] == [
        token.text for token in whole.steps
    ]
    assert len(others["words"].to_pandas("targets")) == len(others["words"].units)


def test_labelled_arrays(whole, others):
    data = whole.to_xarray()
    np.testing.assert_array_equal(data.cross.sel(layer=1, head=2), whole.cross[:, :, 1, 2])
    np.testing.assert_array_equal(data.encoder_self.isel(query=3, source=2), whole.encoder_self[3, 2])
    np.testing.assert_array_equal(data.probability, whole.scores["probability"])
    assert list(data.target_text.values) == [token.label for token in whole.steps]
    assert data.decoder_self.dims == ("position", "target", "layer", "head")
    assert others["layer"].to_xarray().cross.layer.item() == 2
    assert list(others["pairs"].to_xarray().pair.values) == ["0.1", "2.3"]
    for result in others.values():
        for kind in result.layouts:
            assert result.to_xarray()[kind].size == getattr(result, kind).size


def test_a_figure_shows_the_chosen_numbers(whole, others):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    cases = [
        (whole.plot(), whole.cross.mean((2, 3)).T),
        (whole.plot("cross", layer=1), whole.cross[:, :, 1].mean(2).T),
        (whole.plot("cross", head=3), whole.cross[:, :, :, 3].mean(2).T),
        (whole.plot("decoder_self", layer=1, head=2), whole.decoder_self[:, :, 1, 2].T),
        (whole.plot("encoder_self", layer=0, head=2), whole.encoder_self[:, :, 0, 2]),
        (others["scalar"].plot(), others["scalar"].cross.T),
        (others["reduced"].plot(layer=1), others["reduced"].cross[:, :, 1].T),
        (others["pairs"].plot(layer=2, head=3), others["pairs"].cross[:, :, 1].T),
        (others["layer"].plot(layer=2), others["layer"].cross[:, :, 0].mean(2).T),
    ]
    for ax, expected in cases:
        np.testing.assert_allclose(ax.images[0].get_array().filled(np.nan), expected, atol=1e-6)
        ax.figure.canvas.draw()
    assert [label.get_text() for label in cases[0][0].get_yticklabels()] == [token.label for token in whole.steps]
    plt.close("all")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("whole", {"layer": 9}, "layer 9 was not captured; there is 0, 1, 2"),
        ("whole", {"head": -1}, "head -1 was not captured"),
        ("reduced", {"head": 0}, "head 0 cannot be chosen: the request has reduced the heads of cross"),
        ("pairs", {"layer": 1}, "layer 1, head None was not captured; there is 0.1, 2.3"),
        ("reduced", {"kind": "decoder_self"}, "decoder_self was not captured; there is cross"),
    ],
)
def test_what_was_not_captured_is_named(whole, others, name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        (whole if name == "whole" else others[name]).plot(**options)


def test_bertviz_opens_on_a_result(whole, others):
    bertviz = pytest.importorskip("bertviz")
    arguments = whole.to_bertviz()
    matrix = arguments["decoder_attention"][1][0, 2].numpy()  # queries, keys
    first = len(whole.context) - 1  # the token that predicts the first step
    for step in range(len(whole.steps)):
        count = first + step + 1
        np.testing.assert_array_equal(matrix[first + step, :count], whole.decoder_self[:count, step, 1, 2])
    np.testing.assert_array_equal(arguments["cross_attention"][1][0, 2, first].numpy(), whole.cross[:, 0, 1, 2])
    np.testing.assert_array_equal(arguments["encoder_attention"][1][0, 2].numpy(), whole.encoder_self[:, :, 1, 2])
    for view in (bertviz.head_view, bertviz.model_view):
        page = view(**arguments, html_action="return").data
        assert "friend" in page
        assert "Freund" in page
    page = bertviz.head_view(**others["words"].to_bertviz(), html_action="return").data
    assert "don't" in page
    with pytest.raises(ValueError, match="BertViz needs all layers and heads of cross"):
        others["reduced"].to_bertviz()
    with pytest.raises(ValueError, match="none was captured"):
        dataclasses.replace(whole, cross=None, decoder_self=None, encoder_self=None).to_bertviz()


def test_jupyter_shows_a_result(whole, bundled_server):
    shown = whole._repr_html_()
    page = unescape(shown[shown.index('srcdoc="') + 8 : shown.index('" title=')])
    assert page.startswith("<!doctype html>")
    assert "Cross-attention" in page
    assert 'sandbox="allow-scripts"' in shown
    nothing = dataclasses.replace(whole, cross=None, decoder_self=None, encoder_self=None, text="<b>&")
    assert nothing._repr_html_().endswith(">&lt;b&gt;&amp;</pre>")
    with Client(bundled_server) as client:
        options: AlignOptions = {"markup": "html", "timeout": 60}
        alignment = client.align("My <b>sister</b> sleeps.", "Meine Schwester schläft.", **options)
    assert "<svg" in alignment._repr_html_()
    assert "Meine &lt;b&gt;Schwester&lt;/b&gt; schläft." in alignment._repr_html_()
    table = alignment.to_pandas()
    assert list(table.source_index) == [link.source for link in alignment.links]
    assert table[table.source == "sister"].target.item() == "Schwester"


@pytest.fixture
def published(monkeypatch) -> list[dict[str, object]]:
    """What a notebook gets to show."""
    shell = InteractiveShell.instance()
    publisher = CapturingDisplayPublisher()
    monkeypatch.setattr(shell, "display_pub", publisher)
    return publisher.outputs


def test_jupyter_shows_a_stream_while_it_runs(bundled_server, published):
    with Client(bundled_server) as client:
        stream = client.attribute(SOURCE, timeout=60)
        stream._ipython_display_()  # what IPython calls for the last expression of a cell
        result = stream.result()
    check_displays(published, result)


def test_jupyter_shows_an_asynchronous_stream(bundled_server, published):
    async def show() -> Attribution:
        async with AsyncClient(bundled_server) as client:
            return await client.attribute(SOURCE, capture=Capture(grouping="word"), timeout=60).show()

    check_displays(published, asyncio.run(show()))


def check_displays(published: list[dict[str, object]], result: Attribution) -> None:
    pages = [output["data"]["text/html"] for output in published]
    assert len({output["transient"]["display_id"] for output in published}) == 1
    assert "<table>" in pages[0]
    assert pages[-1] == result._repr_html_()
    assert "Ich will nicht dein Freund sein." in unescape(pages[-1])


def test_lines_of_a_stream_are_escaped_and_few(whole, monkeypatch):
    from sidelight.client import Step
    from sidelight.client.notebook import live

    publisher = CapturingDisplayPublisher()
    monkeypatch.setattr(InteractiveShell.instance(), "display_pub", publisher)
    monkeypatch.setattr(live, "_INTERVAL", 0.0)
    token = dataclasses.replace(whole.steps[0], text="<img src=x>")
    display = live.LiveDisplay(whole.started)
    for index in range(100):
        display.add(Step(index, token, token.text, whole.cross[:, 0], None, {}))
    last = publisher.outputs[-1]["data"]["text/html"]
    assert "<img" not in last
    assert last.count("<tr>") == 1 + 40
    assert last.count("<td ") == 40 * len(whole.source)
