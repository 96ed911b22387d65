"""The results of other programs for Sidelight's requests: transformers' matrices and tokens, Inseq's reductions.

`inseq_peer` has Inseq's attributions. This module knows folders of models and token ids. It does not know Sidelight's
engine and messages, so that it cannot share a mistake with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inseq_peer import Truth
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    GenerationMixin,
    set_seed,
)

# Inseq's names of its functions over heads or layers.
REDUCTIONS = ("mean", "max", "min", "sum", "prod", "absmax", "vnorm")


@dataclass(frozen=True)
class Matrices:
    """A model's attention in one forward pass, float32 `[layers, heads, queries, keys]`; None if the model has none."""

    decoder_self: np.ndarray
    cross: np.ndarray | None = None
    encoder_self: np.ndarray | None = None

    def steps(self, kind: str, first: int) -> np.ndarray:
        """The rows that predict the tokens from position `first` on, with Inseq's axes `[keys, steps, layers, heads]`.

        The row of a token is the query one position before the token. The last query predicts no token of the target.
        """
        return getattr(self, kind)[:, :, first - 1 : -1].transpose(3, 2, 0, 1)


@lru_cache(maxsize=4)
def load_model(path: Path) -> Any:
    """Loads transformers' own model from a folder, in float32.

    Falcon's eager attention adds ALiBi twice, in the mask and in the module: the module of the peer adds 0. The test of
    the adapters compares with `attn_implementation="sdpa"`, which adds ALiBi once.
    """
    config = AutoConfig.from_pretrained(path)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    auto = AutoModelForSpeechSeq2Seq if config.model_type == "whisper" else auto
    model = auto.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()
    for module in model.modules():
        if type(module).__name__ == "FalconAttention" and config.alibi:
            module.register_forward_pre_hook(
                lambda _, arguments, options: (arguments, options | {"alibi": 0 * options["alibi"]}), with_kwargs=True
            )
    return model


def load_tokenizer(path: Path) -> Any:
    """Loads transformers' own tokenizer from a folder."""
    return AutoTokenizer.from_pretrained(path)


@torch.inference_mode()
def eager_attention(path: Path, source: Sequence[int] | np.ndarray, target: Sequence[int], **options: Any) -> Matrices:
    """Runs transformers' model in one eager forward pass with `output_attentions=True`.

    Args:
        path: The model's folder.
        source: The input of the encoder, special tokens included; for a speech model the features of a recording, for a
            decoder-only model the prompt.
        target: The input of the decoder, start token included; for a decoder-only model, the continuation.
        options: Options of the model. `use_cache` is False by default: with a cache FSMT masks no future positions.
    """
    model = load_model(path)
    options = {"output_attentions": True, "use_cache": False} | options
    if not model.config.is_encoder_decoder:
        return Matrices(_stack(model(input_ids=torch.tensor([[*source, *target]]), **options).attentions))
    inputs = {model.main_input_name: torch.tensor(np.array([source]))}
    output = model(**inputs, decoder_input_ids=torch.tensor([target]), **options)
    return Matrices(
        decoder_self=_stack(output.decoder_attentions),
        cross=_stack(output.cross_attentions),
        encoder_self=_stack(output.encoder_attentions),
    )


def _stack(layers: Sequence[torch.Tensor]) -> np.ndarray:
    return torch.stack([layer[0] for layer in layers]).numpy()


def generate_ids(
    path: Path, source: Sequence[int], *, max_new_tokens: int = 10, seed: int | None = None, **options: Any
) -> list[int]:
    """Runs transformers' `generate`, greedily or with a seed. Returns the new tokens, without start token or prompt."""
    model = load_model(path)
    ids = torch.tensor([source])
    if seed is not None:
        set_seed(seed)
    options = {"num_beams": 1, "do_sample": seed is not None} | options
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, **options)
    return output[0, 1 if model.config.is_encoder_decoder else len(source) :].tolist()


def generate_speech_ids(path: Path, features: np.ndarray, prompt: Sequence[int], **options: Any) -> list[int]:
    """Runs transformers' `generate` on a recording, greedily without `num_beams`. Returns the tokens behind the prompt.

    This is `generate` of all models: Whisper's own replaces the prompt, and leaves out tokens.
    """
    model = load_model(path)
    inputs = {"input_features": torch.from_numpy(features)[None], "decoder_input_ids": torch.tensor([prompt])}
    output = GenerationMixin.generate(model, **inputs, do_sample=False, **{"num_beams": 1, **options})
    return output[0, len(prompt) :].tolist()


def inseq_reduced(truth: Truth, over_heads: str, over_layers: str | None = None) -> Truth:
    """Reduces an attribution with Inseq's aggregators: over heads, and then over layers.

    An aggregator reduces the last axis. By default it also normalizes over source and target together, and its result
    is no reduction of the attention alone: here it does not normalize.

    Args:
        truth: An attribution with all layers and heads.
        over_heads: One of `REDUCTIONS`.
        over_layers: One of `REDUCTIONS`; None keeps all layers.
    """
    from inseq.data import FeatureAttributionSequenceOutput
    from inseq.utils.typing import TokenWithId

    output = FeatureAttributionSequenceOutput(
        source=[TokenWithId(str(id_), id_) for id_ in truth.source_ids],
        target=[TokenWithId(str(id_), id_) for id_ in truth.target_ids],
        source_attributions=None if truth.source is None else torch.from_numpy(truth.source),
        target_attributions=None if truth.target is None else torch.from_numpy(truth.target),
        sequence_scores={} if truth.encoder is None else {"encoder_self_attentions": torch.from_numpy(truth.encoder)},
        attr_pos_start=truth.first_step,
        attr_pos_end=len(truth.target_ids),
    )
    for function in (over_heads, *([] if over_layers is None else [over_layers])):
        # The check at the end of `aggregate` is for outputs that are shown: these must have two axes.
        output = output.aggregate("scores", function, normalize=False, do_post_aggregation_checks=False)
    encoder = output.sequence_scores.get("encoder_self_attentions")
    return Truth(
        source_ids=truth.source_ids,
        target_ids=truth.target_ids,
        first_step=truth.first_step,
        text=truth.text,
        source=None if output.source_attributions is None else output.source_attributions.numpy(),
        target=None if output.target_attributions is None else output.target_attributions.numpy(),
        encoder=None if encoder is None else encoder.numpy(),
    )
