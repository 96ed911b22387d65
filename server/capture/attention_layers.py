"""Finds where a model's attention modules stand, by running it on a few tokens and watching.

Names of modules differ from family to family; what they do does not. An encoder's attention runs in the encoder; a
decoder's cross-attention has as many keys as the source has tokens. The same run shows whether the rows captured are
those that the model itself reports with `output_attentions=True`: where they are not, or where a family does not use
the attention interface at all, the model is served by its own matrices.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...kernels import AttentionTensors, LayerSpec, new_attention_tensors
from ..transformers_versions import set_attention
from .attention_function import (
    NAME,
    AttentionKind,
    LayerKey,
    RecordTarget,
    UnsupportedAttentionError,
    observing,
    place,
    record_to,
)

log = logging.getLogger(__name__)

# Different from one another and from the number of heads anyone would have, so that shapes tell what they are.
_SOURCE_LENGTH, _TARGET_LENGTH = 5, 3

# How far captured rows may be from the model's own matrices, for one number and on average over a layer. In half
# precision a model rounds its scores, and each layer reads what earlier layers have rounded: single numbers of sharp
# rows differ by 0.05 and more in bfloat16 (0.046 in a random model of opus-mt's size, 0.007 on average). Another scale,
# mask or order of heads makes a difference on average too.
_FULL_PRECISION, _HALF_PRECISION = (1e-4, 1e-4), (0.2, 0.015)


@dataclass(frozen=True)
class AttentionLayers:
    """The attentions of a model, found at load."""

    heads: dict[AttentionKind, tuple[int, ...]]  # for each layer of a kind, how many query heads it has
    captures_rows: bool  # whether rows are captured beside fused attention; otherwise the model gives its matrices

    def layers(self, kind: AttentionKind) -> int:
        """How many layers have this kind of attention."""
        return len(self.heads.get(kind, ()))


@dataclass
class _Call:
    module: nn.Module
    heads: int
    keys: int


@dataclass
class _Watcher:
    """An observer that writes down every attention call."""

    calls: list[_Call] = field(default_factory=list[_Call])

    def observe(self, module: nn.Module, query: Tensor, key: Tensor) -> None:
        self.calls.append(_Call(module, query.shape[1], key.shape[2]))


@dataclass
class _Everything:
    """A recorder that keeps all rows of all sites."""

    results: dict[LayerKey, AttentionTensors] = field(default_factory=dict[LayerKey, AttentionTensors])

    def targets(self, site: LayerKey, shape: tuple[int, int, int, int], device: torch.device) -> list[RecordTarget]:
        batch, heads, length, positions = shape
        self.results[site] = new_attention_tensors(batch, length, positions, heads, device=device)
        return [RecordTarget(self.results[site], LayerSpec(), slice(0, length))]


@torch.inference_mode()
def find_attention_layers(model: PreTrainedModel) -> AttentionLayers:
    """Marks the attention modules of `model` with their sites and says how its attention can be captured.

    The model comes with `attn_implementation="sidelight"` where its family allows, and leaves with it, or with
    "eager" if its matrices are to be used.
    """
    matrices = _matrices(model)
    heads: dict[AttentionKind, tuple[int, ...]] = {kind: tuple(m.shape[1] for m in ms) for kind, ms in matrices.items()}
    try:
        set_attention(model, NAME)
        attention_layers = _mark(model)
        problem = _difference(model, attention_layers, matrices)
    except (UnsupportedAttentionError, ValueError, TypeError, KeyError) as error:
        problem = str(error) or type(error).__name__
    if problem is None:
        return AttentionLayers(heads, captures_rows=True)
    log.warning("attention of %s is taken from whole matrices: %s", model.config.model_type, problem)
    for module in model.modules():
        if hasattr(module, "sidelight_site"):
            del module.sidelight_site
    set_attention(model, "eager")
    return AttentionLayers(heads, captures_rows=False)


def _matrices(model: PreTrainedModel) -> dict[AttentionKind, list[Tensor]]:
    """The model's own attention matrices `[1, H, T, S]` for each kind and layer."""
    set_attention(model, "eager")
    return matrices_of(_run(model, output_attentions=True))


def matrices_of(output: Any) -> dict[AttentionKind, list[Tensor]]:
    """Attention matrices from a model's output with `output_attentions=True`, layers without attention left out."""
    names: dict[AttentionKind, tuple[str, ...]] = {
        "encoder_self": ("encoder_attentions",),
        "decoder_self": ("decoder_attentions", "attentions"),
        "cross": ("cross_attentions",),
    }
    found: dict[AttentionKind, list[Tensor]] = {}
    for kind, fields in names.items():
        for name in fields:
            layers = [layer for layer in getattr(output, name, None) or () if layer is not None]
            if layers:
                found[kind] = layers
    return found


def first_token(model: PreTrainedModel) -> int:
    """The first of a few tokens, as many as the tests of models at load take, of which none is the padding.

    Any will do there: the point is where attention is, not what it says.
    """
    padding = model.config.get_text_config().pad_token_id
    return 3 if padding is None or not 3 <= padding < 3 + _SOURCE_LENGTH else padding + 1


def _run(model: PreTrainedModel, **options: Any) -> Any:
    first = first_token(model)
    source = torch.arange(first, first + _SOURCE_LENGTH, device=model.device)[None]
    if not model.config.is_encoder_decoder:
        return model(input_ids=source, use_cache=False, **options)
    target = source[:, :_TARGET_LENGTH]
    return model(input_ids=source, decoder_input_ids=target, use_cache=False, **options)


def _mark(model: PreTrainedModel) -> dict[LayerKey, nn.Module]:
    """Gives each attention module its site, in the order in which they run."""
    watcher = _Watcher()
    with observing(watcher):
        _run(model)
    encoder = model.get_encoder() if model.config.is_encoder_decoder else None
    encoding = {id(module) for module in encoder.modules()} if encoder is not None else set[int]()
    attention_layers: dict[LayerKey, nn.Module] = {}
    counts: dict[AttentionKind, int] = {}
    for call in watcher.calls:
        if id(call.module) in encoding:
            kind: AttentionKind = "encoder_self"
        elif encoder is not None and call.keys == _SOURCE_LENGTH:
            kind = "cross"
        else:
            kind = "decoder_self"
        site = LayerKey(kind, counts.get(kind, 0))
        if any(call.module is module for module in attention_layers.values()):
            raise UnsupportedAttentionError("layers share one attention module")
        counts[kind] = site.layer + 1
        attention_layers[site] = call.module
        place(call.module, site)
    return attention_layers


def _difference(
    model: PreTrainedModel, attention_layers: dict[LayerKey, nn.Module], matrices: dict[AttentionKind, list[Tensor]]
) -> str | None:
    """What is different between the rows captured and the model's own matrices; None if nothing is."""
    expected = {LayerKey(kind, layer): m for kind, layers in matrices.items() for layer, m in enumerate(layers)}
    if not expected:
        raise UnsupportedAttentionError("the model reports no attention")
    if set(attention_layers) != set(expected):
        return f"{len(attention_layers)} of {len(expected)} attention layers go through the attention interface"
    everything = _Everything()
    with record_to(everything):
        _run(model)
    most, mean = _FULL_PRECISION if model.dtype == torch.float32 else _HALF_PRECISION
    for site, matrix in expected.items():
        rows = everything.results[site].values.permute(0, 3, 1, 2)
        if rows.shape == matrix.shape:
            apart = (rows - matrix.float()).abs()
            if float(apart.max()) <= most and float(apart.mean()) <= mean:
                continue
        return f"the rows of {site.kind} layer {site.layer} differ from the model's own"
    return None
