"""`layout`: the rows of `layout_into` as a tensor of their own, for tests."""

from __future__ import annotations

from collections.abc import Sequence

from attention_cases import poisoned
from sidelight.kernels import Reduction, layout_into
from torch import Tensor


def layout(
    layers: Sequence[Tensor],
    *,
    over_heads: Reduction | None = None,
    over_layers: Reduction | None = None,
    encoding: str = "float32",
    impl: str | None = None,
) -> Tensor:
    """Returns `[B, Q, K, L, H]`; with heads reduced `[B, Q, K, L]`; with layers reduced, too, `[B, Q, K]`."""
    batch, heads, queries, keys = layers[0].shape
    axes = () if over_layers else (len(layers),) if over_heads else (len(layers), heads)
    columns = 1
    for size in axes:
        columns *= size
    out = poisoned(batch, queries, keys, columns, encoding=encoding)
    layout_into(layers, out, over_heads=over_heads, over_layers=over_layers, impl=impl)
    return out.values.view(batch, queries, keys, *axes)
