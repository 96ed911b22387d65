"""The arguments of `sidelight attribute`: how they are parsed, and what reaches the server."""

from __future__ import annotations

import json

import numpy as np
from cli_process import SENTENCE
from sidelight.client.cli.attribute_options import parse_heads, parse_layers
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
