"""Makes one linear layer of those of an attention that read the same input: queries, keys and values.

One call then does what three did: it reads its input once, and in int8 it quantizes it once. Many families have these
layers under one of a few names, and call them one after another; what their code calls stays where it was, and takes
its part of the one result. Other families stay as they are. A model so changed is for one thread at a time. Knows
attention modules by their sites; knows nothing of kernels, requests or slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# What families call the layers of queries, keys and values.
_NAMES = (("q_proj", "k_proj", "v_proj"), ("q", "k", "v"), ("query", "key", "value"))


class FusedLinear(nn.Module):
    """Linear layers of one input as one: [..., in] to [..., all of out]."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        """The layers' inputs and types are the same, and either all have a bias or none."""
        super().__init__()
        first = layers[0]
        self.sizes = [layer.out_features for layer in layers]
        self.linear: nn.Module = nn.Linear(first.in_features, sum(self.sizes), first.bias is not None, device="meta")
        self.linear.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        if first.bias is not None:
            self.linear.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
        self._given: Tensor | None = None  # what the last result is of
        self._left: dict[int, Tensor] = {}  # parts of it that nobody has taken yet

    def part(self, x: Tensor, place: int) -> Tensor:
        """One layer's result. Those who ask for the others' of the same tensor get theirs from the same call."""
        if self._given is not x or place not in self._left:
            self._given, self._left = None, {}  # should the call fail, nothing is left of another
            self._left = dict(enumerate(self.linear(x).split(self.sizes, -1)))
            self._given = x
        made = self._left.pop(place)
        if not self._left:
            self._given = None  # its memory may go
        return made


class FusedSlice(nn.Module):
    """One of the layers that became a JoinedLinear, to whoever calls it."""

    def __init__(self, joined: FusedLinear, place: int) -> None:
        super().__init__()
        self.joined = joined
        self._place = place

    def forward(self, x: Tensor) -> Tensor:
        """As the layer had it."""
        return self.joined.part(x, self._place)


def fuse_projections(model: nn.Module) -> None:
    """Replaces in place the layers of each attention that has a site: three by one; of a cross-attention, two by one.

    Those stay as they are that are no plain linear layers or do not fit together.
    """
    for module in model.modules():
        site = getattr(module, "sidelight_site", None)
        if site is None:
            continue
        for names in _NAMES:
            read_together = names[1:] if site.kind == "cross" else names
            layers: list[Any] = [getattr(module, name, None) for name in read_together]
            if _fit(layers):
                joined = FusedLinear(layers)
                for place, name in enumerate(read_together):
                    setattr(module, name, FusedSlice(joined, place))
                break


def _fit(layers: Sequence[Any]) -> bool:
    # Not subclasses: what they add to a linear layer nobody knows.
    if any(type(layer) is not nn.Linear for layer in layers):
        return False
    return len({(layer.in_features, layer.bias is None, layer.weight.dtype) for layer in layers}) == 1
