"""The attention function of every served model: fused attention for the output, and rows for the recorder.

transformers calls this function under the name `sidelight`. The function knows attention modules by their `LayerKey`;
it does not know requests, tokens or messages.

The output comes from `scaled_dot_product_attention`. The rows come from the kernels, which write them into the
recorder's tensors: only the recorded layers and queries, already reduced, so no whole matrix is ever in memory. In a
decode step on a CPU, output and rows come from one softmax. In a decode step on a GPU, one kernel makes both from a
single read of the keys, for the rows of the whole batch; if requests of a batch record different things, a further
kernel makes the rows of a part of the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ...kernels import (
    AttentionParams,
    KeyWeighting,
    attend_to,
    capped_attention,
    decode,
    rows,
    select_impl,
    write_probabilities,
)
from ...kernels.cpu import attend_slots, is_supported
from .context import (
    LayerKey,
    RecordTarget,
    context,
    end_pass_behind,
    layer_key_of,
    record_targets,
    set_layer_key,
)

NAME = "sidelight"
# The masks of models that do not know None as a mask.
WHOLE_MASKS = "sidelight_whole_masks"

_FIRST_QUERY = slice(0, 1)


def register() -> None:
    """Makes `attn_implementation="sidelight"` known to transformers. A second call changes nothing."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, make_mask)
    AttentionMaskInterface.register(WHOLE_MASKS, make_whole_mask)


def make_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Makes masks for transformers: SDPA's boolean masks, or None where `is_causal` is enough.

    Decoders such as BART's make a padding mask of ones and look whether the mask hides anything. That look waits for
    the device. Without padding there is nothing to look at.
    """
    return sdpa_mask(*args, attention_mask=attention_mask if context.padded else None, **kwargs)


def make_whole_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Makes SDPA's boolean masks for models that do not know None, whether or not `is_causal` is enough."""
    options: dict[str, Any] = kwargs | {"allow_is_causal_skip": False}
    return make_mask(*args, **options)


def has_fused_decode(tensor: Tensor) -> bool:
    """Whether a decode step on this tensor's device makes output and rows in one kernel."""
    return select_impl(tensor) == "triton"


class UnsupportedAttentionError(Exception):
    """The model gives its attention an option that changes probabilities in a way that this function does not know."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Computes attention for transformers, and writes the recorded rows.

    Takes query `[B, H, T, D]`, key and value `[B, Hkv, S, D]`; returns the output `[B, T, H, D]`, and no weights.
    """
    if kwargs.get("s_aux") is not None:
        raise UnsupportedAttentionError("attention sinks")
    if torch.compiler.is_compiling():
        marked: Any = module
        module_id: int = marked.sidelight_module_id
        return _attend_opaque(query, key, value, attention_mask, position_bias, scaling, softcap, module_id), None
    params = AttentionParams(
        scale=scaling if scaling is not None else query.shape[3] ** -0.5,
        softcap=softcap,
        bias=position_bias,
        mask=attention_mask,
        causal=_is_causal(module, query, attention_mask, is_causal),
        no_empty_rows=not context.padded,
    )
    if context.observer is not None:
        context.observer.observe(module, query, key, value, params)
    output = _attend_and_record(module, query, key, value, params)
    if context.last is not None:
        end_pass_behind(layer_key_of(module))
    if output is None:
        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "position_bias": position_bias}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options, **kwargs)
    return output, None


def _attend_and_record(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams
) -> Tensor | None:
    """Writes the recorded rows, and returns the output `[B, T, H, D]`; None where SDPA shall compute the output."""
    layer_key = layer_key_of(module)
    batch, heads, queries, _ = query.shape
    targets = record_targets(layer_key, (batch, heads, queries, key.shape[2]), query.device)
    # A capture does not change a single bit of the output on a CPU: a decode step there always computes the output from
    # the probabilities, whether or not a recorder wants them, and all other passes use SDPA's output.
    if queries == 1 and query.dtype == torch.float32 and not has_fused_decode(query):
        lengths = None if context.lengths is None or layer_key is None else context.lengths.get(layer_key.kind)
        if lengths is None:
            output, probabilities = attend_to(query, key, value, params)
        else:
            output, probabilities = _attend_by_rows(query, key, value, params, lengths)
        write_step_rows(targets, probabilities, value)
        return output.transpose(1, 2)
    # The fused kernel needs values that are as wide as keys.
    is_fused = queries == 1 and key.shape == value.shape and has_fused_decode(query)
    fused_target = next((target for target in targets if target.rows is None), None) if is_fused else None
    for target in targets:
        if target is not fused_target:
            _record(target, query, key, value, params)
    if fused_target is not None:
        weighting = fused_target.weighting(value)
        output = decode(query, key, value, params, fused_target.tensors, fused_target.layer_spec, weighting)
    elif params.softcap is not None:  # SDPA has no softcap (Gemma 2)
        output = capped_attention(query, key, value, params)
    else:
        return None
    return output.transpose(1, 2).contiguous()


