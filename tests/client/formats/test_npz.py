"""NumPy's npz."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
from sidelight.client import Beam, Client, Contrast, Decoding, save


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


def test_npz_keeps_texts_that_end_with_nul(results, tmp_path):
    pieces = ["\0", "a\0", "\0\0", "\0a", "", "b"]
    tokens = tuple(dataclasses.replace(results[0].source[0], piece=piece, text=piece) for piece in pieces)
    started = dataclasses.replace(results[0].started, source=tokens, prefix=tokens[:1], source_text="x\0\0")
    save(dataclasses.replace(results[0], started=started, steps=tokens[1:], text="y\0"), tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        info = json.loads(str(file["0/info"]))
    assert info["pieces"] == {"source": pieces, "prefix": pieces[:1], "steps": pieces[1:]}
    assert (info["source"], info["text"]) == ("x\0\0", "y\0")


def test_npz_keeps_the_hypotheses_and_what_the_numbers_are(bundled_server, tmp_path):
    contrast = Contrast(source="A cat.", subtract_attention=True)
    with Client(bundled_server) as client:
        beams = client.attribute("A dog.", decoding=Decoding(Beam(2, hypotheses=2)), timeout=60).result()
        difference = client.attribute("A dog.", target="Ein Hund.", contrast=contrast, timeout=60).result()
    save([beams, difference], tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        first, second = (json.loads(str(file[f"{number}/info"])) for number in range(2))
    assert [hypothesis["text"] for hypothesis in first["hypotheses"]] == [beam.text for beam in beams.hypotheses]
    assert first["hypotheses"][0]["ids"] == [token.id for token in beams.steps]
    assert first["hypotheses"][0]["score"] > first["hypotheses"][1]["score"]
    assert (first["is_difference"], second["is_difference"]) == (False, True)
    assert (first["usage"]["target_tokens"], first["source_tokens_left_out"]) == (len(beams.steps), 0)
