"""Offsets in other units, truncation and padding: the client's options, and that no label depends on the unit."""

from __future__ import annotations

import numpy as np
import pytest
from harness import serving
from sidelight.client import AsyncClient, Attribution, Capture, Client, InvalidArgumentError
from sidelight.client.formats.npz import build_npz_arrays
from sidelight.client.offset_units import UnitText
from sidelight.client.views.page import render_page
from sidelight.client.views.words import find_words

SOURCE = "the 😀 dog, 漢字 👩‍👩‍👧 é 𠀋 مرحبا"
TARGET = "der 🤖🏽 Hund é 日本 😀"


@pytest.fixture(scope="module")
def address(zoo):
    with serving(zoo("bart")) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with Client(address) as client:
        yield client


def attribute(client: Client, unit: str | None) -> Attribution:
    options = {} if unit is None else {"offset_unit": unit}
    return client.attribute(SOURCE, target=TARGET, capture=Capture(over_heads="mean"), timeout=60, **options).result()


def test_labels_and_views_do_not_depend_on_the_unit(client):
    expected = attribute(client, None)
    assert expected.started.offset_unit == "code_point"
    words = find_words(expected.source)
    page = render_page([expected])
    sizes = {"code_point": len(TARGET), "utf16": len(TARGET.encode("utf-16-le")) // 2, "utf8": len(TARGET.encode())}
    for unit, size in sizes.items():
        result = attribute(client, unit)
        assert result.started.offset_unit == unit
        assert [token.text for token in result.source] == [token.text for token in expected.source]
        assert [token.label for token in result.steps] == [token.label for token in expected.steps]
        assert result.steps[-1].end == size
        assert find_words(result.source, unit=unit) == words
        assert render_page([result]) == page
        spans = build_npz_arrays(result)["source_spans"]
        assert [UnitText(SOURCE, unit).slice(*span) for span in spans] == [token.text for token in result.source]


async def test_both_clients_truncate_and_mask(client, address):
    long = "the lazy dog " * 200
    with pytest.raises(InvalidArgumentError, match="source"):
        client.attribute(long, timeout=60).result()
    capture = Capture(none=True)
    result = client.attribute(long, truncate="left", capture=capture, timeout=60).result()
    assert result.started.source_tokens_left_out > 0
    assert result.started.source_text == long
    assert max(token.end for token in result.source) == len(long.rstrip())
    async with AsyncClient(address) as other:
        same = await other.attribute(long, truncate="left", capture=capture, timeout=60).result()
        ids = [token.id for token in client.attribute("the dog", timeout=60).started.source]
        padded = await other.attribute([*ids, 2, 2], padding="mask", timeout=60).result()
        with pytest.raises(InvalidArgumentError, match="padding"):
            await other.attribute([*ids, 2, 2], timeout=60).result()
    assert (same.source, same.text) == (result.source, result.text)
    alone = client.attribute(ids, timeout=60).result()
    np.testing.assert_array_equal(padded.cross, alone.cross)
    for option in ("offset_unit", "truncate", "padding"):
        with pytest.raises(InvalidArgumentError, match=option):
            client.attribute("a", **{option: "middle"})
