"""Makes a model of its checkpoint: every tensor must be there, have the right shape, and be finite.

transformers fills missing tensors with random numbers, and prints a table of them. Here a missing tensor is an error.
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

from .files import CONFIG, Checkpoint
from .folder import CheckpointError

log = logging.getLogger(__name__)


class TooLargeError(CheckpointError):
    """A configuration describes a model that is far larger than the model's files."""


# How much more a model may have than its files while it is made. A shared tensor is in several places of the model. A
# table of positions may be in no file. One number of a quantized file stands for several numbers.
_MAX_FACTOR, _MAX_FACTOR_QUANTIZED = 4, 32
_EXTRA_ELEMENTS = 1 << 26
_EXTRA_TENSORS = 4096
_MODULES_PER_TENSOR = 4  # activations and dropout have no tensor

# The most numbers of a table of positions that is not in the files. Some families compute the table number by number.
_MAX_TABLE_ELEMENTS = 1 << 24

# How many names an error lists.
_MAX_NAMES = 3


def load_weights(auto: Any, checkpoint: Checkpoint, dtype: torch.dtype | str) -> PreTrainedModel:
    """Makes the model of a checkpoint, with weights of a dtype. `auto` is transformers' class for the kind of model.

    Raises CheckpointError if tensors are missing, are not used, or have other shapes than the configuration says.
    Raises TooLargeError, before any memory is used, if the model would be far larger than the files. Raises errors of
    any type from the family's own code, which computes with the configuration's values.
    """
    name = checkpoint.weights_file
    with limit_size(checkpoint), silence_transformers():
        model, report = auto.from_pretrained(
            checkpoint.name,
            revision=checkpoint.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the error below names them, with their shapes
        )
    for tensor, stored, expected in sorted(report["mismatched_keys"], key=str):
        sizes = f"is {_sizes(stored)}, and {_sizes(expected)} by {CONFIG}"
        raise CheckpointError(f"{name}: the tensor {tensor} {sizes}")
    if missing := report["missing_keys"]:
        raise CheckpointError(f"{name} lacks {_listed(missing)}")
    unused = report["unexpected_keys"]
    if more := [tensor for tensor in unused if _is_of_another_layer(model, tensor)]:
        raise CheckpointError(f"{name} has more layers than {CONFIG} says: {_listed(more)}")
    if unused:  # tensors for another task, such as a classifier's
        log.info("%s: not used: %s", name, _listed(unused))
    if report["error_msgs"]:
        raise CheckpointError(f"{name} is not of the model that {CONFIG} describes")
    return model


@torch.inference_mode()
def check_finite(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError if a tensor of the model has NaN or infinity."""
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    # A tensor in several places has several names: the name in the files comes first.
    for name, tensor in sorted(model.state_dict().items(), key=lambda item: item[0] not in checkpoint.shapes):
        key = tensor.data_ptr(), tensor.shape
        if tensor.is_floating_point() and tensor.numel() and key not in seen:
            tensors[name] = tensor
            seen.add(key)
    names = list(tensors)
    # If a tensor has NaN, its minimum and its maximum are NaN. This reads each tensor once, without a copy.
    extremes = [extreme for name in names for extreme in _comparable(tensors[name]).aminmax()]
    if not extremes:
        return
    finite = torch.stack([extreme.float() for extreme in extremes]).isfinite().view(-1, 2).all(1).tolist()
    if not_finite := [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]:
        dtype = str(tensors[not_finite[0]].dtype).removeprefix("torch.")
        raise CheckpointError(f"{checkpoint.weights_file}: NaN or infinity, as {dtype}, in {_listed(not_finite)}")


def _comparable(tensor: Tensor) -> Tensor:
    """Returns the tensor in a dtype that torch can compare."""
    return tensor if tensor.dtype.itemsize > 1 else tensor.float()


@contextmanager
def limit_size(checkpoint: Checkpoint, *, limits_elements: bool = True, end: float = math.inf) -> Iterator[None]:
    """Raises TooLargeError as soon as a model that is made inside is far larger than its files.

    A model is made without memory first (on torch's device "meta"), and filled afterwards.

    Args:
        checkpoint: The model's files.
        limits_elements: Whether sizes of tensors are limited. Tensors that are never filled may have any size.
        end: The time, by the monotonic clock, after which making or running a model raises TimeoutError.
    """
    factor = _MAX_FACTOR_QUANTIZED if "quantization_config" in checkpoint.config else _MAX_FACTOR
    max_tensors = factor * len(checkpoint.shapes) + _EXTRA_TENSORS
    max_elements = factor * checkpoint.num_elements + _EXTRA_ELEMENTS if limits_elements else math.inf
    num_tensors = num_elements = num_modules = 0

    def check_time(*_: object) -> None:
        if time.monotonic() > end:
            raise TimeoutError("the model is not made in time")

    def count_module(_module: nn.Module, _name: str, _submodule: nn.Module | None) -> None:
        nonlocal num_modules
        num_modules += 1
        check()

    def count_tensor(module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal num_tensors, num_elements
        if tensor is not None and tensor.is_meta:
            _check_table(module, tensor, checkpoint)
            num_tensors += 1
            num_elements += tensor.numel()
            check()

    def check() -> None:
        check_time()
        if num_tensors > max_tensors or num_elements > max_elements or num_modules > _MODULES_PER_TENSOR * max_tensors:
            contents = f"{len(checkpoint.shapes):,} tensors of {checkpoint.num_elements:,} numbers"
            files = f"{checkpoint.weights_file}, which has {contents}"
            raise TooLargeError(f"{CONFIG} describes a model far larger than {files}")

    hooks = [
        register_module_parameter_registration_hook(count_tensor),
        register_module_buffer_registration_hook(count_tensor),
        register_module_module_registration_hook(count_module),
        register_module_forward_pre_hook(check_time),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_table(module: nn.Module, tensor: Tensor, checkpoint: Checkpoint) -> None:
    """Raises TooLargeError for a table of positions that is not in the files and would take long to compute."""
    is_large = "Position" in type(module).__name__ and tensor.numel() > _MAX_TABLE_ELEMENTS
    if is_large and tuple(tensor.shape) not in checkpoint.shapes.values():
        raise TooLargeError(f"{CONFIG} describes a table of positions with {tensor.numel():,} numbers")


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Keeps transformers from printing its table of missing tensors. An error names them in one line."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _is_of_another_layer(model: nn.Module, tensor: str) -> bool:
    """Whether a tensor belongs to a layer after the model's last layer."""
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
    shown = ", ".join(names[:_MAX_NAMES])
    label = "the tensor" if len(names) == 1 else f"{len(names):,} tensors:"
    return f"{label} {shown}{', ...' if len(names) > _MAX_NAMES else ''}"


def _sizes(shape: Any) -> str:
    return "x".join(map(str, shape)) or "one number"
