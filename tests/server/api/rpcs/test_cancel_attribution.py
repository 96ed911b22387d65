"""Requests are cancelled by their id, whichever connection they came on."""

from __future__ import annotations

import grpc
import pytest
from follow_driver import FollowDriver, details_of
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from harness import request, stub
from hostile_clients import SENTENCE, long_request
from sidelight.v1 import attribution_service_pb2 as pb


def cancel(service, request_id: str) -> int:
    return service.CancelAttribution(pb.CancelAttributionRequest(request_id=request_id), timeout=60).cancelled


def test_all_requests_of_an_id_end_with_a_reason(bundled_server):
    with stub(bundled_server) as service, stub(bundled_server) as other:
        calls = [service.Attribute(long_request(request_id=name), timeout=60) for name in ("mine", "mine", "yours")]
        for call in calls:
            next(call)
        assert cancel(other, "mine") == 2
        for call in calls[:2]:
            with pytest.raises(grpc.RpcError) as raised:
                list(call)
            assert raised.value.code() == grpc.StatusCode.CANCELLED
            info, status = error_details_pb2.ErrorInfo(), rpc_status.from_call(raised.value)
            assert any(detail.Unpack(info) for detail in status.details)
            assert info.reason == "CANCELLED"
        assert list(calls[2])[-1].HasField("finished")


def test_a_follow_stream_that_waits_ends_with_a_reason(bundled_server):
    with stub(bundled_server) as service, stub(bundled_server) as other:
        driver = FollowDriver(service, request_id="followed")
        driver.add_source(SENTENCE)
        assert cancel(other, "followed") == 1
        with pytest.raises(grpc.RpcError) as raised:
            driver.finish()
        assert raised.value.code() == grpc.StatusCode.CANCELLED
        assert details_of(raised.value)[1] == "CANCELLED"
        with pytest.raises(grpc.RpcError) as raised:
            cancel(other, "followed")
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_an_id_that_nobody_has_is_not_found(bundled_server):
    with stub(bundled_server) as service:
        assert list(service.Attribute(request(SENTENCE, request_id="over"), timeout=60))[-1].HasField("finished")
        for request_id, code in (
            ("over", grpc.StatusCode.NOT_FOUND),
            ("\n" * 100_000, grpc.StatusCode.NOT_FOUND),
            ("", grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                cancel(service, request_id)
            assert raised.value.code() == code
            assert "request_id" in raised.value.details()
