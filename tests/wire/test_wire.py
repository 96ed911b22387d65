"""The server gives the recorded responses to the recorded requests.

All bytes are the same, except the last digits of floating-point numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from exchanges import exchange, machine, read, served
from google.protobuf.message import Message
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as service

RECORDED = read()
TYPES = {"Attribute": service.AttributeResponse, "GetModel": service.GetModelResponse}
NUMBERS = {attention.ENCODING_FLOAT32: "<f4", attention.ENCODING_FLOAT16: "<f2", attention.ENCODING_UINT8: "u1"}


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
    assert len(answer.responses) == len(recorded.responses)
    # On the machine that recorded the responses, only the last bits can differ: a measurement at load chooses between
    # two kernels.
    factor = 0.01 if machine() == RECORDED.machine else 1.0
    for response, expected in zip(answer.responses, recorded.responses, strict=True):
        message_type = TYPES[recorded.method]
        assert_alike(message_type.FromString(response), message_type.FromString(expected), factor)


def test_the_file_has_sixty_requests_and_errors_among_them():
    assert len(RECORDED.exchanges) >= 60
    errors = [exchange.error for exchange in RECORDED.exchanges.values() if exchange.error]
    assert len(errors) >= 10
    assert all(len(error) > 1 for error in errors)  # a code, and a reason or a field


def assert_alike(message: Message, expected: Message, factor: float = 1.0) -> None:
    """Compares two messages. Floating-point numbers may differ in the fifth digit; `factor` scales the tolerance.

    Other processors and libraries add in another order.
    """
    if isinstance(message, attention.Attention) and isinstance(expected, attention.Attention):
        assert (message.shape, message.encoding, message.positions) == (
            expected.shape,
            expected.encoding,
            expected.positions,
        )
        # A number between two bytes, or between two numbers of float16, may be rounded to either.
        step = 1 if message.encoding == attention.ENCODING_UINT8 else 2e-5 * factor
        relative = 1e-3 if message.encoding == attention.ENCODING_FLOAT16 else 1e-3 * factor
        np.testing.assert_allclose(numbers(message), numbers(expected), rtol=relative, atol=step)
        scales, expected_scales = (np.frombuffer(values.scales, "<f4") for values in (message, expected))
        np.testing.assert_allclose(scales, expected_scales, rtol=1e-3 * factor, atol=1e-7)
        return
    assert [field.name for field, _ in message.ListFields()] == [field.name for field, _ in expected.ListFields()]
    for (field, value), (_, expected_value) in zip(message.ListFields(), expected.ListFields(), strict=True):
        pairs = zip(value, expected_value, strict=True) if field.is_repeated else [(value, expected_value)]
        for item, expected_item in pairs:
            if isinstance(item, Message):
                assert_alike(item, expected_item, factor)
            elif isinstance(item, float):
                assert math.isclose(item, expected_item, rel_tol=1e-3 * factor, abs_tol=1e-4 * factor), field.name
            elif field.name != "word_boundaries":  # depends on the libraries that are installed
                assert item == expected_item, field.name


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


def numbers(message: attention.Attention) -> np.ndarray:
    """The numbers of an attention message; bytes without their scales."""
    return np.frombuffer(message.values, NUMBERS[message.encoding]).astype(np.float64)
