"""Sources on the command line that are no texts."""

from __future__ import annotations

import numpy as np
import pytest
from cli_process import run
from sidelight.client import Client, InvalidArgumentError
from sidelight.client.cli.main import main
from sidelight.client.cli.sources import parse_source
from sidelight.v1 import text_pb2


def test_what_a_text_describes(tmp_path):
    assert parse_source("5 6,7", "text") == "5 6,7"
    assert parse_source("5 6,7", "token_ids") == [5, 6, 7]
    chat = [{"role": "user", "content": "Hello"}]
    assert parse_source('[{"role": "user", "content": "Hello"}]', "chat") == chat
    np.save(tmp_path / "features.npy", np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(parse_source(str(tmp_path / "features.npy"), "features"), np.ones((2, 3)))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("token_ids", "5 six"),
        ("chat", "Hello"),
        ("chat", "[]"),
        ("chat", '"Hello"'),
        ("chat", "[5]"),
        ("features", "/nowhere.npy"),
        ("features", __file__),
    ],
)
def test_texts_that_describe_no_source(kind, text):
    with pytest.raises(InvalidArgumentError) as raised:
        parse_source(text, kind)
    assert raised.value.field == f"source.{kind}"


def test_a_chat_and_features_reach_the_server(fake, tmp_path):
    np.save(tmp_path / "features.npy", np.ones((2, 3), np.float32))
    base = ["attribute", "--address", fake.address, "--quiet", "--source-kind"]
    main([*base, "chat", '[{"role": "user", "content": "Hello"}]'])
    main([*base, "features", str(tmp_path / "features.npy")])
    main([*base, "token_ids", "5 6", "--padding", "mask"])
    chat, features, ids = fake.requests
    assert [(message.role, message.content) for message in chat.source.chat.messages] == [("user", "Hello")]
    assert list(features.source.features.shape) == [2, 3]
    assert (list(ids.source.token_ids.ids), ids.padding) == ([5, 6], text_pb2.PADDING_MASK)


def test_lines_of_token_ids_are_translated_and_a_line_that_is_none_is_named(bundled_server):
    with Client(bundled_server) as client:
        result = client.attribute("Good morning!").result()
    ids = " ".join(str(token.id) for token in result.source)
    arguments = ["--file", "-", "--source-kind", "token_ids", "--quiet", "--address", bundled_server]
    completed = run("attribute", *arguments, stdin=f"{ids}\nfive\n{ids}\n")
    assert (completed.returncode, completed.stdout) == (1, f"{result.text}\n\n{result.text}\n")
    assert completed.stderr.startswith("sidelight: line 2: source.token_ids: must be whole numbers")
