"""Inseq's JSON: Inseq itself reads it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from inseq_files import load_with_inseq
from sidelight.client import Capture, Client, Contrast, Decoding, Greedy, save


def test_inseq_reads_the_file(sentences, results, tmp_path):
    save(results, tmp_path / "out.json")
    output = load_with_inseq(tmp_path / "out.json")
    assert output.info["input_texts"] == sentences
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
    # Inseq's own tools accept the result.
    aggregated = output.aggregate(normalize=False).sequence_attributions[0]
    np.testing.assert_allclose(aggregated.source_attributions.numpy(), results[0].cross.mean((2, 3)), atol=1e-6)


def test_a_reduced_result_is_inseqs_reduced_result(sentences, bundled_server, tmp_path):
    with Client(bundled_server) as client:
        capture = Capture(kinds=("cross", "decoder_self"), over_heads="mean", over_layers="max")
        result = client.attribute(sentences[0], capture=capture, timeout=60).result()
    save(result, tmp_path / "out.json")
    (sequence,) = load_with_inseq(tmp_path / "out.json").sequence_attributions
    np.testing.assert_array_equal(sequence.source_attributions.numpy(), result.cross)
    np.testing.assert_array_equal(sequence.aggregate().source_attributions.numpy(), result.cross)
    assert sequence.show(display=False, return_html=True)


def test_a_decoder_only_result_is_inseqs(tmp_path, zoo):
    from harness import serving

    with serving(zoo("gpt2")) as address, Client(address) as client:
        decoding = Decoding(Greedy(), max_new_tokens=5)
        result = client.attribute("The lazy dog", decoding=decoding, timeout=60).result()
    save(result, tmp_path / "out.json")
    (sequence,) = load_with_inseq(tmp_path / "out.json").sequence_attributions
    assert sequence.source_attributions is None
    assert sequence.attr_pos_start == len(result.source)
    assert len(sequence.target) == len(result.source) + len(result.steps)
    np.testing.assert_array_equal(sequence.target_attributions.numpy(), result.decoder_self)
    save(result, tmp_path / "out.html")


def test_the_file_says_what_the_numbers_are(bundled_server, results, tmp_path):
    with Client(bundled_server) as client:
        captures = [Capture(method="value_norms", special_tokens="renormalize"), Capture(method="rollout", layers=[2])]
        others = [client.attribute("A dog.", capture=capture, timeout=60).result() for capture in captures]
        contrast = Contrast(source="A cat.", subtract_attention=True)
        others.append(client.attribute("A dog.", target="Ein Hund.", contrast=contrast, timeout=60).result())
    described: list[tuple[str, dict[str, object]]] = []
    for result in (results[0], *others):
        save(result, tmp_path / "out.json")
        info = load_with_inseq(tmp_path / "out.json").info
        described.append((info["attribution_method"], info["attribution_args"]))
    assert described == [
        ("attention", {}),
        ("value_norms", {"special_tokens": "renormalize"}),
        ("rollout", {}),
        ("attention", {"subtract_attention": True}),
    ]
    assert [result.started.is_share for result in (results[0], *others)] == [True, False, True, False]


def test_inseqs_format_needs_attention(results, tmp_path):
    nothing = dataclasses.replace(results[0], cross=None, decoder_self=None, encoder_self=None)
    with pytest.raises(ValueError, match="none was captured"):
        save(nothing, tmp_path / "out.json")
