"""Each recorded request gets the recorded responses: to the byte, but for the last digits of floating-point numbers."""

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
    got = exchange(channel, recorded.method, recorded.request)
    if got == recorded:
        return
    assert got.error == recorded.error
    assert len(got.responses) == len(recorded.responses)
    # On the machine that recorded them, only the last bits differ: a measurement at load chooses between two kernels.
    factor = 0.01 if machine() == RECORDED.machine else 1.0
    for mine, theirs in zip(got.responses, recorded.responses, strict=True):
        kind = TYPES[recorded.method]
        assert_alike(kind.FromString(mine), kind.FromString(theirs), factor)


def test_the_file_has_sixty_requests_and_errors_among_them():
    assert len(RECORDED.exchanges) >= 60
    errors = [each for each in RECORDED.exchanges.values() if each.error]
    assert len(errors) >= 10
    assert all(len(each.error) > 1 for each in errors)  # a code, and what it is about


def assert_alike(mine: Message, theirs: Message, factor: float = 1.0) -> None:
    """Other processors and libraries add in another order: floating-point numbers may differ in the fifth digit.

    Where `factor` is less, in as much less.
    """
    if isinstance(mine, attention.Attention) and isinstance(theirs, attention.Attention):
        assert (mine.shape, mine.encoding, mine.positions) == (theirs.shape, theirs.encoding, theirs.positions)
        # A number between two bytes, or between two of float16, may become either.
        step = 1 if mine.encoding == attention.ENCODING_UINT8 else 2e-5 * factor
        relative = 1e-3 if mine.encoding == attention.ENCODING_FLOAT16 else 1e-3 * factor
        np.testing.assert_allclose(numbers(mine), numbers(theirs), rtol=relative, atol=step)
        scales = (np.frombuffer(message.scales, "<f4") for message in (mine, theirs))
        np.testing.assert_allclose(*scales, rtol=1e-3 * factor, atol=1e-7)
        return
    assert [field.name for field, _ in mine.ListFields()] == [field.name for field, _ in theirs.ListFields()]
    for (field, value), (_, other) in zip(mine.ListFields(), theirs.ListFields(), strict=True):
        pairs = zip(value, other, strict=True) if field.is_repeated else [(value, other)]
        for each, expected in pairs:
            if isinstance(each, Message):
                assert_alike(each, expected, factor)
            elif isinstance(each, float):
                assert math.isclose(each, expected, rel_tol=1e-3 * factor, abs_tol=1e-4 * factor), field.name
            else:
                assert each == expected, field.name


@pytest.mark.parametrize("field", ["values", "scales", "positions"])
def test_other_numbers_are_not_alike(field):
    """Of a machine that has not recorded them."""
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
    """The numbers of an attention; bytes as they are, without their scales."""
    return np.frombuffer(message.values, NUMBERS[message.encoding]).astype(np.float64)
