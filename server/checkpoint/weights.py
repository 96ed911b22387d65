"""A model from its checkpoint: every tensor there, of the right shape, and finite.

transformers fills what is missing with random numbers, and says so in a table; here that is an error. Knows modules and
their tensors; knows neither attention nor requests.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_forward_pre_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from .files import CONFIG, Checkpoint, CheckpointError

log = logging.getLogger(__name__)


class TooLargeError(CheckpointError):
    """A configuration describes a model that is far larger than its files."""


# How much more a model may have, while it is made, than its files: tensors that are shared stand in several places, and
# tables of positions in none. Numbers of a quantized file stand for several.
_TIMES, _TIMES_QUANTIZED = 4, 32
_MORE_NUMBERS = 1 << 26
_MORE_TENSORS = 4096
_MODULES_PER_TENSOR = 4  # some have none: activations, dropout

# Of names that are listed, so many are said.
_SAID = 3


def load_weights(auto: Any, checkpoint: Checkpoint, dtype: torch.dtype | str) -> PreTrainedModel:
    """Makes the model of a checkpoint, with numbers of a type. `auto` is transformers' class for its kind.

    Raises CheckpointError where tensors are missing, are not used, or have other shapes than the configuration says;
    TooLargeError before it takes the memory, where that would be far more than the files hold; and whatever the
    family's own code raises, which does arithmetic with a configuration's values.
    """
    name = checkpoint.weights
    with bounded(checkpoint), silent():
        model, found = auto.from_pretrained(
            checkpoint.name,
            revision=checkpoint.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the error below names them, with their shapes
        )
    for tensor, stored, expected in sorted(found["mismatched_keys"], key=str):
        sizes = f"is {_sizes(stored)}, and {_sizes(expected)} by {CONFIG}"
        raise CheckpointError(f"{name}: the tensor {tensor} {sizes}")
    if missing := found["missing_keys"]:
        raise CheckpointError(f"{name} lacks {_listed(missing)}")
    unused = found["unexpected_keys"]
    if more := [tensor for tensor in unused if _is_of_another_layer(model, tensor)]:
        raise CheckpointError(f"{name} has more layers than {CONFIG} says: {_listed(more)}")
    if unused:  # of another use, such as a classifier's
        log.info("%s: not used: %s", name, _listed(unused))
    if found["error_msgs"]:
        raise CheckpointError(f"{name} is not of the model that {CONFIG} describes")
    return model


@torch.inference_mode()
def check_finite(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError where a tensor of the model has NaN or infinity."""
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    # Of a tensor that stands in several places, the name that the files have comes first.
    for name, tensor in sorted(model.state_dict().items(), key=lambda item: item[0] not in checkpoint.shapes):
        place = tensor.data_ptr(), tensor.shape
        if tensor.is_floating_point() and tensor.numel() and place not in seen:
            tensors[name] = tensor
            seen.add(place)
    names = list(tensors)
    # NaN is both the least and the greatest number where there is one. A single look, without a copy.
    ends = [end for name in names for end in _native(tensors[name]).aminmax()]
    if not ends:
        return
    finite = torch.stack([end.float() for end in ends]).isfinite().view(-1, 2).all(1).tolist()
    if bad := [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]:
        kind = str(tensors[bad[0]].dtype).removeprefix("torch.")
        raise CheckpointError(f"{checkpoint.weights}: NaN or infinity, as {kind}, in {_listed(bad)}")


def _native(tensor: Tensor) -> Tensor:
    """A tensor of a type that can be compared."""
    return tensor if tensor.dtype.itemsize > 1 else tensor.float()


@contextmanager
def bounded(checkpoint: Checkpoint, *, numbers_too: bool = True, end: float = math.inf) -> Iterator[None]:
    """Raises TooLargeError as soon as a model is made that is far larger than its files.

    It is made without memory at first ("meta"), and filled afterwards. `numbers_too` is False for models that are not
    filled: they may have few tensors of any size. Raises TimeoutError where a model is made, or run, after `end` by the
    monotonic clock.
    """
    times = _TIMES_QUANTIZED if "quantization_config" in checkpoint.config else _TIMES
    most_tensors = times * len(checkpoint.shapes) + _MORE_TENSORS
    most_numbers = times * checkpoint.numbers + _MORE_NUMBERS if numbers_too else math.inf
    tensors = numbers = modules = 0

    def check_time(*_: object) -> None:
        if time.monotonic() > end:
            raise TimeoutError("the model is not made in time")

    def count_module(_module: nn.Module, _name: str, _submodule: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        check()

    def count(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, numbers
        if tensor is None or not tensor.is_meta:
            return
        tensors += 1
        numbers += tensor.numel()
        check()

    def check() -> None:
        check_time()
        if tensors > most_tensors or numbers > most_numbers or modules > _MODULES_PER_TENSOR * most_tensors:
            held = f"{len(checkpoint.shapes):,} tensors of {checkpoint.numbers:,} numbers"
            raise TooLargeError(f"{CONFIG} describes a model far larger than {checkpoint.weights}, which has {held}")

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
        register_module_module_registration_hook(count_module),
        register_module_forward_pre_hook(check_time),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def silent() -> Iterator[None]:
    """Keeps transformers from printing its table of missing tensors: an error names them in a line."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _is_of_another_layer(model: nn.Module, tensor: str) -> bool:
    """Whether a tensor belongs to a layer beyond those that a model has."""
    for number in re.finditer(r"\.(\d+)\.", tensor):
        try:
            layers = model.get_submodule(tensor[: number.start()])
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList) and int(number[1]) >= len(layers):
            return True
    return False


def _listed(tensors: Collection[str]) -> str:
    names = sorted(
        tensors, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )
    said = ", ".join(names[:_SAID])
    what = "the tensor" if len(names) == 1 else f"{len(names):,} tensors:"
    return f"{what} {said}{', ...' if len(names) > _SAID else ''}"


def _sizes(shape: Any) -> str:
    return "x".join(map(str, shape)) or "one number"
