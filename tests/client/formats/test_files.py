"""Files: what Inseq, NumPy and a browser make of them."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import subprocess
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from model_zoo import build_model
from sidelight.client import Attribution, Capture, Client, Decoding, Greedy, save
from sidelight.client.formats import check_path

SENTENCES = ["I don't want to be your friend.", "Where is </script><b> the 'station' & \u2028?"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def results(bundled_server) -> list[Attribution]:
    capture = Capture(kinds=("cross", "decoder_self", "encoder_self"))
    options = {"capture": capture, "scores": ["probability", "cross_entropy"], "timeout": 60}
    with Client(bundled_server) as client:
        return [client.attribute(sentence, **options).result() for sentence in SENTENCES]


def loaded_by_inseq(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from inseq import FeatureAttributionOutput

        return FeatureAttributionOutput.load(path)


def page_data(path):
    """The attributions in a page."""
    html = path.read_text(encoding="utf-8")
    start = html.index('id="data">') + len('id="data">')
    return json.loads(html[start : html.index("</script>", start)])


def test_inseq_reads_what_it_would_have_written(results, tmp_path):
    save(results, tmp_path / "out.json")
    output = loaded_by_inseq(tmp_path / "out.json")
    assert output.info["input_texts"] == SENTENCES
    assert output.info["generated_texts"] == [result.text for result in results]
    for sequence, result in zip(output.sequence_attributions, results, strict=True):
        assert [token.token for token in sequence.source] == [token.piece for token in result.source]
        assert [token.id for token in sequence.target] == [token.id for token in result.decoder_positions]
        assert (sequence.attr_pos_start, sequence.attr_pos_end) == (1, 1 + len(result.steps))
        np.testing.assert_array_equal(sequence.source_attributions.numpy(), result.cross)
        np.testing.assert_array_equal(sequence.target_attributions.numpy(), result.decoder_self)
        encoder = sequence.sequence_scores["encoder_self_attentions"].numpy()
        np.testing.assert_array_equal(encoder, result.encoder_self.swapaxes(0, 1))
        np.testing.assert_array_equal(sequence.step_scores["crossentropy"].numpy(), result.scores["cross_entropy"])
    # Inseq's own tools work on it.
    aggregated = output.aggregate(normalize=False).sequence_attributions[0]
    np.testing.assert_allclose(aggregated.source_attributions.numpy(), results[0].cross.mean((2, 3)), atol=1e-6)


def test_a_reduced_result_is_inseqs_reduced_result(bundled_server, tmp_path):
    with Client(bundled_server) as client:
        capture = Capture(kinds=("cross", "decoder_self"), over_heads="mean", over_layers="max")
        result = client.attribute(SENTENCES[0], capture=capture, timeout=60).result()
    save(result, tmp_path / "out.json")
    (sequence,) = loaded_by_inseq(tmp_path / "out.json").sequence_attributions
    np.testing.assert_array_equal(sequence.source_attributions.numpy(), result.cross)
    np.testing.assert_array_equal(sequence.aggregate().source_attributions.numpy(), result.cross)
    assert sequence.show(display=False, return_html=True)


def test_a_decoder_only_result_is_inseqs(tmp_path, tmp_path_factory):
    from harness import serving
    from sidelight.server.models.loader import load

    with serving(load(build_model("gpt2", tmp_path_factory.mktemp("zoo")))) as address, Client(address) as client:
        decoding = Decoding(Greedy(), max_new_tokens=5)
        result = client.attribute("The lazy dog", decoding=decoding, timeout=60).result()
    save(result, tmp_path / "out.json")
    (sequence,) = loaded_by_inseq(tmp_path / "out.json").sequence_attributions
    assert sequence.source_attributions is None
    assert sequence.attr_pos_start == len(result.source)
    assert len(sequence.target) == len(result.source) + len(result.steps)
    np.testing.assert_array_equal(sequence.target_attributions.numpy(), result.decoder_self)
    save(result, tmp_path / "out.html")


def test_npz_holds_everything(results, tmp_path):
    save(results, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        for number, result in enumerate(results):
            np.testing.assert_array_equal(file[f"{number}/cross"], result.cross)
            np.testing.assert_array_equal(file[f"{number}/decoder_self"], result.decoder_self)
            np.testing.assert_array_equal(file[f"{number}/encoder_self"], result.encoder_self)
            np.testing.assert_array_equal(file[f"{number}/score_probability"], result.scores["probability"])
            assert file[f"{number}/source_pieces"].tolist() == [token.piece for token in result.source]
            assert json.loads(str(file[f"{number}/info"]))["text"] == result.text


def test_npz_keeps_what_ends_with_nul(results, tmp_path):
    pieces = ["\0", "a\0", "\0\0", "\0a", "", "b"]
    tokens = tuple(dataclasses.replace(results[0].source[0], piece=piece, text=piece) for piece in pieces)
    started = dataclasses.replace(results[0].started, source=tokens, prefix=tokens[:1], source_text="x\0\0")
    save(dataclasses.replace(results[0], started=started, steps=tokens[1:], text="y\0"), tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        info = json.loads(str(file["0/info"]))
    assert info["pieces"] == {"source": pieces, "prefix": pieces[:1], "steps": pieces[1:]}
    assert (info["source"], info["text"]) == ("x\0\0", "y\0")


@pytest.mark.parametrize("encoding", ["float32", "uint8"])
def test_what_was_sent_in_part_is_saved_whole(fake, truth_of, tmp_path, encoding):
    text = "one two three"
    truth = truth_of(text).cross
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
    (sequence,) = loaded_by_inseq(tmp_path / "out.json").sequence_attributions
    saved.append(sequence.source_attributions.numpy())
    view = page_data(tmp_path / "out.html")[0]["views"][0]
    saved.append(np.frombuffer(base64.b64decode(view["data"]), "<f2").reshape(view["shape"]).astype(np.float32))
    for array in saved:
        assert array.shape == truth.shape
        assert ((array > 0).sum(0) == 2).all()
        np.testing.assert_allclose(array[array > 0], truth[array > 0], atol=3e-3)


@pytest.mark.parametrize("suffix", [".json", ".npz", ".html"])
def test_a_file_appears_whole_or_not_at_all(results, tmp_path, monkeypatch, suffix):
    path = tmp_path / f"out{suffix}"
    path.write_text("before")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(results, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_are_found_before_there_is_anything_to_save(tmp_path):
    with pytest.raises(ValueError, match="suffix"):
        check_path(tmp_path / "out.txt")
    with pytest.raises(OSError, match=r"."):
        check_path(tmp_path / "nowhere" / "out.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(IsADirectoryError):
        check_path(tmp_path / "folder.json")
    check_path(tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_inseqs_format_needs_attention(results, tmp_path):
    nothing = dataclasses.replace(results[0], cross=None, decoder_self=None, encoder_self=None)
    with pytest.raises(ValueError, match="none was captured"):
        save(nothing, tmp_path / "out.json")


def test_nothing_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="nothing to save"):
        save([], tmp_path / "out.html")
    assert not list(tmp_path.iterdir())


# ---- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser made of the page: cells, words, scripts."""

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


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page(results, tmp_path):
    save(results[::-1], tmp_path / "out.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *options, "--enable-logging=stderr", "--dump-dom", (tmp_path / "out.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr  # neither errors nor blocked requests
    page = Page()
    page.feed(done.stdout)
    result = results[1]
    assert len(page.cells) == result.cross.shape[0] * result.cross.shape[1]
    # The strongest cell is the strongest share of the mean over layers and heads.
    strengths = np.array([float(style.split(":")[1].strip(" ;")) for style in page.cells])
    means = result.cross.mean((2, 3)).T.ravel()
    np.testing.assert_allclose(strengths, means / means.max(), atol=2e-3)
    assert "b" not in page.tags  # the source's markup is text
    for word in ("Cross-attention", "Decoder self-attention", "Encoder self-attention", "probability", "</s>"):
        assert word in page.text


def test_the_page_fetches_nothing_and_cannot_be_broken_out_of(results, tmp_path):
    save(results, tmp_path / "out.html")
    html = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "http://" not in html
    assert "https://" not in html
    assert html.count("</script>") == 2
    assert [sentence["source"] for sentence in page_data(tmp_path / "out.html")] == SENTENCES
