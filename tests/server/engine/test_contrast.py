"""Requests with a contrast take two slots of a server: they wait for both, and are refused where there is one."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from harness import serving, wait_until
from sidelight.client import Client, Contrast, Decoding, ResourceExhaustedError
from sidelight.server.engine import output_queue
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.engine.request_state import RequestState

SENTENCES = ["He is my friend.", "Where is the nearest train station?", "I don't want to be your friend."]
CONTRAST = Contrast(source="She is my friend.")


def attribute(client: Client, number: int):
    options = {"scores": ["pcxmi"], "contrast": CONTRAST} if number % 2 else {"scores": ["probability"]}
    return client.attribute(SENTENCES[number % 3], timeout=120, **options)


@pytest.mark.parametrize("max_running", [2, 3])
def test_they_share_a_few_slots_with_others(bundled, bundled_server, max_running):
    with Client(bundled_server) as client:
        expected = [attribute(client, number).result() for number in range(6)]
    with serving(bundled, limits=EngineConfig(max_running=max_running)) as address, Client(address) as client:
        streams = [attribute(client, number) for number in range(12)]
        for number, stream in enumerate(streams):
            ours, theirs = stream.result(), expected[number % 6]
            assert ours.text == theirs.text
            for name in theirs.scores:
                np.testing.assert_allclose(ours.scores[name], theirs.scores[name], rtol=1e-4, atol=1e-4)


def test_a_server_of_one_slot_refuses_them_and_serves_others(bundled):
    with serving(bundled, limits=EngineConfig(max_running=1)) as address, Client(address) as client:
        with pytest.raises(ResourceExhaustedError) as raised:
            attribute(client, 1).result()
        assert raised.value.field == "contrast"
        assert "2 slots" in str(raised.value)
        given = client.attribute(SENTENCES[0], target="Er ist mein Freund.", scores=["pcxmi"], contrast=CONTRAST)
        assert len(given.result().scores["pcxmi"]) == 6
        assert attribute(client, 0).result().text


def test_two_slow_readers_give_way_to_one_request_and_go_on(bundled, engines, monkeypatch):
    monkeypatch.setattr(output_queue, "CAPACITY", 2048)
    monkeypatch.setattr(RequestState.is_slow, "__defaults__", (0.02,))
    options = {"decoding": Decoding(max_new_tokens=60, ignore_eos=True), "scores": ["kl_divergence"]}
    with serving(bundled, limits=EngineConfig(max_running=2)) as address:
        narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1)]
        with Client(address, options=narrow) as slow, Client(address) as client:
            whole = client.attribute(SENTENCES[0], contrast=CONTRAST, **options).result()
            stalled = slow.attribute(SENTENCES[0], contrast=CONTRAST, **options)
            next(iter(stalled))
            done = threading.Event()

            def read() -> None:
                for _ in range(3):
                    client.attribute(SENTENCES[1], contrast=CONTRAST, **options).result()
                done.set()

            thread = threading.Thread(target=read)
            thread.start()
            wait_until(done.is_set)
            thread.join()
            np.testing.assert_allclose(
                stalled.result().scores["kl_divergence"], whole.scores["kl_divergence"], rtol=1e-4, atol=1e-4
            )
        core = engines[0]._core
        wait_until(lambda: core.requests.runner.num_free_slots == 2)


def test_a_cancelled_request_gives_both_slots_back(bundled, engines):
    decoding = Decoding(max_new_tokens=200, ignore_eos=True)
    with serving(bundled, limits=EngineConfig(max_running=2)) as address, Client(address) as client:
        with client.attribute(SENTENCES[0], contrast=CONTRAST, scores=["pcxmi"], decoding=decoding) as stream:
            next(iter(stream))
        wait_until(lambda: engines[0]._core.requests.runner.num_free_slots == 2)
        assert attribute(client, 1).result().text
