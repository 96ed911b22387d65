"""Attention of families whose modules do not call transformers' attention interface: they call `attend` instead.

BLOOM, Falcon and MPT, and GPT-J before transformers 5.24. Attention modules are known by the names of their classes: an
import of all these families takes longer than the start of a small model. ALiBi is Press et al. 2022, arXiv:2108.12409.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .attention_function import NAME, WHOLE_MASKS, attend

_MISSING = object()

# Returns the bias `[1 or B, H, 1, S]` of as many keys, from a mask `[B, 1, T, S]` of the keys that queries see.
_Bias = Callable[[int, "Tensor | None"], Tensor]


class Adaptation:
    """What `adapt_attention` has replaced in a model."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, object]] = []

    def __bool__(self) -> bool:
        """Whether anything is replaced."""
        return bool(self._replaced)

    def replace(self, owner: Any, name: str, value: object) -> None:
        """Sets an attribute of a module."""
        self._replaced.append((owner, name, vars(owner).get(name, _MISSING)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Sets all attributes back."""
        for owner, name, value in reversed(self._replaced):
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        self._replaced.clear()


def adapt_attention(model: PreTrainedModel) -> Adaptation:
    """Makes the attention modules of a family that is known here call `attend`. Other models stay as they are."""
    adaptation = Adaptation()
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    for part in parts:
        if (adapt_part := _PARTS.get(type(part).__name__)) is not None:
            adapt_part(part, adaptation)
    return adaptation


def mend_attention(model: PreTrainedModel) -> None:
    """Mends eager attention that is not the attention of the model: transformers adds Falcon's ALiBi twice."""
    for module in model.modules():
        if type(module).__name__ == "FalconAttention":
            module.register_forward_pre_hook(_without_second_alibi, with_kwargs=True)


def _without_second_alibi(module: nn.Module, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ARG001
    alibi: Tensor | None = options.get("alibi")
    return arguments, options if alibi is None else options | {"alibi": torch.zeros_like(alibi)}  # the mask has it too


def _use_masks(part: PreTrainedModel, name: str, adaptation: Adaptation) -> None:
    """Makes a model use the masks of an attention implementation."""
    adaptation.replace(part.config, "_attn_implementation_internal", name)


# ---- families -------------------------------------------------------------------------------------------------------


def _adapt_bloom(part: Any, adaptation: Adaptation) -> None:
    slopes = _slopes(part)
    alibi = _PositionTable(lambda keys: (slopes * torch.arange(keys, device=part.device)).to(part.dtype))
    _use_masks(part, NAME, adaptation)
    # The model makes the bias from a mask of the padding, which a step has not.
    adaptation.replace(part, "build_alibi_tensor", lambda mask, *_, **__: mask.new_empty(0))
    for block in part.h:
        adaptation.replace(block.self_attention, "forward", _bloom_forward(block.self_attention, alibi))


def _bloom_forward(module: Any, alibi: _Bias) -> Callable[..., Any]:
    def forward(
        hidden_states: Tensor, residual: Tensor, attention_mask: Tensor | None, layer_past: Any = None, **_others: Any
    ) -> tuple[Tensor, None]:
        query, key, value = module._reshape(module.query_key_value(hidden_states))
        if layer_past is not None:
            key, value = layer_past.update(key, value, module.layer_idx)
        bias = alibi(key.shape[2], attention_mask)
        scale = module.inv_norm_factor
        output, _ = attend(module, query, key, value, attention_mask, scaling=scale, position_bias=bias)
        return module.dense(output.flatten(2)) + residual, None

    return forward


def _adapt_falcon(part: Any, adaptation: Adaptation) -> None:
    alibi: _Bias | None = None
    if part.use_alibi:
        scale, slopes = part.h[0].self_attention.inv_norm_factor, _slopes(part).bfloat16()  # as the model rounds them
        alibi = _PositionTable(lambda keys: (slopes * torch.arange(keys, device=part.device)).to(part.dtype) * scale)
        adaptation.replace(part, "use_alibi", False)  # the model would make the bias from a mask of the padding
    _use_masks(part, NAME, adaptation)
    rotate = sys.modules[type(part).__module__].apply_rotary_pos_emb
    for block in part.h:
        module: Any = block.self_attention
        is_grouped = module.new_decoder_architecture or module.multi_query
        key_heads = module.num_kv_heads if is_grouped else module.num_heads
        adaptation.replace(module, "num_key_value_groups", module.num_heads // key_heads)
        adaptation.replace(module, "forward", _falcon_forward(module, key_heads, alibi, rotate))


def _falcon_forward(
    module: Any, key_heads: int, alibi: _Bias | None, rotate: Callable[..., tuple[Tensor, Tensor]]
) -> Callable[..., Any]:
    def forward(
        hidden_states: Tensor,
        alibi_of_model: None = None,  # noqa: ARG001
        attention_mask: Tensor | None = None,
        layer_past: Any = None,
        position_embeddings: Any = None,
        **_others: Any,
    ) -> tuple[Tensor, None]:
        # All variants keep the queries of a group of heads beside its key and its value.
        fused = module.query_key_value(hidden_states)
        groups = fused.view(*fused.shape[:2], key_heads, module.num_key_value_groups + 2, module.head_dim)
        query = groups[..., :-2, :].flatten(2, 3).transpose(1, 2)
        key, value = groups[..., -2, :].transpose(1, 2), groups[..., -1, :].transpose(1, 2)
        if alibi is None:
            query, key = rotate(query, key, *position_embeddings)
        if layer_past is not None:
            key, value = layer_past.update(key, value, module.layer_idx)
        bias = None if alibi is None else alibi(key.shape[2], attention_mask)
        scale = module.inv_norm_factor
        output, _ = attend(module, query, key, value, attention_mask, scaling=scale, position_bias=bias)
        return module.dense(output.flatten(2)), None

    return forward


def _adapt_mpt(part: Any, adaptation: Adaptation) -> None:
    alibi = _DistanceTable(part.build_mpt_alibi_tensor(part.num_heads, part.config.max_seq_len, device=part.device))
    _use_masks(part, WHOLE_MASKS, adaptation)
    for block in part.blocks:
        adaptation.replace(block.attn, "forward", _mpt_forward(block.attn, alibi))


def _mpt_forward(module: Any, alibi: _Bias) -> Callable[..., Any]:
    def forward(
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,  # the name of `past_key_values` since transformers 5.24
        **_others: Any,
    ) -> tuple[Tensor, None]:
        projected = module.Wqkv(hidden_states)
        if module.clip_qkv:
            projected = projected.clamp(-module.clip_qkv, module.clip_qkv)
        shape = (*hidden_states.shape[:2], module.n_heads, module.head_dim)
        query, key, value = (part.view(shape).transpose(1, 2) for part in projected.chunk(3, dim=2))
        stored = past_key_values if cache is None else cache
        if stored is not None:
            key, value = stored.update(key, value, module.layer_idx)
        bias = alibi(key.shape[2], attention_mask)
        scale = module.softmax_scale
        output, _ = attend(module, query, key, value, attention_mask, scaling=scale, position_bias=bias)
        return module.out_proj(output.flatten(2)), None

    return forward


def _adapt_gptj(part: Any, adaptation: Adaptation) -> None:
    _use_masks(part, NAME, adaptation)
    for block in part.h:
        module = block.attn
        adaptation.replace(module, "_attn", _gptj_attention(module))
        # The original copies the whole table for each row of the batch.
        adaptation.replace(module, "_get_embed_positions", _gptj_positions(module))


def _gptj_attention(module: Any) -> Callable[..., tuple[Tensor, None]]:
    def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        output, _ = attend(module, query, key, value, mask, scaling=1 / module.scale_attn)
        return output.transpose(1, 2), None

    return attention


def _gptj_positions(module: Any) -> Callable[[Tensor], Tensor]:
    return lambda position_ids: module.embed_positions.expand(len(position_ids), -1, -1)


# What of a model is adapted, by the name of its class.
_PARTS: dict[str, Callable[[Any, Adaptation], None]] = {
    "BloomModel": _adapt_bloom,
    "FalconModel": _adapt_falcon,
    "MptModel": _adapt_mpt,
    "GPTJModel": _adapt_gptj,
}


# ---- ALiBi ----------------------------------------------------------------------------------------------------------


def _slopes(part: Any) -> Tensor:
    """Returns the slopes of the heads, float32 `[1, H, 1, 1]`, as the module of the family computes them."""
    build: Callable[..., Tensor] = sys.modules[type(part).__module__].build_alibi_tensor
    ones = torch.ones(1, 2, dtype=torch.int64, device=part.device)
    return build(ones, part.num_heads, torch.float32)[:, 0, 1].view(1, -1, 1, 1)  # of position 1


class _PositionTable:
    """Biases that depend on the position of the key alone: `slope * position`, as BLOOM and Falcon have them."""

    def __init__(self, make: Callable[[int], Tensor]) -> None:
        """`make` returns the bias `[1, H, 1, S]` of as many keys."""
        self._make = make
        self._table = make(1)

    def __call__(self, keys: int, mask: Tensor | None) -> Tensor:  # noqa: ARG002
        """Returns the bias `[1, H, 1, S]`."""
        if keys > self._table.shape[3]:
            self._table = self._make(2 * keys)
        return self._table[..., :keys]


class _DistanceTable:
    """Biases that depend on how far a key is before the last key that its query sees, as MPT has them.

    The biases of the keys nearest to a query are near 0, so that float32 does not round the scores that count.
    """

    def __init__(self, table: Tensor) -> None:
        """`table` is `[H, 1, positions]`; the last is the bias of a query's own position."""
        self._table = table[None]
        self._mask: Tensor | None = None
        self._bias: Tensor | None = None

    def __call__(self, keys: int, mask: Tensor | None) -> Tensor:
        """Returns the bias `[1 or B, H, 1, S]`. The rows of a step are at different positions, which the mask tells."""
        if mask is None or mask.shape[0] == 1 or mask.shape[2] > 1:
            return self._table[..., self._table.shape[3] - keys :]
        if self._bias is None or self._mask is not mask or torch.compiler.is_compiling():
            self._mask, self._bias = mask, self._bias_of_rows(mask)
        return self._bias

    def _bias_of_rows(self, mask: Tensor) -> Tensor:
        positions = self._table.shape[3]
        lengths = mask[:, 0, 0].sum(-1, keepdim=True)
        index = torch.arange(mask.shape[3], device=mask.device) + (positions - lengths)
        return self._table[0, :, 0][:, index.clamp_(max=positions - 1)].transpose(0, 1)[:, :, None]
