"""Positions of its own for each row of a batch, in families whose code expects one for all.

In a step of slots at different lengths, a cache's length is a tensor `[rows, 1]`. Marian and Pegasus take it as it is,
decoder-only models are given `position_ids`; BART, mBART, M2M100 and T5 with their kin need the methods below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.mbart.modeling_mbart import MBartLearnedPositionalEmbedding
from transformers.models.mt5.modeling_mt5 import MT5Attention
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.umt5.modeling_umt5 import UMT5Attention


def take_rows(model: nn.Module) -> None:
    """Makes the modules of a model take positions for each row. What they do otherwise stays as it is."""
    for module in model.modules():
        if isinstance(module, (BartLearnedPositionalEmbedding, MBartLearnedPositionalEmbedding)):
            module.forward = _learned(module)
        elif isinstance(module, M2M100SinusoidalPositionalEmbedding):
            module.forward = _sinusoidal(module)
        elif isinstance(module, (T5Attention, MT5Attention, UMT5Attention)) and module.has_relative_attention_bias:
            module.compute_bias = _relative(module)


def _learned(module: nn.Module) -> Callable[..., Tensor]:
    """BART's table, called with ids `[T]` or, by us, `[rows, 1]`."""
    forward: Callable[..., Tensor] = module.forward

    def rows(input_ids: Tensor, past_key_values_length: Any = 0, position_ids: Tensor | None = None) -> Tensor:
        made = forward(input_ids, past_key_values_length, position_ids=position_ids)
        return made[0] if position_ids is not None and position_ids.dim() == 2 else made

    return rows


def _sinusoidal(module: Any) -> Callable[..., Tensor]:
    """M2M100's table, which looks whether it is long enough; requests are not let in that are longer."""
    forward: Callable[..., Tensor] = module.forward
    # It grows with longer texts where it begins late, behind the padding's place: ours cannot, in a step.
    if (late := module.padding_idx + 1 - module.offset) > 0:
        module.make_weights(module.weights.size(0) + late, module.embedding_dim, module.padding_idx)

    def rows(input_ids: Tensor, inputs_embeds: Tensor | None = None, past_key_values_length: Any = 0) -> Tensor:
        if not isinstance(past_key_values_length, Tensor):
            return forward(input_ids, inputs_embeds, past_key_values_length)
        ids = module.create_position_ids_from_input_ids(input_ids, module.padding_idx, past_key_values_length)
        return module.weights[ids]

    return rows


def _relative(module: Any) -> Callable[..., Tensor]:
    """T5's biases `[1, H, T, S]`, for rows `[rows, H, 1, S]`: laid along queries, since each stands elsewhere."""
    compute: Callable[..., Tensor] = module.compute_bias

    def rows(
        query_length: int, key_length: int, device: torch.device | None = None, past_seen_tokens: Any = 0
    ) -> Tensor:
        made = compute(query_length, key_length, device=device, past_seen_tokens=past_seen_tokens)
        return made.permute(2, 1, 0, 3) if isinstance(past_seen_tokens, Tensor) else made

    return rows
