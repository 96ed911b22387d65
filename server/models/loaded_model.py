"""LoadedModel: a model ready to run, and ModelInfo: everything about it that does not change with requests."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from ..alignment import AlignmentPreset, default_preset
from ..capture import AttentionKind, AttentionLayers, CapturePlan, Head, feature_shape
from ..operations import ModelLimits
from ..text import Tokenizer
from .backend import Backend


class ModelInfo:
    """What a model has beside its weights. In a process with the weights it is the LoadedModel itself.

    Attributes:
        name: What requests call the model.
        tokenizer: Its tokenizer.
        attention_layers: Its attention layers.
        max_source_tokens: The most tokens of a source.
        max_target_tokens: The most tokens of a target.
        precision: Of the linear layers: int8, or the name of a torch type.
        alignment: The heads that align words; None: the files of the model have none.
        is_encoder_decoder: Whether an encoder reads the source apart from the target.
        family: The model type of transformers, such as "marian".
        feature_shape: The mel bins and frames of a recording, which are the source; None: the source is a text.
        vocabulary_size: Token ids are below this number.
        own_generation_config: The generation config of the model's files.
        generation_config: The same as `generate` completes it. Copy it; do not change it.
        encoder_width: The width of the encoder's states.
        device: The device of the weights, as torch names it.
        has_slots: Whether the requests of the model share a batch.
        limits: The limits of requests.
    """

    name: str
    tokenizer: Tokenizer
    attention_layers: AttentionLayers
    max_source_tokens: int
    max_target_tokens: int
    precision: str
    alignment: AlignmentPreset | None
    is_encoder_decoder: Any
    family: Any
    feature_shape: Any
    vocabulary_size: Any
    own_generation_config: Any
    generation_config: Any
    encoder_width: Any
    device: Any
    has_slots: Any
    limits: ModelLimits

    @cached_property
    def kinds(self) -> tuple[AttentionKind, ...]:
        """The kinds of attention of the model. A request that names no kind gets the first."""
        order: tuple[AttentionKind, ...] = ("cross", "decoder_self", "encoder_self")
        return tuple(kind for kind in order if self.attention_layers.num_layers(kind))

    @cached_property
    def link_preset(self) -> AlignmentPreset:
        """How the words of the model's texts are linked: as calibration has found, or by default."""
        return self.alignment or default_preset(self.attention_layers.num_layers("cross"), self.heads("cross"))

    @cached_property
    def links_plan(self) -> CapturePlan:
        """The rows that are linked: the weighted mean of the preset's heads. One object, for all requests."""
        preset = self.link_preset
        return CapturePlan(
            kinds=("cross",),
            layers={},
            num_heads={"cross": self.heads("cross")},
            pairs=tuple(Head(layer, head, weight) for layer, head, weight in preset.heads),
            over_heads="mean",
            row=preset.row,
            leaves_out_special=preset.special_tokens == "renormalize",
        )

    @cached_property
    def signals_plan(self) -> CapturePlan:
        """The rows that signals are computed from (Guerreiro et al. 2023, arXiv:2212.09631)."""
        return CapturePlan(
            kinds=("cross",),
            layers={"cross": (self.attention_layers.num_layers("cross") - 1,)},
            num_heads={"cross": self.heads("cross")},
            over_heads="mean",
            over_layers="mean",
        )

    def heads(self, kind: AttentionKind) -> int:
        """The number of query heads in each layer of a kind."""
        return self.attention_layers.heads[kind][0]


@dataclass(frozen=True)
class LoadedModel(ModelInfo):
    """A model with its tokenizer and its backend. All threads may read it; the engine's thread alone runs it."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    attention_layers: AttentionLayers
    max_source_tokens: int
    max_target_tokens: int
    precision: str  # of the linear layers: int8, or the name of a torch type
    backend: Backend | None  # runs the model over slots; None: the requests of the model run one by one
    alignment: AlignmentPreset | None = None  # the heads that align words; None: the files of the model have none
    limits: ModelLimits = field(default_factory=ModelLimits)  # of requests

    @cached_property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the source apart from the target."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def family(self) -> str:
        """The model type of transformers, such as "marian"."""
        return str(self.model.config.model_type)

    @cached_property
    def feature_shape(self) -> tuple[int, int] | None:
        """The mel bins and frames of a recording, which are the source; None: the source is a text."""
        return feature_shape(self.model)

    @cached_property
    def vocabulary_size(self) -> int:
        """Token ids are below this number."""
        return vocabulary_size_of(self.model)

    @cached_property
    def takes_logits_to_keep(self) -> bool:
        """Whether a forward pass takes the number of positions for which it computes logits."""
        return "logits_to_keep" in inspect.signature(self.model.forward).parameters

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """The model's own generation config, as `generate` completes it. Copy it; do not change it."""
        return generation_config_of(self.model)

    @cached_property
    def encoder_width(self) -> int:
        """The width of the encoder's states."""
        config: Any = getattr(self.model.get_encoder(), "config", self.model.config)  # FSMT's encoder has none
        return int(config.hidden_size)

    @property
    def own_generation_config(self) -> GenerationConfig:
        """The generation config of the model's files."""
        config: Any = self.model.generation_config
        return config

    @property
    def device(self) -> str:
        """The device of the weights, as torch names it."""
        return str(self.model.device)

    @property
    def has_slots(self) -> bool:
        """Whether the requests of the model share a batch."""
        return self.backend is not None


@dataclass(frozen=True)
class ModelDescription(ModelInfo):
    """A copy of what is known of a model, for a process that has no weights. It can be pickled."""

    name: str
    tokenizer: Tokenizer
    attention_layers: AttentionLayers
    max_source_tokens: int
    max_target_tokens: int
    precision: str
    alignment: AlignmentPreset | None
    is_encoder_decoder: bool
    family: str
    feature_shape: tuple[int, int] | None
    vocabulary_size: int
    own_generation_config: GenerationConfig
    generation_config: GenerationConfig
    encoder_width: int
    device: str
    has_slots: bool
    limits: ModelLimits

    @classmethod
    def of(cls, loaded: LoadedModel) -> ModelDescription:
        """Describes a model. Its methods leave their tensors behind."""
        layers = loaded.attention_layers
        methods = {name: method.describe() for name, method in layers.methods.items()}
        return cls(
            name=loaded.name,
            tokenizer=loaded.tokenizer,
            attention_layers=replace(layers, methods=methods),
            max_source_tokens=loaded.max_source_tokens,
            max_target_tokens=loaded.max_target_tokens,
            precision=loaded.precision,
            alignment=loaded.alignment,
            is_encoder_decoder=loaded.is_encoder_decoder,
            family=loaded.family,
            feature_shape=loaded.feature_shape,
            vocabulary_size=loaded.vocabulary_size,
            own_generation_config=loaded.own_generation_config,
            generation_config=loaded.generation_config,
            encoder_width=loaded.encoder_width if loaded.is_encoder_decoder else 0,
            device=loaded.device,
            has_slots=loaded.has_slots,
            limits=loaded.limits,
        )


def vocabulary_size_of(model: Any) -> int:
    """The number of rows of the input embedding."""
    return int(model.get_input_embeddings().weight.shape[0])


def generation_config_of(model: Any) -> GenerationConfig:
    """A model's own generation config, as `generate` completes it."""
    return model._prepare_generation_config(None)[0]
