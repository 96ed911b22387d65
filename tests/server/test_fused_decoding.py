"""Where one kernel makes output and row, as on a GPU, tokens and rows are those of fused attention and rows beside it.

There is no GPU here: what runs is the kernel's reference, in the kernel's place.
"""

from __future__ import annotations

import numpy as np
import pytest
from harness import CROSS, DECODER_SELF, request, serving, steps_of, stub
from model_zoo import FAMILIES, SOURCE, build_model
from sidelight.server import attention as attention_module
from sidelight.server.models import bundled_model, load
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import text_pb2 as text

BY_ROWS = [name for name, family in FAMILIES.items() if family.by_rows]


@pytest.mark.parametrize("name", ["bundled", *BY_ROWS])
def test_tokens_and_rows_are_the_same(name, tmp_path, monkeypatch):
    loaded = load(bundled_model() if name == "bundled" else build_model(name, tmp_path))
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
                patch.setattr(attention_module, "choose", lambda _: "triton")
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
