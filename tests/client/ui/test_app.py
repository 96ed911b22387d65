"""The application of the live page, on its socket: files, guards, streams, results."""

from __future__ import annotations

import http.client
import json
import re
import struct
from contextlib import closing, suppress
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from cli_process import run
from sidelight.client import Capture, Client
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

SENTENCE = "I don't want to be your friend."


def get(url: str, path: str = "/", **headers: str) -> SimpleNamespace:
    """Gets a path: the status, the headers and the body."""
    place = urlsplit(url)
    with closing(http.client.HTTPConnection(place.hostname, place.port, timeout=60)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return SimpleNamespace(status=answer.status, headers=answer.headers, body=answer.read())


def open_stream(url: str, **options):
    place = urlsplit(url)
    options = {"origin": f"http://{place.netloc}", **options}
    return connect(f"ws://{place.netloc}/stream", open_timeout=60, max_size=None, **options)


def read(frame: str | bytes) -> dict:
    """Reads a message as the page does. The arrays of a binary message are its `values`, by kind."""
    if isinstance(frame, str):
        return json.loads(frame)
    (length,) = struct.unpack("<I", frame[:4])
    message = json.loads(frame[4 : 4 + length])
    offset = 4 + length
    assert offset % 2 == 0
    message["values"] = {}
    for array in message["arrays"]:
        count = int(np.prod(array["shape"]))
        message["values"][array["kind"]] = np.frombuffer(frame, "<f2", count, offset).reshape(array["shape"])
        offset += 2 * count
    assert offset == len(frame)
    return message


def exchange(url: str, start: object) -> list[dict]:
    """Sends the first message of a stream. Returns all that comes."""
    messages = []
    with open_stream(url) as socket:
        socket.send(start if isinstance(start, str) else json.dumps(start))
        with suppress(ConnectionClosed):
            while True:
                messages.append(read(socket.recv(timeout=60)))
    return messages


def test_the_page_and_its_files_have_types_and_headers(page_url):
    index = get(page_url)
    text = index.body.decode()
    assert index.status == 200
    for name, kind in [("app.js", "text/javascript"), ("style.css", "text/css"), ("icon.svg", "image/svg+xml")]:
        assert f'"/{name}"' in text
        answer = get(page_url, f"/{name}")
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith(kind)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = index.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|style=|<script(?!( type=\"module\")? src=\"/)| on\w+=|https?://", text)
    assert get(page_url, "/../pyproject.toml").status == get(page_url, "/app.py").status == 404


def test_modules_import_only_files_that_are_served(page_url):
    seen, waiting = set(), ["/app.js"]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        answer = get(page_url, path)
        assert answer.status == 200, path
        found = {f"/{name}" for name in re.findall(r'from "\./([\w.]+)"', answer.body.decode())}
        waiting += found - seen - {*waiting}
    assert len(seen) > 10


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1", "localhost"])
def test_other_hosts_are_refused(page_url, host):
    assert get(page_url, "/models", Host=host).status == 403


def test_pages_of_other_origins_are_refused(page_url):
    for origin in ("https://evil.example", "null"):
        assert get(page_url, "/models", Origin=origin).status == 403
        with pytest.raises(InvalidStatus, match="403"), open_stream(page_url, origin=origin):
            pass
    with pytest.raises(InvalidStatus, match="403"), open_stream(page_url, origin=None):
        pass
    assert get(page_url, "/models", Origin=page_url.rstrip("/")).status == 200


def test_models_say_what_a_server_offers(page_url, bundled_server):
    (message,) = json.loads(get(page_url, "/models").body)
    with Client(bundled_server) as client:
        model = client.get_model()
    assert message["name"] == model.name
    assert message["methods"] == list(model.methods)
    assert message["presets"] == list(model.presets)
    assert message["attentions"]["cross"] == {"layers": 3, "heads": 4}


@pytest.mark.parametrize("kind", ["cross", "decoder_self", "encoder_self"])
def test_a_stream_has_the_numbers_of_the_client(page_url, bundled_server, kind):
    started, *others, finished = exchange(page_url, {"task": "attribute", "source": SENTENCE, "kind": kind})
    with Client(bundled_server) as client:
        result = client.attribute(SENTENCE, capture=Capture(kinds=(kind,)), scores=["probability"]).result()
    steps = [message for message in others if message["event"] == "step"]
    assert "".join(step["text"] for step in steps) == finished["text"] == result.text
    assert [step["scores"]["probability"] for step in steps] == pytest.approx(result.scores["probability"], abs=1e-4)
    assert [token["label"] for token in started["source"]] == [token.label for token in result.source]
    if kind == "encoder_self":
        (matrix,) = [message["values"][kind] for message in others if message["event"] == "encoder_self"]
        np.testing.assert_allclose(matrix, result.encoder_self, atol=1e-3)
    for number, step in enumerate(steps):
        expected = {"cross": result.cross, "decoder_self": result.decoder_self}.get(kind)
        if expected is not None:
            row = step["values"][kind]
            np.testing.assert_allclose(row, expected[: len(row), number], atol=1e-3)


def test_a_preset_has_its_heads_and_weights(page_url):
    start = {"task": "attribute", "source": SENTENCE, "kind": "cross", "preset": "alignment", "links": True}
    started, *steps, finished = exchange(page_url, start)
    layout = started["layouts"]["cross"]
    assert len(layout["pairs"]) == len(layout["weights"]) == steps[0]["values"]["cross"].shape[1]
    assert started["specialTokens"] == "renormalize"
    assert len(finished["alignment"]["links"]) > 5


def test_offsets_are_those_of_javascript(page_url):
    started, *_ = exchange(page_url, {"task": "attribute", "source": "😀 dog", "kind": "none"})
    last = [token for token in started["source"] if not token["special"]][-1]
    assert (last["begin"], last["end"]) == (3, 6)


@pytest.mark.parametrize(
    ("start", "field"),
    [
        ("no JSON", "message"),
        ("[1]", "message"),
        ("[" * 100_000, "message"),
        ({"task": "delete"}, "task"),
        ({"task": "attribute", "sauce": "x"}, "sauce"),
        ({"task": "attribute", "source": ""}, "source.text"),
        ({"task": "attribute", "source": "x", "kind": "sideways"}, "capture.kinds"),
        ({"task": "attribute", "source": "x", "preset": 3}, "preset"),
        ({"task": "attribute", "source": "x", "preset": "wrong"}, "capture.heads.preset"),
        ({"task": "attribute", "source": "x", "model": "unknown"}, "model"),
        ({"task": "attribute", "source": {"a": 1}}, "source"),
        ({"task": "attribute", "source": "x", "target": 5}, "target"),
        ({"task": "attribute", "source": "\ud800"}, "source"),
        ({"task": "align", "source": "x", "markup": "latex"}, "markup.format"),
        ({"task": "follow", "words": 0}, "start.policy.align_att.words"),
        ({"task": "follow", "words": "two"}, "policy.words"),
    ],
    ids=str,
)
def test_errors_name_the_field(page_url, start, field):
    message = exchange(page_url, start)[-1]
    assert message["event"] == "error"
    assert message["field"] == field, message
    assert "Traceback" not in message["message"]


def test_messages_after_the_first_and_binary_ones_are_refused(page_url):
    with open_stream(page_url) as socket:
        socket.send(b"\x00")
        assert read(socket.recv(timeout=60))["field"] == "message"
    with open_stream(page_url) as socket:
        socket.send(json.dumps({"task": "attribute", "source": SENTENCE * 10, "kind": "cross"}))
        socket.send("more")
        messages = [read(socket.recv(timeout=60))]
        while messages[-1]["event"] != "error":
            messages.append(read(socket.recv(timeout=60)))
        assert messages[-1]["field"] == "message"


def test_a_message_that_is_too_large_ends_the_stream(page_url):
    with open_stream(page_url) as socket:
        socket.send("x" * (2 << 20))
        with pytest.raises(ConnectionClosed) as end:
            socket.recv(timeout=60)
    assert end.value.rcvd.code == 1009


def test_a_result_can_be_fetched_as_inseq_and_only_by_its_id(page_url):
    *_, finished = exchange(page_url, {"task": "attribute", "source": SENTENCE, "kind": "cross"})
    answer = get(page_url, f"/results/{finished['result']}.json")
    assert "attachment" in answer.headers["Content-Disposition"]
    assert "FeatureAttributionOutput" in answer.body.decode()
    assert get(page_url, f"/results/{finished['result']}.npz").body[:2] == b"PK"
    assert get(page_url, f"/results/{finished['result']}.exe").status == 404
    assert get(page_url, "/results/unknown.json").status == 404


def test_markup_is_carried_over(page_url):
    (message,) = exchange(page_url, {"task": "align", "source": "My <b>sister</b> is here.", "markup": "html"})
    assert "<b>Schwester</b>" in message["marked"]
    (report,) = message["report"]
    assert message["targetText"][slice(*report["target"])] == "Schwester"


def test_a_text_that_grows_is_committed_and_drafted(page_url):
    with open_stream(page_url) as socket:
        socket.send(json.dumps({"task": "follow", "words": 2, "kind": "cross"}))
        events, draft = [], ""
        for word in ("Where ", "did ", "you ", "buy "):
            socket.send(json.dumps({"add": word}))
            while (message := read(socket.recv(timeout=60)))["event"] != "awaiting":
                events.append(message)
        while not draft:
            message = read(socket.recv(timeout=60))
            draft += message["text"] if message["event"] == "draft" else ""
        socket.send(json.dumps({"add": "that old book?", "done": True}))
        while (message := read(socket.recv(timeout=60)))["event"] != "finished":
            events.append(message)
    steps = [event for event in events if event["event"] == "step"]
    assert "".join(step["text"] for step in steps) == message["text"]
    assert message["text"].startswith("Wo hast du")
    assert not any(step["decision"]["held"] for step in steps)


def test_the_command_says_what_is_wrong():
    public = run("ui", "--listen", "0.0.0.0:0", "--address", "127.0.0.1:1")
    assert public.returncode == 1
    assert "--host" in public.stderr
    assert run("ui", "--listen", "nonsense", "--address", "127.0.0.1:1").stderr.count("not HOST:PORT") == 1
