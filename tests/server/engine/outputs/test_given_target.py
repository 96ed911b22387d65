"""A long given target comes over the socket in the steps of one pass, while other requests go on between its passes."""

from __future__ import annotations

import numpy as np
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, serving, steps_of, stub
from sidelight.server.runner import single_sequence
from sidelight.server.runner.targets import target_pass
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import text_pb2 as text

TARGET = "Meine Großmutter ist alt, und mein Hund ist klein. " * 3


def test_parts_are_the_same_stream(bundled, monkeypatch):
    kinds = [CROSS, DECODER_SELF, ENCODER_SELF]
    messages = [request("My grandmother is old.", kinds, given=text.Text(text=TARGET), scores=[1, 3])]
    messages.append(request("My grandmother is old.", kinds, given=text.Text(text=TARGET)))
    messages[1].capture.steps.CopyFrom(attention.StepSpan(begin=9, end=12))
    messages.append(request("My dog.", kinds, decoding=text.Decoding(max_new_tokens=9, ignore_eos=True)))
    with serving(bundled) as address, stub(address) as service:
        expected = [list(service.Attribute(message, timeout=60)) for message in messages]
        monkeypatch.setattr(target_pass, "_PASS_TOKENS", 6)
        monkeypatch.setattr(single_sequence, "MAX_PART_BYTES", 200)
        calls = [service.Attribute(message, timeout=60) for message in messages * 3]
        answers = [list(call) for call in calls]
    for number, answer in enumerate(answers):
        same = expected[number % 3]
        assert answer[-1].finished.text == same[-1].finished.text
        rows, others = (
            [event.encoder_self.attention for event in events if event.HasField("encoder_self")]
            for events in (answer, same)
        )
        assert len(rows) > len(others)
        assert numbers(rows).size == numbers(others).size > 0
        np.testing.assert_allclose(numbers(rows), numbers(others), atol=1e-6)
        steps = steps_of(answer)
        assert [step.token for step in steps] == [step.token for step in steps_of(same)]
        for step, other in zip(steps, steps_of(same), strict=True):
            assert step.text == other.text
            np.testing.assert_allclose(step.scores, other.scores, rtol=1e-4)
            for field in ("cross", "decoder_self"):
                ours, theirs = getattr(step, field), getattr(other, field)
                assert ours.shape == theirs.shape
                np.testing.assert_allclose(numbers([ours]), numbers([theirs]), atol=1e-5)
        if number % 3 == 1:
            assert [step.index for step in steps if step.HasField("cross")] == [9, 10, 11]


def numbers(messages) -> np.ndarray:
    return np.concatenate([np.frombuffer(message.values, "<f4") for message in messages])
