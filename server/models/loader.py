"""Loads models: reads and checks a checkpoint, packs its linear layers, and chooses a backend.

Weights come from safetensors files only, and no code of a checkpoint ever runs.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...kernels.cpu import is_supported, links_words
from ..alignment import AlignmentPreset
from ..capture import AttentionLayers, feature_shape, find_attention_layers, register
from ..checkpoint import (
    CONFIG,
    Checkpoint,
    CheckpointError,
    TooLargeError,
    check_finite,
    check_generation_config,
    check_token_ids,
    class_for,
    load_alignment_preset,
    load_tokenizer,
    load_weights,
    model_error,
    open_checkpoint,
    read_config,
    read_generation_config,
    tokenizer_error,
)
from ..layers import Precision, fuse_projections, pack, shared_weight
from ..memory import is_out_of_memory
from ..text import Tokenizer
from .backend import Backend, BackendConfig
from .backend_selection import BACKENDS, select_backend
from .loaded_model import LoadedModel, generation_config_of, vocabulary_size_of

log = logging.getLogger(__name__)

BUNDLED_NAME = "tatoeba-en-de"

# Seconds of compilation from which on the log mentions it.
_LONG = 5.0

# The devices that models run on. Of CPUs there is one.
_DEVICE = re.compile(r"cpu(:0)?|cuda(:(0|[1-9]\d{0,2}))?", re.ASCII)

# The length limit of models whose positions have no limit of their own, such as T5's relative ones.
_DEFAULT_LENGTH = 4096


LoadingStage = Literal["reading files", "compiling programs", "packing layers", "trying ways to run"]
"""What `load` is at."""

LOADING_STAGES: tuple[LoadingStage, ...] = get_args(LoadingStage)
"""All stages, in their order."""


class ModelError(Exception):
    """A model that cannot be served. The message is for the person who starts the server."""


class _Options(NamedTuple):
    """How `load` was asked to run a model."""

    device: torch.device
    dtype: torch.dtype | str  # that the weights are loaded in
    precision: Precision | None  # of the linear layers on a CPU; None: they stay as they are
    packing: Precision | None  # likewise, but None too if the caller wants no packing
    is_compiled: bool


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
    on_stage: Callable[[LoadingStage], None] = lambda _: None,
) -> LoadedModel:
    """Load a model from a directory or by its id on the Hugging Face hub; None: the bundled one.

    `dtype="auto"` is float32 on a CPU and the checkpoint's own type elsewhere; "int8" is for CPUs alone. `max_length`
    lowers the number of positions that requests may use. On a CPU linear layers are packed for the CPU, unless `packed`
    is False. With `compiled`, torch.compile makes one graph of a step of the batch, with linear layers as they are.
    `on_stage` is called at the beginning of each stage that there is. Raises ModelError with a message for people.
    """
    register()
    if not str(path).strip():
        raise ModelError("the model's name is empty: give a directory, or an id on the Hugging Face hub")
    where = bundled_model() if path is None else path
    options = _options(device, dtype, is_packed=packed, is_compiled=compiled)
    on_stage("reading files")
    checkpoint = _open(where)
    with _errors_for_people(where, checkpoint, options.device):
        config, pretrained = _read_files(checkpoint)
        model = _load_model(checkpoint, config, options)
        tokenizer = _make_tokenizer(pretrained, model, checkpoint, config)
        source, target = _lengths(config, max_length, is_speech=feature_shape(model) is not None)
        _check_lengths(tokenizer, config, source, target, max_length)
        attention_layers = find_attention_layers(model)
        on_stage("compiling programs")
        alignment = _load_alignment(checkpoint, attention_layers)
        backend = _make_backend(model, attention_layers, options, (source, target), on_stage)
    _check_attention(attention_layers, where)
    precision = "int8" if options.precision == "int8" else str(model.dtype).removeprefix("torch.")
    name = name or (BUNDLED_NAME if path is None else _name(path))
    return LoadedModel(name, model, tokenizer, attention_layers, source, target, precision, backend, alignment)


# ---- steps of load --------------------------------------------------------------------------------------------------


def _options(device: str, dtype: str, *, is_packed: bool, is_compiled: bool) -> _Options:
    """Check the arguments of `load` that need no model."""
    chosen = _device(device)
    torch_dtype = _dtype(dtype, chosen)
    precision = _precision(dtype, chosen)
    if is_compiled and precision == "int8":
        raise ModelError("int8 cannot be compiled: its layers are packed for kernels that the compiler does not know")
    packing = precision if is_packed and not is_compiled else None
    return _Options(chosen, torch_dtype, precision, packing, is_compiled)


def _open(where: str | Path) -> Checkpoint:
    try:
        return open_checkpoint(where)
    except CheckpointError as error:
        log.debug("loading failed", exc_info=True)
        raise ModelError(f"cannot load {where}: {error}") from error


@contextmanager
def _errors_for_people(where: str | Path, checkpoint: Checkpoint, device: torch.device) -> Iterator[None]:
    """Turn whatever an unusual checkpoint makes its libraries raise into a ModelError."""
    try:
        yield
    except TooLargeError as error:
        raise ModelError(f"cannot load {where}: {model_error(checkpoint, error)}") from error
    except CheckpointError as error:
        log.debug("loading failed", exc_info=True)
        raise ModelError(f"cannot load {where}: {error}") from error
    except Exception as error:
        log.debug("loading failed", exc_info=True)
        if is_out_of_memory(error):
            problem: object = f"it needs more memory than there is on {device}"
        else:
            problem = model_error(checkpoint, error)
        raise ModelError(f"cannot load {where}: {problem}") from error


def _read_files(checkpoint: Checkpoint) -> tuple[PreTrainedConfig, Any]:
    """The config of a model, and transformers' tokenizer."""
    check_generation_config(checkpoint.generation_config, checkpoint)  # before transformers reads it
    read_generation_config(checkpoint)
    config = read_config(checkpoint)
    pretrained = load_tokenizer(checkpoint, config)
    _check_vocabularies(config, pretrained)
    return config, pretrained