def _attend_by_rows(
    query: Tensor, key: Tensor, value: Tensor, params: AttentionParams, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes what `attend_to` computes, each row over its first `lengths[row]` positions. Later positions have 0."""
    if is_supported() and (params.mask is None or params.mask.dtype == torch.bool):
        return attend_slots(query, key, value, params, lengths)
    output = query.new_empty(*query.shape[:3], value.shape[3])
    probabilities = query.new_zeros(*query.shape[:3], key.shape[2])
    for row, length in enumerate(lengths.tolist()):
        index = slice(row, row + 1)
        output[index], probabilities[index, :, :, :length] = attend_to(
            query[index], key[index, :, :length], value[index, :, :length], params.for_row(row, length)
        )
    return output, probabilities


# Modules by a number: a compiled step can hold a number, and not a module.
_modules: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
_module_ids = itertools.count()


def mark_attention(module: nn.Module, layer_key: LayerKey) -> None:
    """Marks a module as an attention layer whose rows can be recorded, also from a compiled step."""
    module_id = next(_module_ids)
    _modules[module_id] = module
    marked: Any = module
    marked.sidelight_module_id = module_id
    set_layer_key(module, layer_key)


@torch.library.custom_op(
    "sidelight::attend",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? bias, float? scaling, float? softcap,"
    " int module) -> Tensor",
)
def _attend_opaque(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    module: int,
) -> Tensor:
    """Computes `attend` as one operation that torch.compile does not look into, so the graph holds no captures.

    The compiled step stays the same while requests with any captures come and go.
    """
    output, _ = attend(_modules[module], query, key, value, mask, 0.0, scaling, None, bias, softcap)
    return output.contiguous()


@_attend_opaque.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_others: object) -> Tensor:  # noqa: ARG001
    batch, heads, length, _ = query.shape
    return query.new_empty(batch, length, heads, value.shape[3])


def _is_causal(module: nn.Module, query: Tensor, mask: Tensor | None, is_causal: bool | None) -> bool:
    """Whether the absence of a mask means a causal mask: the rule of transformers' `sdpa_attention_forward`."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    return bool(causal) and mask is None and query.shape[2] > 1


def write_step_rows(targets: Sequence[RecordTarget], probabilities: Tensor, value: Tensor) -> None:
    """Writes the rows of a decode step into the targets.

    Takes probabilities float32 `[B, H, 1, S]`, and the values `[B, Hkv, S, D]` of the same positions.
    """
    for target in targets:
        selected = probabilities if target.rows is None else probabilities[target.rows]
        write_probabilities(selected, target.tensors, target.layer_spec, _FIRST_QUERY, target.weighting(value))


def write_rows(target: RecordTarget, probabilities: Tensor) -> None:
    """Writes the recorded rows of a pass into a target that has no factors.

    Takes the probabilities of the recorded rows and queries, float32 `[B, H, T, S]`, of all positions.
    """
    queries = slice(0, probabilities.shape[2])
    write_probabilities(probabilities, target.tensors, target.layer_spec, queries, KeyWeighting(target.left_out))


def _record(target: RecordTarget, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> None:
    """Computes the rows of one target from queries and keys, and writes the rows."""
    if target.rows is not None:
        bias, mask = (
            tensor if tensor is None or tensor.shape[0] == 1 else tensor[target.rows]
            for tensor in (params.bias, params.mask)
        )
        query, key, params = query[target.rows], key[target.rows], params._replace(bias=bias, mask=mask)
    # In causal attention query 0 sees key 0, which is the meaning of SDPA's `is_causal`.
    queries = target.queries
    weighting = target.weighting(value)
    rows(query[:, :, queries], key, params.for_queries(queries), target.tensors, target.layer_spec, weighting)
