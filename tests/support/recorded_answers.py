"""What recorded answers have in common: answers without what depends on time, and answers that are alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from google.protobuf.message import Message
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as service

NUMBERS = {attention.ENCODING_FLOAT32: "<f4", attention.ENCODING_FLOAT16: "<f2", attention.ENCODING_UINT8: "u1"}


def normal(
    responses: Iterable[service.AttributeResponse], steps_of_a_message: int = 1
) -> list[service.AttributeResponse]:
    """The responses of a stream with so many steps and one unit in each message, and without durations.

    How many steps and units a server sends together depends on time.
    """
    normalized: list[service.AttributeResponse] = []
    for response in responses:
        event = response.WhichOneof("event")
        if event == "steps":
            for step in response.steps.steps:
                is_open = bool(normalized) and 0 < len(normalized[-1].steps.steps) < steps_of_a_message
                if not is_open:
                    normalized.append(service.AttributeResponse())
                normalized[-1].steps.steps.append(step)
            continue
        if event == "units":
            normalized.extend(service.AttributeResponse(units=service.Units(units=[u])) for u in response.units.units)
            continue
        if event == "finished":
            clear_times(response.finished.usage)
        normalized.append(response)
    return normalized


def clear_times(usage: service.Usage) -> None:
    """Removes the durations of what a request cost."""
    for field in ("queue_time", "time_to_first_step", "total_time"):
        usage.ClearField(field)


def machine() -> dict[str, str]:
    """The properties of a machine on which the last bits of floating-point numbers depend."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def assert_all_alike(messages: Sequence[Message], expected: Sequence[Message], factor: float = 1.0) -> None:
    """Compares two answers, message by message: see `assert_alike`."""
    assert len(messages) == len(expected)
    for message, expected_message in zip(messages, expected, strict=True):
        assert_alike(message, expected_message, factor)


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


def numbers(message: attention.Attention) -> np.ndarray:
    """The numbers of an attention message; bytes without their scales."""
    return np.frombuffer(message.values, NUMBERS[message.encoding]).astype(np.float64)
