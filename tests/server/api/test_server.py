"""The server refuses messages and metadata that are too large."""

from __future__ import annotations

import grpc
import pytest
from harness import request, stub
from hostile_clients import EXHAUSTED
from sidelight.v1 import attribution_service_pb2 as pb


def test_a_message_beyond_the_limit_is_refused(bundled_server):
    with stub(bundled_server) as service, pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(request("x" * (4 * 1024**2 + 1)), timeout=60))
    assert raised.value.code() == EXHAUSTED


@pytest.mark.parametrize("entries", [[("x", "y" * 20_000)], [(f"x{number}", "y" * 900) for number in range(40)]])
def test_metadata_beyond_the_limit_are_refused(bundled_server, entries):
    with stub(bundled_server) as service:
        assert service.ListModels(pb.ListModelsRequest(), timeout=60, metadata=[("x", "y" * 12_000)]).models
        with pytest.raises(grpc.RpcError) as raised:
            service.ListModels(pb.ListModelsRequest(), timeout=60, metadata=entries)
    assert raised.value.code() == EXHAUSTED
