"""The reductions mean what Inseq's aggregation functions mean."""

from __future__ import annotations

import pytest
import torch
from layouts import layout
from sidelight.kernels import REDUCTIONS, Reduction

# Without the whole of inseq, which is slow to import and loads plotting.
pytest.importorskip("inseq")
from inseq.data.aggregation_functions import AggregationFunction

NAMES = {**{name: name for name in REDUCTIONS}, "l2": "vnorm"}


@pytest.mark.covering(2)
@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("over_layers", [None, *REDUCTIONS])
@pytest.mark.parametrize("over_heads", REDUCTIONS)
def test_same_as_inseq(over_heads: Reduction, over_layers: Reduction | None, impl: str) -> None:
    functions = AggregationFunction.available_classes()
    generator = torch.Generator().manual_seed(7)
    layers = [torch.randn(1, 6, 5, 19, generator=generator) for _ in range(4)]
    layers[0][:, 2, 3] = 0
    layers[1][:, :, 3] = 0
    if over_heads == "absmax":
        layers[2][:, 1, 0, :4] = float("nan")
    expected = functions[NAMES[over_heads]]()(torch.stack(layers, 3).permute(0, 2, 4, 3, 1), -1)  # [B, Q, K, L]
    if over_layers is not None:
        expected = functions[NAMES[over_layers]]()(expected, -1)
    ours = layout(layers, over_heads=over_heads, over_layers=over_layers, impl=impl)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
