"""Loads models and says what they are: safetensors only, never code from a checkpoint."""

from __future__ import annotations

import inspect
import json
import logging
import re
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from ...kernels.cpu.program import is_supported
from ..capture.attention_function import AttentionKind, register
from ..capture.attention_layers import AttentionLayers, find_attention_layers
from ..checkpoint.files import CONFIG, Checkpoint, CheckpointError, open_checkpoint
from ..checkpoint.generation_config import check_generation_config
from ..checkpoint.model_config import class_for, model_error, read_config, read_generation_config
from ..checkpoint.tokenizer_files import load_tokenizer, tokenizer_error
from ..checkpoint.weights import TooLargeError, check_finite, load_weights
from ..layers.fused_qkv import fuse_projections
from ..layers.lm_head import shared_weight
from ..layers.packed_linear import Precision, pack
from ..memory import is_out_of_memory
from ..text.tokenizer import Tokenizer
from .bart_cpu_backend import is_programmed
from .transformers_backend import TransformersBackend, select_backend

log = logging.getLogger(__name__)

BUNDLED_NAME = "tatoeba-en-de"

# Seconds that are worth a word.
_LONG = 5.0

# Devices that models run on. Of CPUs there is one.
_DEVICE = re.compile(r"cpu(:0)?|cuda(:(0|[1-9]\d{0,2}))?", re.ASCII)

# For models whose positions have no end of their own, such as T5's relative ones.
_DEFAULT_LENGTH = 4096


class ModelError(Exception):
    """A model that cannot be served. The message is for the person who starts the server."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run. Everything about it that does not change with requests."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    attention_layers: AttentionLayers
    max_source_tokens: int
    max_target_tokens: int
    precision: str  # of its linear layers: int8, or a type of torch's by name
    backend: TransformersBackend | None  # how it is run in slots; None: its requests are worked on one by one

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the source apart."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def family(self) -> str:
        """The model type that transformers gives it, such as "marian"."""
        return str(self.model.config.model_type)

    @cached_property
    def vocabulary_size(self) -> int:
        """Token ids are below this."""
        return _vocabulary_size(self.model)

    @cached_property
    def takes_logits_to_keep(self) -> bool:
        """Whether a forward pass can be told for how many positions logits are wanted."""
        return "logits_to_keep" in inspect.signature(self.model.forward).parameters

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """The model's own, as `generate` completes it: to be copied, not changed."""
        return _generation_config(self.model)

    @property
    def kinds(self) -> tuple[AttentionKind, ...]:
        """The kinds of attention it has; the first is what a request gets that names none."""
        order: tuple[AttentionKind, ...] = ("cross", "decoder_self", "encoder_self")
        return tuple(kind for kind in order if self.attention_layers.layers(kind))

    def heads(self, kind: AttentionKind) -> int:
        """How many query heads the layers of a kind have."""
        return self.attention_layers.heads[kind][0]


def bundled_model() -> Path:
    """The folder of the English-German model that comes with the package."""
    return Path(__file__).parents[1] / "bundled"


