"""Pairs on one stream over a real socket: flow control."""

from __future__ import annotations

import time

import pytest
from harness import stub
from sidelight.server.api.rpcs.many_alignments import ManyAlignments
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text


@pytest.mark.slow
def test_pairs_wait_where_a_client_reads_no_answers(bundled_server, monkeypatch):
    """Each answer is much larger than its request. The server starts few pairs ahead, and loses none."""
    words, count = text.Text(text="a " * 20_000), 100
    start, started = ManyAlignments.start, []

    async def note(self, message, *arguments):
        started.append(message.request_id)
        await start(self, message, *arguments)

    monkeypatch.setattr(ManyAlignments, "start", note)
    names = [str(number) for number in range(count)]
    pairs = (pb.AlignRequest(source=words, target=words, links="0-0", request_id=name) for name in names)
    with stub(bundled_server) as service:
        stream = service.AttributeMany((pb.AttributeManyRequest(align=pair) for pair in pairs), timeout=120)
        num_before = -1
        while num_before != len(started):
            num_before = len(started)
            time.sleep(1)
        # Those whose requests have a mebibyte together, and those whose answers are in the buffers of gRPC.
        assert 1 <= len(started) < 45
        events = [event for response in stream for event in (response.batch.responses or [response])]
    assert started == names
    assert sorted(event.request_id for event in events) == sorted(names)
    assert all(event.alignment.pharaoh == "0-0" for event in events)
