"""One kernel makes output and rows, as on a GPU: tokens and rows are those of two separate kernels.

There is no GPU here: the kernel's reference runs in the kernel's place, without programs for CPUs.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from combinations import slow_except
from harness import CROSS, DECODER_SELF, request, serving, steps_of, stub
from mixed_requests import slots_run
from model_zoo import FAMILIES, SOURCE, build_model
from sidelight.server.api.validation import validate_request
from sidelight.server.capture import attention_function
from sidelight.server.models.loader import LoadedModel, bundled_model, load
from sidelight.server.request import Request, Step
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import text_pb2 as text

BY_ROWS = [name for name, family in FAMILIES.items() if family.captures_rows]


@pytest.mark.parametrize("name", slow_except(["bundled", *BY_ROWS], {"bundled", "t5", "gemma3"}))
def test_tokens_and_rows_are_the_same(name, tmp_path, monkeypatch):
    loaded = load(bundled_model() if name == "bundled" else build_model(name, tmp_path), packed=False)
    kinds = [{"cross": CROSS, "decoder_self": DECODER_SELF}[kind] for kind in loaded.kinds if kind != "encoder_self"]
    decoded = 0
    decode = attention_function.decode

    def counted(*arguments):
        nonlocal decoded
        decoded += 1
        return decode(*arguments)

    monkeypatch.setattr(attention_function, "decode", counted)
    for capture in (
        attention.Capture(kinds=kinds),
        attention.Capture(kinds=kinds, over_heads=attention.REDUCTION_MEAN, over_layers=attention.REDUCTION_L2),
    ):
        message = request(SOURCE, capture=capture, decoding=text.Decoding(max_new_tokens=12, ignore_eos=True))
        with serving(loaded) as address, stub(address) as service:
            beside = steps_of(list(service.Attribute(message, timeout=60)))
            assert not decoded
            with monkeypatch.context() as patch:
                patch.setattr(attention_function, "select_impl", lambda _: "triton")
                fused = steps_of(list(service.Attribute(message, timeout=60)))
        assert decoded > 11
        decoded = 0
        assert [step.token.id for step in fused] == [step.token.id for step in beside]
        for one, other in zip(fused, beside, strict=True):
            for kind in ("cross", "decoder_self"):
                np.testing.assert_allclose(
                    np.frombuffer(getattr(one, kind).values, "<f4"),
                    np.frombuffer(getattr(other, kind).values, "<f4"),
                    atol=1e-5,
                )


class CallCounter:
    """Counts the calls of attention functions, while it is on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.calls = dict.fromkeys(names, 0)
        self.is_on = False
        for name in names:
            monkeypatch.setattr(attention_function, name, self._counted(name, getattr(attention_function, name)))

    def _counted(self, name: str, function):
        def call(*arguments, **keywords):
            self.calls[name] += self.is_on
            return function(*arguments, **keywords)

        return call


@torch.inference_mode()
def decode_all(loaded: LoadedModel, requests: list[Request], counter: CallCounter) -> list[list[Step]]:
    """The steps of all requests but the second, which is removed at once: its slot is free between the others'."""
    run = slots_run(loaded, len(requests))
    sequences = run.add_all(requests)
    run.remove(sequences[1])
    counter.is_on = True
    run.finish()
    counter.is_on = False
    assert not run.faults
    outputs = [run.outputs[sequence] for sequence in (sequences[0], *sequences[2:])]
    return [[output for output in of_sequence if isinstance(output, Step)] for of_sequence in outputs]


def test_a_batch_of_different_captures(monkeypatch):
    """A free slot between others, a request without rows, and two plans: the kernel runs all the same."""
    loaded = load(bundled_model(), packed=False)
    captures = [{}, {}, {"none": True}, {"over_heads": attention.REDUCTION_MAX}, {}]
    requests = []
    for number, capture in enumerate(captures):
        message = request(SOURCE, capture=attention.Capture(**({"kinds": [CROSS]} | capture)))
        message.decoding.CopyFrom(text.Decoding(max_new_tokens=4 + number, ignore_eos=True))
        if "none" in capture:
            message.capture.CopyFrom(attention.Capture(none=True))
        requests.append(validate_request(message, loaded, str(number)))
    counter = CallCounter(monkeypatch, "decode", "rows", "sdpa_attention_forward", "attend_to")
    calls = counter.calls
    beside = decode_all(loaded, requests, counter)
    num_attentions = calls["attend_to"]
    assert calls == {"decode": 0, "rows": 0, "sdpa_attention_forward": 0, "attend_to": num_attentions}
    calls.update(dict.fromkeys(calls, 0))
    monkeypatch.setattr(attention_function, "select_impl", lambda _: "triton")
    fused = decode_all(loaded, requests, counter)
    # Cross-attention's output comes from the kernel in every step, and decoder self-attention's from SDPA. Only the
    # rows of the second plan come from a further kernel.
    assert calls["decode"] == calls["sdpa_attention_forward"] == num_attentions // 2
    assert 0 < calls["rows"] < calls["decode"]
    for ours, theirs in zip(fused, beside, strict=True):
        assert [step.token.id for step in ours] == [step.token.id for step in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert (one.cross is None) == (other.cross is None)
            if one.cross is not None:
                np.testing.assert_allclose(one.cross.values, other.cross.values, atol=1e-5)