def load(
    path: str | Path | None = None,
    *,
    name: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    max_length: int | None = None,
    packed: bool = True,
    compiled: bool = False,
) -> LoadedModel:
    """Loads a model from a directory or by its id on the Hugging Face hub; None: the bundled one.

    `dtype="auto"` is float32 on a CPU and the checkpoint's own type elsewhere; "int8" is for CPUs alone. `max_length`
    lowers the number of positions that requests may use. On a CPU linear layers are packed for it, unless `packed` is
    False. `compiled` has torch.compile make one graph of a step of the batch, with linear layers as they are. Raises
    ModelError with a message for people.
    """
    register()
    if not str(path).strip():
        raise ModelError("the model's name is empty: give a directory, or an id on the Hugging Face hub")
    where = bundled_model() if path is None else path
    chosen_device = _device(device)
    chosen_dtype = _dtype(dtype, chosen_device)
    precision = _precision(dtype, chosen_device)
    if compiled and precision == "int8":
        raise ModelError("int8 cannot be compiled: its layers are packed for kernels that the compiler does not know")
    try:
        checkpoint = open_checkpoint(where)
    except CheckpointError as error:
        log.debug("loading failed", exc_info=True)
        raise ModelError(f"cannot load {where}: {error}") from error
    name = name or (BUNDLED_NAME if path is None else _name(path))
    try:
        check_generation_config(checkpoint.generation_config, checkpoint)  # before transformers makes something of it
        read_generation_config(checkpoint)
        config = read_config(checkpoint)
        pretrained = load_tokenizer(checkpoint, config)
        _check_vocabularies(config, pretrained)
        model = load_weights(class_for(config), checkpoint, chosen_dtype)
        nn.Module.to(model.eval().requires_grad_(False), chosen_device)
        check_finite(model, checkpoint)
        _check_generation(model, checkpoint)
        tokenizer = _make_tokenizer(pretrained, model, checkpoint, config)
        source, target = _lengths(config, max_length)
        _check_lengths(tokenizer, config, source, target, max_length)
        attention_layers = find_attention_layers(model)
        weight = shared_weight(model)  # of the layers as they are
        packing = precision if packed and not compiled else None
        if not compiled:  # what one layer makes of another is not for the compiler
            fuse_projections(model)
        if packing is not None:
            _prepare_programs()
            programmed = is_programmed(model)
            report = pack(model, packing, in_panels=lambda _: programmed)
            log.info("%s", report if log.isEnabledFor(logging.DEBUG) else report.summary)
        is_exact = model.dtype == torch.float32 and precision != "int8"
        is_invariant = packing == "int8"
        backend = select_backend(model, attention_layers, source, target, is_exact=is_exact, is_invariant=is_invariant)
        if backend is not None:
            if backend.lm_head is not None and packing is not None:
                backend.lm_head.search()
            if backend.lm_head is not None and packing == "float32" and weight is not None:
                backend.lm_head.screen(weight)
            if compiled:
                backend.compile()
    except TooLargeError as error:
        raise ModelError(f"cannot load {where}: {model_error(checkpoint, error)}") from error
    except CheckpointError as error:
        log.debug("loading failed", exc_info=True)
        raise ModelError(f"cannot load {where}: {error}") from error
    except Exception as error:  # whatever an unusual checkpoint makes its libraries raise
        log.debug("loading failed", exc_info=True)
        if is_out_of_memory(error):
            problem: object = f"it needs more memory than there is on {chosen_device}"
        else:
            problem = model_error(checkpoint, error)
        raise ModelError(f"cannot load {where}: {problem}") from error
    if not attention_layers.heads:
        raise ModelError(f"cannot serve {where}: the model reports no attention")
    for kind, heads in attention_layers.heads.items():
        if len(set(heads)) > 1:
            raise ModelError(f"cannot serve {where}: its layers differ in the number of {kind} heads: {heads}")
    shown = "int8" if precision == "int8" else str(model.dtype).removeprefix("torch.")
    return LoadedModel(name, model, tokenizer, attention_layers, source, target, shown, backend)


def _prepare_programs() -> None:
    """Compiles the CPU's kernels, where that has not been done here before."""
    began = time.monotonic()
    if is_supported() and (seconds := time.monotonic() - began) > _LONG:
        log.info("kernels for this CPU took %.0f s to compile; they are kept for the next time", seconds)


def _check_vocabularies(config: PreTrainedConfig, pretrained: Any) -> None:
    """Refuses models whose source and target have vocabularies of their own: a token's id would not say which."""
    source, target = (getattr(config, f"{side}_vocab_size", 0) for side in ("src", "tgt"))
    if source != target or getattr(pretrained, "separate_vocabs", False):
        raise CheckpointError("models with separate source and target vocabularies are not supported")


def _check_generation(model: Any, checkpoint: Checkpoint) -> None:
    """Refuses tokens and numbers of the generation config that every request would fail by."""
    vocabulary = _vocabulary_size(model)
    scored = int(getattr(model.get_output_embeddings(), "out_features", vocabulary))
    check_generation_config(_generation_config(model).to_dict(), checkpoint, min(vocabulary, scored))


