"""Where one kernel makes output and row, as on a GPU, tokens and rows are those of fused attention and rows beside it.

There is no GPU here: what runs is the kernel's reference, in the kernel's place, and no programs for CPUs.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness import CROSS, DECODER_SELF, request, serving, steps_of, stub
from mixed_requests import slots_run
from model_zoo import FAMILIES, SOURCE, build_model
from sidelight.server.api.validation import validate_request
from sidelight.server.capture import attention_function as attention_module
from sidelight.server.models.loader import bundled_model, load
from sidelight.server.request import Step
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import text_pb2 as text

BY_ROWS = [name for name, family in FAMILIES.items() if family.captures_rows]


@pytest.mark.parametrize("name", ["bundled", *BY_ROWS])
def test_tokens_and_rows_are_the_same(name, tmp_path, monkeypatch):
    loaded = load(bundled_model() if name == "bundled" else build_model(name, tmp_path), packed=False)
    kinds = [{"cross": CROSS, "decoder_self": DECODER_SELF}[kind] for kind in loaded.kinds if kind != "encoder_self"]
    decoded = 0
    decode = attention_module.decode

    def counted(*arguments):
        nonlocal decoded
        decoded += 1
        return decode(*arguments)

    monkeypatch.setattr(attention_module, "decode", counted)
    for capture in (
        attention.Capture(kinds=kinds),
        attention.Capture(kinds=kinds, over_heads=attention.REDUCTION_MEAN, over_layers=attention.REDUCTION_L2),
    ):
        message = request(SOURCE, capture=capture, decoding=text.Decoding(max_new_tokens=12, ignore_eos=True))
        with serving(loaded) as address, stub(address) as service:
            beside = steps_of(list(service.Attribute(message, timeout=60)))
            assert not decoded
            with monkeypatch.context() as patch:
                patch.setattr(attention_module, "select_impl", lambda _: "triton")
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


def test_a_batch_of_different_wishes(monkeypatch):
    """A hole among the slots, one who wants no row, and two plans: the kernel runs all the same."""
    loaded = load(bundled_model(), packed=False)
    captures = [{}, {}, {"none": True}, {"over_heads": attention.REDUCTION_MAX}, {}]
    requests = []
    for number, capture in enumerate(captures):
        message = request(SOURCE, capture=attention.Capture(**({"kinds": [CROSS]} | capture)))
        message.decoding.CopyFrom(text.Decoding(max_new_tokens=4 + number, ignore_eos=True))
        if "none" in capture:
            message.capture.CopyFrom(attention.Capture(none=True))
        requests.append(validate_request(message, loaded, str(number)))
    calls = {"decode": 0, "rows": 0, "sdpa_attention_forward": 0, "attend_to": 0}
    counting = False

    def counted(name, function):
        def call(*arguments, **keywords):
            calls[name] += counting
            return function(*arguments, **keywords)

        monkeypatch.setattr(attention_module, name, call)

    for name in calls:
        counted(name, getattr(attention_module, name))

    @torch.inference_mode()
    def steps():
        nonlocal counting
        run = slots_run(loaded, len(requests))
        sequences = run.add_all(requests)
        run.remove(sequences[1])
        counting = True
        run.finish()
        counting = False
        assert not run.faults
        stayed = [run.outputs[sequence] for sequence in (sequences[0], *sequences[2:])]
        return [[output for output in outputs if isinstance(output, Step)] for outputs in stayed]

    beside = steps()
    in_all = calls["attend_to"]
    assert calls == {"decode": 0, "rows": 0, "sdpa_attention_forward": 0, "attend_to": in_all}
    calls.update(dict.fromkeys(calls, 0))
    monkeypatch.setattr(attention_module, "select_impl", lambda _: "triton")
    fused = steps()
    # Cross-attention's output comes from the kernel in every step, the decoder's own from SDPA; rows are made beside
    # the kernel for the other plan alone.
    assert calls["decode"] == calls["sdpa_attention_forward"] == in_all // 2
    assert 0 < calls["rows"] < calls["decode"]
    for ours, theirs in zip(fused, beside, strict=True):
        assert [step.token.id for step in ours] == [step.token.id for step in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert (one.cross is None) == (other.cross is None)
            if one.cross is not None:
                np.testing.assert_allclose(one.cross.values, other.cross.values, atol=1e-5)
