"""Mutated and senseless HTTP/2 frames harm no server, and no answer to them shows its inside.

`soak_frames.py` sends many more.
"""

from __future__ import annotations

import random

import grpc
import pytest
from fuzzing import Fuzzer, call_server, reference_answer
from hostile_frames import HostileConnection
from raw_http2 import RawConnection


@pytest.mark.parametrize("path", ["/\xff/x", "\x83", "/sidelight.v1.AttributionService/Attribut\xe9", "/x/y", ""])
def test_a_path_that_is_no_method_is_refused(bundled_server, path):
    """gRPC's own loop ends at the first path that is not UTF-8, and the server would accept no connection any more."""
    for _ in range(2):
        with RawConnection(bundled_server, window=65_535) as connection:
            stream = connection.begin(path)
            connection.end(stream)
            assert b"Method not found!" in connection.frames_until_closed(stream)
    with grpc.insecure_channel(bundled_server) as channel:
        assert call_server(channel, "/sidelight.v1.AttributionService/ListModels", [b""]) == "OK"


def test_frames_harm_no_server(bundled, bundled_server):
    chance = random.Random(2)
    fuzzer = Fuzzer(bundled, chance)
    calls = [(path, messages[0]) for path, messages in (fuzzer.draw() for _ in range(200))]
    with grpc.insecure_channel(bundled_server) as channel:
        before = reference_answer(channel)
        answers: set[str] = set()
        num_frames = 0
        for _ in range(60):
            connection = HostileConnection(bundled_server, chance, calls)
            connection.run(100)
            num_frames += connection.num_frames
            answers |= set(connection.answers)
        assert num_frames > 1000
        assert {"RstStreamFrame", "OK", "INVALID_ARGUMENT", "UNAVAILABLE"} <= answers
        assert reference_answer(channel) == before
