"""LoadedModel: a model ready to run, and everything about it that does not change with requests."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from ..alignment import AlignmentPreset, default_preset
from ..capture import AttentionKind, AttentionLayers, CapturePlan, Head, feature_shape
from ..operations import ModelLimits
from ..text import Tokenizer
from .backend import Backend


@dataclass(frozen=True)
class LoadedModel:
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

    @cached_property
    def encoder_width(self) -> int:
        """The width of the encoder's states."""
        config: Any = getattr(self.model.get_encoder(), "config", self.model.config)  # FSMT's encoder has none
        return int(config.hidden_size)

    def heads(self, kind: AttentionKind) -> int:
        """The number of query heads in each layer of a kind."""
        return self.attention_layers.heads[kind][0]


def vocabulary_size_of(model: Any) -> int:
    """The number of rows of the input embedding."""
    return int(model.get_input_embeddings().weight.shape[0])


def generation_config_of(model: Any) -> GenerationConfig:
    """A model's own generation config, as `generate` completes it."""
    return model._prepare_generation_config(None)[0]