def _load_model(checkpoint: Checkpoint, config: PreTrainedConfig, options: _Options) -> PreTrainedModel:
    """The model on its device, with weights that are finite and a generation config that requests can use."""
    model = load_weights(class_for(config), checkpoint, options.dtype)
    nn.Module.to(model.eval().requires_grad_(False), options.device)
    check_finite(model, checkpoint)
    _check_generation(model, checkpoint)
    return model


def _load_alignment(checkpoint: Checkpoint, attention_layers: AttentionLayers) -> AlignmentPreset | None:
    """The heads of cross-attention that align words, if the model has such attention and its files say so."""
    heads = attention_layers.heads.get("cross", ())
    if heads:
        links_words()  # compiles what links words, so that no request waits for it
    return load_alignment_preset(checkpoint, len(heads), heads[0]) if heads else None


def _make_backend(
    model: PreTrainedModel,
    attention_layers: AttentionLayers,
    options: _Options,
    lengths: tuple[int, int],
    on_stage: Callable[[LoadingStage], None],
) -> Backend | None:
    """Fuse and pack the linear layers of a model, and choose its backend."""
    weight = shared_weight(model)  # before the layers are packed
    if not options.is_compiled:  # the compiler does not know the cache within a FusedLinear
        fuse_projections(model)
    if options.packing is not None:
        _compile_cpu_kernels()
        on_stage("packing layers")
        wants_panels = any(backend.reads_panels(model) for backend in BACKENDS)
        report = pack(model, options.packing, in_panels=lambda _: wants_panels)
        log.info("%s", report if log.isEnabledFor(logging.DEBUG) else report.summary)
    on_stage("trying ways to run")
    backend = select_backend(
        model,
        attention_layers,
        BackendConfig(*lengths, is_batch_invariant=options.packing == "int8"),
        is_exact=model.dtype == torch.float32 and options.precision != "int8",
        is_compiled=options.is_compiled,
    )
    if backend is not None and backend.lm_head is not None and options.packing is not None:
        backend.lm_head.enable_search()
        if options.packing == "float32" and weight is not None:
            backend.lm_head.enable_screening(weight)
    return backend


def _compile_cpu_kernels() -> None:
    """Compile the kernels of the CPU, unless an earlier run has done so."""
    began = time.monotonic()
    # Numba tells nobody beforehand whether a kernel is kept from an earlier run.
    notice = threading.Timer(_LONG, log.info, ["compiling kernels for this CPU, once: a busy machine takes minutes"])
    notice.daemon = True
    notice.start()
    supported = is_supported()
    notice.cancel()
    if supported and (seconds := time.monotonic() - began) > _LONG:
        log.info("kernels for this CPU took %.0f s to compile; they are kept for the next time", seconds)


# ---- checks ---------------------------------------------------------------------------------------------------------


def _check_attention(attention_layers: AttentionLayers, where: str | Path) -> None:
    """Refuse models without attention, with a decoder that looks ahead, or whose layers of a kind differ in heads."""
    if not attention_layers.heads:
        raise ModelError(f"cannot serve {where}: the model reports no attention")
    if not attention_layers.is_causal:
        raise ModelError(f"cannot serve {where}: its decoder looks at tokens that come later, so no token has one row")
    for kind, heads in attention_layers.heads.items():
        if len(set(heads)) > 1:
            raise ModelError(f"cannot serve {where}: its layers differ in the number of {kind} heads: {heads}")


