"""The attention of one step over slots, outside of any program: grouped heads, biases, soft caps, first keys."""

from __future__ import annotations

import pytest
import torch
from sidelight.kernels import AttentionParams, attend_to
from sidelight.kernels.cpu import attend_slots, is_supported

pytestmark = pytest.mark.skipif(not is_supported(), reason="no programs on this machine")


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"softcap": 2.0}, {"window": 3}, {"group": 2}])
@pytest.mark.parametrize(("size", "width", "value_width"), [(1, 1, 1), (16, 15, 17), (65, 33, 16), (129, 64, 80)])
def test_each_slot_sees_its_keys(options, size, width, value_width):
    heads = 4
    lengths = torch.tensor([1, size, (size + 1) // 2])
    query, key = torch.randn(3, heads, 1, width), torch.randn(3, heads // options.get("group", 1), size, width)
    value = torch.randn(3, key.shape[1], size, value_width)
    places = torch.arange(size)
    seen = places < lengths[:, None]
    if "window" in options:
        seen &= places >= lengths[:, None] - options["window"]
    bias = torch.randn(1, heads, 1, size) if "bias" in options else None
    params = AttentionParams(width**-0.5, options.get("softcap"), bias, seen[:, None, None])
    made = attend_slots(query, key, value, params, lengths)
    for ours, theirs in zip(made, attend_to(query, key, value, params), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
