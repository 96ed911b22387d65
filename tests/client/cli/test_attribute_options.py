"""The arguments of `sidelight attribute`: how they are parsed, and what reaches the server."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
from cli_process import SENTENCE
from sidelight.client.cli.attribute_options import parse_heads, parse_layers, parse_steps
from sidelight.client.cli.contrast_options import parse_alignments
from sidelight.client.cli.main import main
from sidelight.v1 import attention_pb2, text_pb2


def test_layers_and_heads_are_parsed():
    assert parse_layers("0,2-4,7") == [0, 2, 3, 4, 7]
    assert parse_heads("2.3,0.1") == [(2, 3), (0, 1)]
    assert parse_heads("2.3:0.75,0.1,1.0:2,1.1:.5") == [(2, 3, 0.75), (0, 1), (1, 0, 2.0), (1, 1, 0.5)]


def test_capture_options_reach_the_server(fake, tmp_path):
    path = tmp_path / "out.npz"
    options = ["--heads", "1.2:0.75,0.0", "--reduce", "mean", "--encoding", "uint8", "--top-positions", "2"]
    sampling = ["--sample", "--top-k", "7"]  # not the top_k of the capture
    base = ["attribute", "one two three", "--address", fake.address]
    assert main([*base, *options, *sampling, "--save", str(path)]) == 0
    (request,) = fake.requests
    assert request.capture.encoding == attention_pb2.ENCODING_UINT8
    assert request.capture.top_k == 2
    assert request.decoding.sampling.top_k == 7
    first, second = request.capture.heads.list.heads
    assert (first.layer, first.head, first.weight) == (1, 2, 0.75)
    assert (second.layer, second.head, second.HasField("weight")) == (0, 0, False)
    with np.load(path) as arrays:
        assert arrays["0/cross"].dtype == np.float32
        assert ((arrays["0/cross"] > 0).sum(0) == 2).all()
    assert main([*base, "--truncate", "left", "--offset-unit", "utf16"]) == 0
    request = fake.requests[1]
    assert (request.truncate, request.offset_unit) == (text_pb2.TRUNCATION_LEFT, text_pb2.OFFSET_UNIT_UTF16)
    assert main(base) == 0
    request = fake.requests[2]
    assert (request.truncate, request.offset_unit) == (0, 0)
    capture = request.capture
    assert (capture.encoding, capture.top_k) == (attention_pb2.ENCODING_UNSPECIFIED, 0)


def test_decoding_options_reach_the_server(fake):
    decoding = ["--stop", ".", "--stop", "!", "--min-new-tokens", "2", "--ignore-eos", "--repetition-penalty", "1.5"]
    others = ["--score-top-p", "0.5", "--scores", "top_p_size", "--steps", "1-3"]
    assert main(["attribute", "one two", "--address", fake.address, *decoding, *others]) == 0
    (request,) = fake.requests
    assert (list(request.decoding.stop), request.decoding.min_new_tokens) == ([".", "!"], 2)
    assert (request.decoding.ignore_eos, request.decoding.repetition_penalty) == (True, 1.5)
    assert (request.score_top_p, request.capture.steps.begin, request.capture.steps.end) == (0.5, 1, 3)
    assert parse_steps("5-") == (5, None)


def test_options_reach_the_server(bundled_server, tmp_path, capsys):
    path = tmp_path / "out.json"
    base = ["attribute", SENTENCE, "--address", bundled_server, "--quiet", "--save", str(path)]
    assert main([*base, "--heads", "2.3,0.1", "--kinds", "cross", "--scores", "probability", "--row", "reading"]) == 0
    (sequence,) = json.loads(path.read_text())["attributes"]["sequence_attributions"]
    assert sequence["attributes"]["target_attributions"] is None
    assert list(sequence["attributes"]["step_scores"]) == ["probability"]
    assert main([*base, "--target", "Ich will nicht.", "--layers", "0-1", "--reduce-heads", "max"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Ich will nicht."
    assert main([*base, "--sample", "--seed", "3", "--temperature", "3", "--top-k", "0"]) == 0
    assert capsys.readouterr().out.strip() != "Ich will nicht dein Freund sein."


def test_a_second_context_reaches_the_server(fake):
    base = ["attribute", "one two three", "--address", fake.address]
    contrast = ["--contrast-source", "four five", "--contrast-target", "six", "--contrast-alignments", "0-0,2-1"]
    others = ["--subtract-attention", "--kl-top-p", "0.5", "--kl-top-k", "3", "--contrast-prefix", "seven"]
    assert main([*base, "--target", "eight nine", *contrast, *others]) == 0
    message = fake.requests[0].contrast
    assert (message.source.text, message.given.text, message.prefix.text) == ("four five", "six", "seven")
    assert [(pair.target, pair.contrast) for pair in message.alignments] == [(0, 0), (2, 1)]
    assert (message.subtract_attention, message.kl_top_p, message.kl_top_k) == (True, 0.5, 3)
    assert main(base) == 0
    assert not fake.requests[1].HasField("contrast")


def test_options_of_a_second_context_without_one_are_refused(fake, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["attribute", "one", "--address", fake.address, "--subtract-attention"])
    assert stop.value.code == 2
    assert "--contrast-source" in capsys.readouterr().err
    assert fake.requests == []


@pytest.mark.parametrize("text", ["1", "1-", "a-b", "0-0,", "-1-2", "0:1"])
def test_pairs_of_steps_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse_alignments(text)


def test_a_second_context_is_saved_in_scores(bundled_server, tmp_path):
    path = tmp_path / "out.npz"
    base = ["attribute", "He is my friend.", "--address", bundled_server, "--quiet", "--save", str(path)]
    assert main([*base, "--scores", "pcxmi", "--contrast-source", "She is my friend."]) == 0
    with np.load(path) as arrays:
        assert np.abs(arrays["0/score_pcxmi"]).max() > 1
    assert main([*base, "--target", "Er ist hier.", "--contrast-target", "Er ist da.", "--subtract-attention"]) == 0
    with np.load(path) as arrays:
        assert arrays["0/cross"].min() < 0
