"""FusedLinear: the projections of an attention that read the same input (queries, keys and values) as one linear layer.

One call reads the input once, and in int8 quantizes it once. Many families have these projections under one of a few
names, and call them one after another. What their code calls stays in place as a `FusedSlice`. Other families stay as
they are. A model with fused projections is for one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..capture import layer_key_of

# The names of the projections of queries, keys and values in different families.
_NAMES = (("q_proj", "k_proj", "v_proj"), ("q", "k", "v"), ("query", "key", "value"))


class FusedLinear(nn.Module):
    """Linear layers of one input as one: [..., in] to [..., sum of all out]."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        """The layers have the same input size and type, and either all have a bias or none has."""
        super().__init__()
        first = layers[0]
        self.sizes = [layer.out_features for layer in layers]
        self.linear: nn.Module = nn.Linear(first.in_features, sum(self.sizes), first.bias is not None, device="meta")
        self.linear.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        if first.bias is not None:
            self.linear.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
        self._input: Tensor | None = None  # of the last call
        self._slices: dict[int, Tensor] = {}  # slices of the result that `slice_of` has not returned

    def slice_of(self, x: Tensor, index: int) -> Tensor:
        """The result `[..., out]` of one of the layers. The results of all layers for `x` come from one call.

        The cache knows its input by object identity: a call with another tensor, or for a slice that was returned
        before, computes anew. It would be wrong if code changed `x` in place between the projections. No family does,
        and the backend's verification at load would show it.
        """
        if self._input is not x or index not in self._slices:
            self._input, self._slices = None, {}  # if the call raises, no result of another input stays
            self._slices = dict(enumerate(self.linear(x).split(self.sizes, -1)))
            self._input = x
        result = self._slices.pop(index)
        if not self._slices:
            self._input = None  # frees its memory
        return result


class FusedSlice(nn.Module):
    """Stands where one of the layers of a FusedLinear stood."""

    def __init__(self, fused: FusedLinear, index: int) -> None:
        super().__init__()
        self.fused = fused
        self._index = index

    def forward(self, x: Tensor) -> Tensor:
        """The result of the layer, [..., in] to [..., out]."""
        return self.fused.slice_of(x, self._index)


def fuse_projections(model: nn.Module) -> None:
    """Replace in place the projections of each attention that has a `LayerKey`: three by one; in cross-attention two.

    In cross-attention, keys and values read the source, and queries the target. Projections that are no plain linear
    layers, or that do not fit together, stay as they are.
    """
    for module in model.modules():
        key = layer_key_of(module)
        if key is None:
            continue
        for names in _NAMES:
            same_input = names[1:] if key.kind == "cross" else names
            layers: list[Any] = [getattr(module, name, None) for name in same_input]
            if _fit_together(layers):
                fused = FusedLinear(layers)
                for index, name in enumerate(same_input):
                    setattr(module, name, FusedSlice(fused, index))
                break


def _fit_together(layers: Sequence[Any]) -> bool:
    # Subclasses stay: they may add to a linear layer.
    if any(type(layer) is not nn.Linear for layer in layers):
        return False
    return len({(layer.in_features, layer.bias is None, layer.weight.dtype) for layer in layers}) == 1
