"""Files: complete or not at all, with all positions, and a page that a browser shows."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_server import expected_answer
from inseq_files import load_with_inseq
from sidelight.client import Capture, Client, save
from sidelight.client.formats import check_path


def page_data(path):
    """Returns the attributions in a page."""
    html = path.read_text(encoding="utf-8")
    start = html.index('id="data">') + len('id="data">')
    return json.loads(html[start : html.index("</script>", start)])


@pytest.mark.parametrize("encoding", ["float32", "uint8"])
def test_a_result_with_top_k_is_saved_with_all_positions(fake, tmp_path, encoding):
    text = "one two three"
    cross = expected_answer(text).cross
    capture = Capture(kinds=("cross", "decoder_self", "encoder_self"), encoding=encoding, top_k=2)
    with Client(fake.address) as client:
        result = client.attribute(text, capture=capture, timeout=30).result()
    for suffix in ("json", "npz", "html"):
        save(result, tmp_path / f"out.{suffix}")
    with np.load(tmp_path / "out.npz") as file:
        assert file["0/cross"].dtype == np.float32
        assert json.loads(str(file["0/info"]))["top_k"] == 2
        saved = [file["0/cross"]]
        np.testing.assert_array_equal(file["0/decoder_self"], result.decoder_self)
        np.testing.assert_array_equal(file["0/encoder_self"], result.encoder_self)
    (sequence,) = load_with_inseq(tmp_path / "out.json").sequence_attributions
    saved.append(sequence.source_attributions.numpy())
    view = page_data(tmp_path / "out.html")[0]["views"][0]
    saved.append(np.frombuffer(base64.b64decode(view["data"]), "<f2").reshape(view["shape"]).astype(np.float32))
    for array in saved:
        assert array.shape == cross.shape
        assert ((array > 0).sum(0) == 2).all()
        np.testing.assert_allclose(array[array > 0], cross[array > 0], atol=3e-3)


@pytest.mark.parametrize("suffix", [".json", ".npz", ".html"])
def test_a_file_appears_whole_or_not_at_all(results, tmp_path, monkeypatch, suffix):
    path = tmp_path / f"out{suffix}"
    path.write_text("before")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(results, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_check_path_refuses_paths_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="suffix"):
        check_path(tmp_path / "out.txt")
    with pytest.raises(OSError, match=r"."):
        check_path(tmp_path / "nowhere" / "out.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(IsADirectoryError):
        check_path(tmp_path / "folder.json")
    check_path(tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_an_empty_list_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="nothing to save"):
        save([], tmp_path / "out.html")
    assert not list(tmp_path.iterdir())


# ---- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The document of a page: its cells, tags and text."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._skip = False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._skip = tag in ("script", "style")
        classes = dict(attrs).get("class") or ""
        if tag == "td" and "cell" in classes.split():
            self.cells.append(dict(attrs).get("style") or "")

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._skip = False

    def handle_data(self, data):
        if not self._skip:
            self.text += data


def test_a_browser_shows_the_page(results, open_page):
    document = open_page(results[::-1])
    page = Page()
    page.feed(document)
    result = results[1]
    assert len(page.cells) == result.cross.shape[0] * result.cross.shape[1]
    # The strongest cell is the maximum of the mean over layers and heads.
    strengths = np.array([float(style.split(":")[1].strip(" ;")) for style in page.cells])
    means = result.cross.mean((2, 3)).T.ravel()
    np.testing.assert_allclose(strengths, means / means.max(), atol=2e-3)
    assert "b" not in page.tags  # the source's markup is text
    for word in ("Cross-attention", "Decoder self-attention", "Encoder self-attention", "probability", "</s>"):
        assert word in page.text


def test_the_page_fetches_nothing_and_its_texts_cannot_end_the_script(sentences, results, tmp_path):
    save(results, tmp_path / "out.html")
    html = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "http://" not in html
    assert "https://" not in html
    assert html.count("</script>") == 2
    assert [sentence["source"] for sentence in page_data(tmp_path / "out.html")] == sentences
