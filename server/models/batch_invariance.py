"""Keeps a row's numbers apart from those of its neighbours where torch computes a batch, to the bit.

In int8 the linear layers of all rows are exact, whatever the other rows are. The float32 parts between them are not:
torch adds up products of a padded batch in another order than those of a row alone, and some activations round the
numbers at the end of a vector otherwise than those within one. Rounding to int8 then makes a hundredth of a last bit.
So attention of a step is computed for each row with the positions that the row has (see `attention_function.attend`),
and these activations for each sequence alone. Programs need none of this. Knows modules; knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import LinearActivation, NewGELUActivation

# Where families have their activations from.
_ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")
# What torch computes of each number as if it were alone: comparisons, powers and tanh.
_ARE_INVARIANT = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Tanh, NewGELUActivation, LinearActivation, nn.MultiheadAttention)


def separate_activations(model: nn.Module) -> None:
    """Has the activations of a model, `[B, ..., width]`, computed for each of B alone."""
    for module in model.modules():
        if type(module).__module__ in _ACTIVATIONS and not isinstance(module, _ARE_INVARIANT):
            separated: Any = module
            separated.forward = _separated(module.forward)


def _separated(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward_apart(x: Tensor) -> Tensor:
        return forward(x) if len(x) == 1 else torch.cat([forward(row) for row in x.split(1)])

    return forward_apart
