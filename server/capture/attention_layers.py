"""Finds a model's attention layers: runs the model on a few tokens and observes the attention calls.

The names of modules differ from family to family; what the modules do does not. Encoder attention runs inside the
encoder. Decoder cross-attention has as many keys as the source has tokens. The same run compares the captured rows
with the matrices that the model itself reports with `output_attentions=True`. Where the rows differ, or where a family
does not call the attention function at all, the server takes attention from the model's own matrices.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...kernels import AttentionParams, AttentionTensors, LayerSpec, new_attention_tensors
from ..transformers_versions import set_attention
from .attention_adapters import Adaptation, adapt_attention, mend_attention
from .attention_function import NAME, UnsupportedAttentionError, mark_attention
from .context import AttentionKind, LayerKey, RecordTarget, observe_with, record_to, set_layer_key
from .methods import find_methods
from .plan import Method, ProbedModel
from .speech_sources import short_sources, trial_inputs

log = logging.getLogger(__name__)

# Unlike each other and unlike any usual number of heads, so that the shape of a matrix tells its kind.
_SOURCE_LENGTH, _TARGET_LENGTH = 5, 3

# How far captured rows may be from the model's own matrices: for one number, and on average over a layer. In half
# precision a model rounds its scores, and each layer reads what earlier layers have rounded: single numbers of sharp
# rows differ by 0.05 and more in bfloat16 (0.046 in a random model of opus-mt's size, 0.007 on average). Another scale,
# mask or order of heads also changes the average.
_FULL_PRECISION, _HALF_PRECISION = (1e-4, 1e-4), (0.2, 0.015)


@dataclass(frozen=True)
class AttentionLayers:
    """The attention layers of a model, found at load."""

    heads: dict[AttentionKind, tuple[int, ...]]  # for each kind: the number of query heads of each layer
    captures_rows: bool  # whether `attend` records rows; otherwise the model gives whole matrices
    methods: Mapping[str, Method]  # the methods that captures may ask for, by name
    is_causal: bool = True  # whether the decoder sees no token that comes later

    def num_layers(self, kind: AttentionKind) -> int:
        """Returns how many layers have this kind of attention."""
        return len(self.heads.get(kind, ()))


@dataclass
class _Call:
    module: nn.Module
    heads: int
    keys: int


@dataclass
class _CallObserver:
    """An observer that lists every attention call."""

    calls: list[_Call] = field(default_factory=list[_Call])

    def observe(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> None:
        del value, params
        self.calls.append(_Call(module, query.shape[1], key.shape[2]))


@dataclass
class FullRecorder:
    """A `Recorder` that keeps every row of every layer, heads apart, in float32: for comparisons at load."""

    results: dict[LayerKey, AttentionTensors] = field(default_factory=dict[LayerKey, AttentionTensors])

    def targets(
        self, layer_key: LayerKey, shape: tuple[int, int, int, int], device: torch.device
    ) -> list[RecordTarget]:
        """Returns one target for all queries of the layer (see `Recorder`)."""
        batch, heads, length, positions = shape
        self.results[layer_key] = new_attention_tensors(batch, length, positions, heads, device=device)
        return [RecordTarget(self.results[layer_key], LayerSpec(), slice(0, length))]


def find_attention_layers(model: PreTrainedModel) -> AttentionLayers:
    """Marks the attention modules of `model` with their layer keys, and says how attention can be captured.

    The model comes with `attn_implementation="sidelight"` where its family allows it, and leaves with it, or with
    "eager" if attention is taken from the model's matrices.
    """
    with torch.inference_mode(), short_sources(model, _SOURCE_LENGTH):
        return _find_attention_layers(model)


def _find_attention_layers(model: PreTrainedModel) -> AttentionLayers:
    mend_attention(model)
    set_attention(model, "eager")
    own = _run(model, output_attentions=True)
    matrices = matrices_of(own)
    is_causal = all(not bool(matrix.triu(1).nan_to_num().any()) for matrix in matrices.get("decoder_self", ()))
    heads: dict[AttentionKind, tuple[int, ...]] = {kind: tuple(m.shape[1] for m in ms) for kind, ms in matrices.items()}
    modules: dict[LayerKey, nn.Module] = {}
    adaptation = Adaptation()
    try:
        set_attention(model, NAME)
        modules = _mark(model)
        if not modules:
            adaptation = adapt_attention(model)
            modules = _mark(model)
        difference = _difference(model, modules, matrices, own.logits if adaptation else None)
    except (UnsupportedAttentionError, ValueError, TypeError, KeyError) as error:
        difference = str(error) or type(error).__name__
    if difference is None:
        is_half = model.dtype != torch.float32
        methods = find_methods(ProbedModel(heads, modules, partial(_run, model), is_half))
        return AttentionLayers(heads, captures_rows=True, methods=methods, is_causal=is_causal)
    log.warning("attention of %s is taken from whole matrices: %s", model.config.model_type, difference)
    for module in model.modules():
        set_layer_key(module, None)
    adaptation.undo()
    set_attention(model, "eager")
    methods = find_methods(ProbedModel(heads, {}, partial(_run, model), model.dtype != torch.float32))
    return AttentionLayers(heads, captures_rows=False, methods=methods, is_causal=is_causal)


def matrices_of(output: Any) -> dict[AttentionKind, list[Tensor]]:
    """Reads attention matrices from a model's output with `output_attentions=True`.

    Layers without attention are left out.
    """
    fields_of_kinds: dict[AttentionKind, tuple[str, ...]] = {
        "encoder_self": ("encoder_attentions",),
        "decoder_self": ("decoder_attentions", "attentions"),
        "cross": ("cross_attentions",),
    }
    matrices: dict[AttentionKind, list[Tensor]] = {}
    for kind, names in fields_of_kinds.items():
        for name in names:
            layers = [layer for layer in getattr(output, name, None) or () if layer is not None]
            if layers:
                matrices[kind] = layers
    return matrices


def first_token(model: PreTrainedModel) -> int:
    """Returns the first of the few consecutive tokens that comparisons at load run a model on.

    None of these tokens is the padding token. Any other token will do: the comparisons look at where attention is, not
    at what the text says.
    """
    padding = model.config.get_text_config().pad_token_id
    return 3 if padding is None or not 3 <= padding < 3 + _SOURCE_LENGTH else padding + 1


def _run(model: PreTrainedModel, **options: Any) -> Any:
    first = first_token(model)
    source = torch.arange(first, first + _SOURCE_LENGTH, device=model.device)[None]
    if not model.config.is_encoder_decoder:
        return model(input_ids=source, use_cache=False, **options)
    target = source[:, :_TARGET_LENGTH]
    return model(**trial_inputs(model, source), decoder_input_ids=target, use_cache=False, **options)


def _mark(model: PreTrainedModel) -> dict[LayerKey, nn.Module]:
    """Gives each attention module its layer key, in the order in which the modules run."""
    observer = _CallObserver()
    with observe_with(observer):
        _run(model)
    encoder = model.get_encoder() if model.config.is_encoder_decoder else None
    encoder_modules = {id(module) for module in encoder.modules()} if encoder is not None else set[int]()
    modules: dict[LayerKey, nn.Module] = {}
    num_layers: dict[AttentionKind, int] = {}
    for call in observer.calls:
        if id(call.module) in encoder_modules:
            kind: AttentionKind = "encoder_self"
        elif encoder is not None and call.keys == _SOURCE_LENGTH:
            kind = "cross"
        else:
            kind = "decoder_self"
        layer_key = LayerKey(kind, num_layers.get(kind, 0))
        if any(call.module is module for module in modules.values()):
            raise UnsupportedAttentionError("layers share one attention module")
        num_layers[kind] = layer_key.layer + 1
        modules[layer_key] = call.module
        mark_attention(call.module, layer_key)
    return modules


def _difference(
    model: PreTrainedModel,
    modules: dict[LayerKey, nn.Module],
    matrices: dict[AttentionKind, list[Tensor]],
    logits: Tensor | None,
) -> str | None:
    """Says how the captured rows differ from the model's own matrices; None if they do not differ.

    With `logits` the model's logits must be these: code that is not the model's own has computed the last layer.
    """
    expected = {LayerKey(kind, layer): m for kind, layers in matrices.items() for layer, m in enumerate(layers)}
    if not expected:
        raise UnsupportedAttentionError("the model reports no attention")
    if set(modules) != set(expected):
        return f"{len(modules)} of {len(expected)} attention layers go through the attention interface"
    recorder = FullRecorder()
    with record_to(recorder):
        output = _run(model)
    max_difference, max_mean = _FULL_PRECISION if model.dtype == torch.float32 else _HALF_PRECISION
    for layer_key, matrix in expected.items():
        rows = recorder.results[layer_key].values.permute(0, 3, 1, 2)
        if rows.shape == matrix.shape:
            differences = (rows - matrix.float()).abs()
            if float(differences.max()) <= max_difference and float(differences.mean()) <= max_mean:
                continue
        return f"the rows of {layer_key.kind} layer {layer_key.layer} differ from the model's own"
    if logits is not None:
        differences = (output.logits - logits).abs() / logits.abs().max().clamp(min=1)
        if not float(differences.max()) <= max_difference:  # NaN is not
            return "the logits of adapted attention differ from the model's own"
    return None