def _vocabulary_size(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _generation_config(model: Any) -> GenerationConfig:
    """A model's own generation config, as `generate` completes it."""
    return model._prepare_generation_config(None)[0]


def _make_tokenizer(
    pretrained: Any, model: PreTrainedModel, checkpoint: Checkpoint, config: PreTrainedConfig
) -> Tokenizer:
    def make(pretrained: Any) -> Tokenizer:
        tokenizer = Tokenizer(pretrained, model)
        tokenizer.encode_source("a")
        return tokenizer

    try:
        tokenizer = make(pretrained)
    except Exception as error:  # as in `load_tokenizer`
        raise tokenizer_error(checkpoint, config, error, make) from error
    vocabulary = _vocabulary_size(model)
    tokens = {"decoder_start_token_id": next(iter(tokenizer.start_ids(tokenizer.languages_of("", ""))), None)}
    if config.is_encoder_decoder:
        tokens["pad_token_id"] = config.pad_token_id
    for name, token in tokens.items():
        if token is not None and not 0 <= token < vocabulary:
            raise CheckpointError(f"{CONFIG}: {name} {token} is outside the vocabulary of {vocabulary:,} tokens")
    if pretrained.vocab_size > vocabulary:
        message = f"its tokenizer has {pretrained.vocab_size:,} tokens, and the model {vocabulary:,}"
        raise CheckpointError(message)
    return tokenizer


def _check_lengths(
    tokenizer: Tokenizer, config: PreTrainedConfig, source: int, target: int, max_length: int | None
) -> None:
    """Refuses limits that leave no room for a text: special tokens around it, and one token of its own."""
    languages = tokenizer.languages_of("", "")
    context, around = len(tokenizer.start_ids(languages)), len(tokenizer.encode_source("", languages).ids)
    if config.is_encoder_decoder:
        room, needed = min(source, target), max(around, context) + 1
    else:  # prompt and continuation share the positions
        room, needed = target, around + 2
    if room < needed:
        fields = [name for name, value in config.to_dict().items() if value == room and "position" in name]
        at = ": ".join([CONFIG, *fields[:1]])
        what = f"{at}: {room} positions are" if max_length is None else f"max_length {max_length} is"
        raise CheckpointError(f"{what} too few for any text: this model needs at least {needed}")


def _name(path: str | Path) -> str:
    """A directory's last component; a hub id as it is."""
    return Path(path).resolve().name if Path(path).exists() else str(path)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if _DEVICE.fullmatch(name) is None:
        raise ModelError(f"cannot use device {json.dumps(name)}: it must be auto, cpu, cuda, or a GPU such as cuda:1")
    device = torch.device(name)
    if device.type == "cuda":
        if torch.version.cuda is None and torch.version.hip is None:
            raise ModelError(f"cannot use device {name}: the torch that is installed is made for CPUs alone")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            there = (
                "no GPU that it can use"
                if not count
                else "cuda:0 alone"
                if count == 1
                else f"cuda:0 to cuda:{count - 1}"
            )
            raise ModelError(f"cannot use device {name}: torch finds {there}")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            log.debug("the device fails", exc_info=True)
            raise ModelError(f"cannot use device {name}: it is there, but takes no memory or no work") from error
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    """The type that the weights are loaded in."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    known = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")} | {"int8": torch.float32}
    if name not in known:
        raise ModelError(f"unknown dtype {name}: choose auto, {', '.join(known)}")
    if name == "int8" and device.type != "cpu":
        raise ModelError(f"dtype int8 is for CPUs, not for {device}")
    return known[name]


def _precision(dtype: str, device: torch.device) -> Precision | None:
    """How linear layers are packed; None where they are left as they are."""
    if device.type != "cpu":
        return None
    precisions: dict[str, Precision] = {"auto": "float32", "float32": "float32", "bfloat16": "bfloat16", "int8": "int8"}
    return precisions.get(dtype)


def _lengths(config: Any, max_length: int | None) -> tuple[int, int]:
    """The most source tokens and target tokens, by the model's position tables and `max_length`."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or _DEFAULT_LENGTH
    # FSMT and its like give encoder and decoder tables of their own.
    source = getattr(config, "max_source_positions", None) or positions
    target = getattr(config, "max_target_positions", None) or positions
    limit = max_length or max(source, target)
    return min(source, limit), min(target, limit)
