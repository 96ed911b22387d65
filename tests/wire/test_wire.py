"""The server gives the recorded responses to the recorded requests.

All bytes are the same, except the last digits of floating-point numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from exchanges import exchange, read, served
from recorded_answers import assert_alike, assert_all_alike, machine, normal
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as service

RECORDED = read()
TYPES = {"Attribute": service.AttributeResponse, "GetModel": service.GetModelResponse}


@pytest.fixture(scope="module")
def channel(tmp_path_factory) -> Iterator[grpc.Channel]:
    with served(tmp_path_factory.mktemp("zoo")) as channel:
        yield channel


@pytest.mark.parametrize("name", RECORDED.exchanges)
def test_a_response_is_the_recorded_one(channel, name):
    recorded = RECORDED.exchanges[name]
    answer = exchange(channel, recorded.method, recorded.request)
    if answer == recorded:
        return
    assert answer.error == recorded.error
    # On the machine that recorded the responses, only the last bits can differ: a measurement at load chooses between
    # two kernels.
    factor = 0.01 if machine() == RECORDED.machine else 1.0
    parse = TYPES[recorded.method].FromString
    expected = [*map(parse, recorded.responses)]
    if recorded.method == "Attribute":
        expected = normal(expected)  # units were recorded in the messages in which they came
    assert_all_alike([*map(parse, answer.responses)], expected, factor)


def test_the_file_has_sixty_requests_and_errors_among_them():
    assert len(RECORDED.exchanges) >= 60
    errors = [exchange.error for exchange in RECORDED.exchanges.values() if exchange.error]
    assert len(errors) >= 10
    assert all(len(error) > 1 for error in errors)  # a code, and a reason or a field


@pytest.mark.parametrize("field", ["values", "scales", "positions"])
def test_other_numbers_are_not_alike(field):
    """The tolerance is the one of a machine that has not recorded the responses."""
    recorded = RECORDED.exchanges["encoding UINT8, top 3"]
    message = next(
        response.steps.steps[0].cross
        for response in map(service.AttributeResponse.FromString, recorded.responses)
        if response.steps.steps
    )
    other = attention.Attention()
    other.CopyFrom(message)
    assert_alike(other, message)
    setattr(other, field, bytes(len(getattr(message, field))))
    with pytest.raises(AssertionError):
        assert_alike(other, message)
