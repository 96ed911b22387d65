"""Positions for each row of a batch, in families whose code expects one position for all rows.

In a step, slots are at different lengths, so the length of the cache is a tensor `[rows, 1]`. Marian, Pegasus and
Blenderbot take the tensor as it is, and other models take position ids. BART's relatives and the families of T5 need
the replacements below. Modules are known by the names of their classes: an import of all these families takes longer
than the start of a small model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_LEARNED = {
    "BartLearnedPositionalEmbedding",
    "MBartLearnedPositionalEmbedding",
    "PLBartLearnedPositionalEmbedding",
}
_SINUSOIDAL = {"M2M100SinusoidalPositionalEmbedding"}
_RELATIVE = {"T5Attention", "MT5Attention", "UMT5Attention"}


def accept_row_positions(model: nn.Module) -> None:
    """Make the modules of a model accept a position for each row. All other calls give what they gave before."""
    for module in model.modules():
        name: str = type(module).__name__
        replaced: Any = module
        if name in _LEARNED:
            replaced.forward = _learned(module)
        elif name in _SINUSOIDAL:
            replaced.forward = _sinusoidal(module)
        elif name in _RELATIVE and replaced.has_relative_attention_bias:
            replaced.compute_bias = _relative(module)


def _learned(module: nn.Module) -> Callable[..., Tensor]:
    """BART's table of positions. The model calls it with position ids `[T]`, a backend with `[rows, 1]`."""
    original: Callable[..., Tensor] = module.forward

    def forward(input_ids: Tensor, past_key_values_length: Any = 0, position_ids: Tensor | None = None) -> Tensor:
        embedded = original(input_ids, past_key_values_length, position_ids=position_ids)
        return embedded[0] if position_ids is not None and position_ids.dim() == 2 else embedded

    return forward


def _sinusoidal(module: Any) -> Callable[..., Tensor]:
    """M2M100's table of positions, without a check of its length: requests that are longer are refused before."""
    original: Callable[..., Tensor] = module.forward
    # Positions begin behind the place of the padding. If they begin late, the original grows the table for longer
    # texts, which a step cannot do. So the table grows here.
    if (late := module.padding_idx + 1 - module.offset) > 0:
        module.make_weights(module.weights.size(0) + late, module.embedding_dim, module.padding_idx)

    def forward(input_ids: Tensor, inputs_embeds: Tensor | None = None, past_key_values_length: Any = 0) -> Tensor:
        if not isinstance(past_key_values_length, Tensor):
            return original(input_ids, inputs_embeds, past_key_values_length)
        ids = module.create_position_ids_from_input_ids(input_ids, module.padding_idx, past_key_values_length)
        return module.weights[ids]

    return forward


def _relative(module: Any) -> Callable[..., Tensor]:
    """T5's biases `[1, H, T, S]`. For rows they are `[rows, H, 1, S]`: each row is at another query position."""
    original: Callable[..., Tensor] = module.compute_bias

    def compute_bias(
        query_length: int, key_length: int, device: torch.device | None = None, past_seen_tokens: Any = 0
    ) -> Tensor:
        bias = original(query_length, key_length, device=device, past_seen_tokens=past_seen_tokens)
        return bias.permute(2, 1, 0, 3) if isinstance(past_seen_tokens, Tensor) else bias

    return compute_bias
