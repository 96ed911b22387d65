"""Attributions go to Inseq and come back."""

from __future__ import annotations

import dataclasses
import gzip
import json
import warnings

import numpy as np
import pytest
from inseq_files import load_with_inseq
from sidelight.client import Attribution, Capture, Client, Decoding, Greedy, from_inseq, save, to_inseq
from sidelight.server.models.loader import bundled_model

KINDS = ("cross", "decoder_self", "encoder_self")


def check_equal(ours: Attribution, expected: Attribution) -> None:
    for kind in KINDS:
        values = getattr(expected, kind)
        assert (getattr(ours, kind) is None) == (values is None)
        if values is not None:
            np.testing.assert_array_equal(getattr(ours, kind), values)
            assert ours.layouts[kind].axes == expected.layouts[kind].axes
    assert set(ours.scores) == set(expected.scores)
    for name, values in expected.scores.items():
        np.testing.assert_array_equal(ours.scores[name], values)
    assert ours.text == expected.text
    for tokens, wanted in (
        (ours.steps, expected.steps),
        (ours.source, expected.source),
        (ours.context, expected.context),
    ):
        assert [(token.id, token.piece) for token in tokens] == [(token.id, token.piece) for token in wanted]
    for name in ("source_text", "model", "method", "special_tokens", "is_encoder_decoder"):
        assert getattr(ours.started, name) == getattr(expected.started, name)


def test_there_and_back(results, tmp_path):
    save(results, tmp_path / "out.json")
    packed = tmp_path / "out.json.gz"
    packed.write_bytes(gzip.compress((tmp_path / "out.json").read_bytes()))
    for back in (from_inseq(tmp_path / "out.json"), from_inseq(packed), from_inseq(to_inseq(results))):
        for ours, expected in zip(back, results, strict=True):
            check_equal(ours, expected)
            # Tokens that stand for a part of the text have their places again.
            for token, wanted in zip((*ours.steps, *ours.source), (*expected.steps, *expected.source), strict=True):
                assert token == wanted or (not token.text and (not wanted.text or wanted.piece == "<unk>"))
    save(from_inseq(tmp_path / "out.json"), tmp_path / "again.html")


def test_reduced_and_decoder_only_results(bundled_server, tmp_path, zoo):
    from harness import serving

    captures = [Capture(over_heads="mean"), Capture(kinds=("decoder_self",), over_heads="mean", over_layers="max")]
    with Client(bundled_server) as client:
        reduced = [client.attribute("A dog.", capture=capture, timeout=60).result() for capture in captures]
    with serving(zoo("gpt2")) as address, Client(address) as client:
        options = {"decoding": Decoding(Greedy(), max_new_tokens=5), "timeout": 60}
        reduced.append(client.attribute("The lazy dog", **options).result())
    for expected in reduced:
        save(expected, tmp_path / "out.json")
        (ours,) = from_inseq(tmp_path / "out.json")
        check_equal(ours, expected)


def test_what_inseq_has_written_comes_back_to_inseq(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import inseq

        model = inseq.load_model(str(bundled_model()), "attention")
        theirs = model.attribute("I have a dog.", attribute_target=True, show_progress=False)
        theirs.save(tmp_path / "theirs.json", overwrite=True)
    (ours,) = from_inseq(tmp_path / "theirs.json")
    (sequence,) = theirs.sequence_attributions
    np.testing.assert_array_equal(ours.cross, sequence.source_attributions.numpy())
    (again,) = to_inseq(ours).sequence_attributions
    np.testing.assert_array_equal(again.source_attributions.numpy(), sequence.source_attributions.numpy())
    np.testing.assert_array_equal(again.target_attributions.numpy(), sequence.target_attributions.numpy())
    assert again.source == sequence.source
    assert again.target == sequence.target
    for precision in ("float16", "float8"):
        theirs.save(tmp_path / "rounded.json", overwrite=True, scores_precision=precision)
        rounded = load_with_inseq(tmp_path / "rounded.json").sequence_attributions[0].source_attributions.numpy()
        np.testing.assert_allclose(rounded, ours.cross, rtol=1 / 16, atol=2**-9)
        np.testing.assert_array_equal(from_inseq(tmp_path / "rounded.json")[0].cross, rounded)


def test_what_is_no_attention_is_refused(results, tmp_path):
    path = tmp_path / "out.json"
    save(results, path)
    data = json.loads(path.read_text())
    data["attributes"]["info"]["attribution_method"] = "saliency"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="the method saliency does not measure attention"):
        from_inseq(path)
    for text in ("", "[]", "{", '{"attributes": {"info": 1}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="Inseq"):
            from_inseq(path)
    recording = dataclasses.replace(
        results[0], started=dataclasses.replace(results[0].started, source_position_count=3)
    )
    with pytest.raises(ValueError, match="recording"):
        to_inseq(recording)