def _check_vocabularies(config: PreTrainedConfig, pretrained: Any) -> None:
    """Refuse models whose source and target have vocabularies of their own: the id of a token would be ambiguous."""
    source, target = (getattr(config, f"{side}_vocab_size", 0) for side in ("src", "tgt"))
    if source != target or getattr(pretrained, "separate_vocabs", False):
        raise CheckpointError("models with separate source and target vocabularies are not supported")


def _check_generation(model: Any, checkpoint: Checkpoint) -> None:
    """Refuse tokens and numbers of the generation config with which every request would fail."""
    vocabulary = vocabulary_size_of(model)
    scored = int(getattr(model.get_output_embeddings(), "out_features", vocabulary))
    check_generation_config(generation_config_of(model).to_dict(), checkpoint, min(vocabulary, scored))


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
    vocabulary = vocabulary_size_of(model)
    tokens = {"decoder_start_token_id": next(iter(tokenizer.start_ids(tokenizer.resolve_languages("", ""))), None)}
    if config.is_encoder_decoder:
        tokens["pad_token_id"] = config.pad_token_id
    for name, token in tokens.items():
        if token is not None and not 0 <= token < vocabulary:
            raise CheckpointError(f"{CONFIG}: {name} {token} is outside the vocabulary of {vocabulary:,} tokens")
    if pretrained.vocab_size > vocabulary:
        message = f"its tokenizer has {pretrained.vocab_size:,} tokens, and the model {vocabulary:,}"
        raise CheckpointError(message)
    check_token_ids(pretrained, checkpoint, config, vocabulary)
    return tokenizer


def _check_lengths(
    tokenizer: Tokenizer, config: PreTrainedConfig, source: int, target: int, max_length: int | None
) -> None:
    """Refuse limits that leave no room for a text: the special tokens around a text, and one token of the text."""
    languages = tokenizer.resolve_languages("", "")
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


# ---- arguments of load ----------------------------------------------------------------------------------------------


def _name(path: str | Path) -> str:
    """The name of a model: the last component of a directory, or a hub id as it is."""
    return Path(path).resolve().name if Path(path).exists() else str(path)


def _device(name: str) -> torch.device:
    """The device of a name. Raises ModelError for a device that is not there or does not work."""
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
            found = (
                f"cuda:0 to cuda:{count - 1}" if count > 1 else "cuda:0 alone" if count else "no GPU that it can use"
            )
            raise ModelError(f"cannot use device {name}: torch finds {found}")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            log.debug("the device fails", exc_info=True)
            raise ModelError(f"cannot use device {name}: it is there, but takes no memory or no work") from error
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    """The type that the weights are loaded in. Raises ModelError for an unknown type."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    known = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")} | {"int8": torch.float32}
    if name not in known:
        raise ModelError(f"unknown dtype {name}: choose auto, {', '.join(known)}")
    if name == "int8" and device.type != "cpu":
        raise ModelError(f"dtype int8 is for CPUs, not for {device}")
    return known[name]


def _precision(dtype: str, device: torch.device) -> Precision | None:
    """The precision that linear layers are packed in; None: they stay as they are."""
    if device.type != "cpu":
        return None
    precisions: dict[str, Precision] = {"auto": "float32", "float32": "float32", "bfloat16": "bfloat16", "int8": "int8"}
    return precisions.get(dtype)


def _lengths(config: Any, max_length: int | None, *, is_speech: bool) -> tuple[int, int]:
    """The most source tokens and target tokens, by the model's position tables and `max_length`.

    All recordings that a speech model reads have one length.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or _DEFAULT_LENGTH
    positions = min(positions, _rotary_limit(text) or positions)
    # FSMT and similar families give the encoder and the decoder each a table.
    source = getattr(config, "max_source_positions", None) or positions
    target = getattr(config, "max_target_positions", None) or positions
    limit = max_length or max(source, target)
    return source if is_speech else min(source, limit), min(target, limit)


def _rotary_limit(text: Any) -> int | None:
    """The positions up to which LongRoPE (arXiv:2402.13753) is the same for all texts; None for other positions.

    A longer text turns all its positions otherwise, the first ones too. Keys in a cache would have to be turned again,
    and a row of a batch would depend on the lengths of the other rows.
    """
    rotary = getattr(text, "rope_parameters", None) or {}
    if not isinstance(rotary, dict) or rotary.get("rope_type") != "longrope":
        return None
    name = "original_max_position_embeddings"
    limit = rotary.get(name) or getattr(text, name, None)
    if limit is not None:
        log.info("texts may have %d tokens: a longer text would turn LongRoPE's first positions otherwise", limit)
    return limit
