"""Batch invariance in int8: no row of a batch changes a bit of another row, where torch computes the batch.

In int8, linear layers are exact for every row, whatever the other rows are. The float32 parts between them are not.
torch sums the products of a padded batch in another order than the products of one row, and some activations round the
numbers at the end of a vector in another way than the numbers within. The rounding to int8 then turns a last bit into
a hundredth. So the attention of a step is computed for each row over the row's own positions (see
`attention_function.attend`), and these activations for each sequence alone. CPU programs need none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import LinearActivation, NewGELUActivation

# The modules in which torch and transformers define activations.
_ACTIVATION_MODULES = ("torch.nn.modules.activation", "transformers.activations")
# What torch computes for each number as if the number were alone: comparisons, powers and tanh.
_INVARIANT = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Tanh, NewGELUActivation, LinearActivation, nn.MultiheadAttention)


def separate_activations(model: nn.Module) -> None:
    """Make the activations of a model, `[B, ..., width]`, compute each of B alone."""
    for module in model.modules():
        if type(module).__module__ in _ACTIVATION_MODULES and not isinstance(module, _INVARIANT):
            activation: Any = module
            activation.forward = _row_by_row(module.forward)


def _row_by_row(original: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return original(x) if len(x) == 1 else torch.cat([original(row) for row in x.split(1)])

    return forward
