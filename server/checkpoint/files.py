"""The files of a model: which files there are, and weights in safetensors only.

Every file of weights that is opened is a safetensors file in the model's folder. Only names and shapes of tensors are
read here, no numbers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING

from ..alignment import LEXICON_FILE
from .folder import CheckpointError, check_file, has_file, read_object
from .manifest import MANIFEST, READ_SUFFIXES, check_manifest, find_read_files
from .unsafe_fields import check_unsafe_fields

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"

# The name of a field that counts layers, and how many layers are always allowed. More layers are an error if the model
# has fewer tensors than layers.
_LAYERS = re.compile(r"(^|_)n?_?layers?$")
_ALLOWED_LAYERS = 1000

# The fields of a quantization without quant_method.
_BIT_FIELDS = ("load_in_8bit", "load_in_4bit")

# The most labels. A model that generates text needs none, and transformers makes a name for each label.
_MAX_LABELS = 10**6

# The names of torch's distributed checkpoints, which transformers loads before all other files.
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """Where the files of a model are, and what they contain.

    Attributes:
        name: How transformers finds the model: its folder, or its id on the hub.
        revision: The revision on the hub. For a folder it is "main", and has no meaning.
        folder: The folder of the files.
        config: The fields of config.json.
        generation_config: The fields of generation_config.json; empty if there is no such file.
        weights_file: The name of the file with the weights, or of the index that lists the files.
        shapes: The shapes of all tensors, by their names in the files.
    """

    name: str
    revision: str
    folder: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    weights_file: str
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def num_elements(self) -> int:
        """How many numbers all tensors have together."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Checks the files of a folder, or of an id on the Hugging Face hub. Raises CheckpointError.

    All files that a model may be made of are fetched from the hub before they are checked.
    """
    name, revision, folder = str(source), "main", Path(source)
    try:
        if folder.exists() and not folder.is_dir():
            raise CheckpointError("is a file, where a model's folder should be")
        list(folder.iterdir() if folder.is_dir() else ())
    except (OSError, ValueError) as error:
        raise CheckpointError("is no folder that can be read") from error
    if not folder.is_dir():
        folder = _fetch(name, "main")
        if not has_file(folder, CONFIG):
            raise CheckpointError(f"{CONFIG} is missing")
        if not has_file(folder, _WEIGHTS) and not has_file(folder, _INDEX):
            folder = _fetch_converted(name)
        revision = folder.name
    for file in find_read_files(folder):
        if (folder / file).is_symlink():
            check_file(folder, file)
    check_unsafe_fields(folder)
    config = read_object(folder, CONFIG)
    _check_config(config)
    _refuse_other_files(folder)
    weights, files = _find_weights(folder, config)
    if revision != "main":
        _fetch(name, revision, *files)
    check_manifest(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= _read_shapes(folder, file, weights)
    if not shapes:
        raise CheckpointError(f"{weights} has no tensors")
    for field, last, count in _integers(config):
        if not _LAYERS.search(last):
            continue
        if count < 0:
            raise CheckpointError(f"{CONFIG}: {field} must be 0 or above, not {count}")
        if count > max(_ALLOWED_LAYERS, len(shapes)):
            raise CheckpointError(
                f"{CONFIG}: {field} is {count:,}, and {weights} has no more than {len(shapes):,} tensors"
            )
    generation_config = read_object(folder, GENERATION_CONFIG) if has_file(folder, GENERATION_CONFIG) else {}
    return Checkpoint(name, revision, folder, config, generation_config, weights, shapes)


# ---- config.json ----------------------------------------------------------------------------------------------------


def _check_config(config: Mapping[str, Any]) -> None:
    family = config.get("model_type")
    if not isinstance(family, str):
        raise CheckpointError(f"{CONFIG} does not say a model_type")
    if family not in CONFIG_MAPPING:
        raise CheckpointError(f"{CONFIG}: model_type {family[:100]!r} is none that transformers knows")
    for field, last, labels in _integers(config):
        if last == "num_labels" and labels > _MAX_LABELS:
            raise CheckpointError(f"{CONFIG}: {field} must be at most {_MAX_LABELS:,}, not {labels:,}")
    quantization: Any = config.get("quantization_config")
    if quantization is not None and not (
        isinstance(quantization, dict) and ("quant_method" in quantization or any(map(quantization.get, _BIT_FIELDS)))
    ):
        raise CheckpointError(f"{CONFIG}: quantization_config must be an object with quant_method")


def _integers(config: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yields the fields that are whole numbers, with fields of sub-configurations: path, name and number."""
    parts = [("", config)]
    while parts:
        path, part = parts.pop(0)
        for name, value in part.items():
            if isinstance(value, dict):
                parts.append((f"{path}{name}.", cast(Mapping[str, Any], value)))
            elif isinstance(value, int):
                yield f"{path}{name}", name, value


# ---- weights --------------------------------------------------------------------------------------------------------


def _refuse_other_files(folder: Path) -> None:
    """Refuses files that transformers would open together with, or instead of, the files that are checked here."""
    if has_file(folder, _ADAPTER):
        raise CheckpointError(f"{_ADAPTER}: adapters are not served; merge them into the model")
    for path in folder.iterdir():
        if _DISTRIBUTED.match(path.name):
            raise CheckpointError(f"{path.name}: distributed checkpoints are not served; save the model in one piece")


def _find_weights(folder: Path, config: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Returns the file that transformers loads, and the files of weights: that file, or the files that it lists."""
    chosen = config.get("transformers_weights")
    if chosen is not None and not (isinstance(chosen, str) and chosen.endswith((".safetensors", _INDEX[5:]))):
        raise CheckpointError(f"{CONFIG}: transformers_weights must name a safetensors file")
    names = [str(chosen)] if chosen is not None else [_WEIGHTS, _INDEX]
    found = next((name for name in names if has_file(folder, name)), None)
    if found is None:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".h5"))
        hint = f" (and {others[0]} is not opened: only safetensors files are)" if others else ""
        raise CheckpointError(f"{names[0]} is missing{hint}")
    return found, [found] if found.endswith(".safetensors") else _list_shards(folder, found)


def _list_shards(folder: Path, index: str) -> list[str]:
    """Returns the files that an index names."""
    fields = read_object(folder, index)
    names: Any = fields.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: weight_map must say of each tensor in which file it is")
    if not isinstance(fields.get("metadata"), dict):
        raise CheckpointError(f"{index} has no metadata")
    shards: set[str] = set()
    for tensor, name in cast(Mapping[str, Any], names).items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: {tensor} must be in a safetensors file, not in {json.dumps(name)[:100]}")
        shards.add(name)
    return sorted(shards)


def _read_shapes(folder: Path, name: str, listed_by: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a file's tensors, by name, from the file's header."""
    try:
        path = check_file(folder, name)
    except CheckpointError as error:
        if name == listed_by:
            raise
        raise CheckpointError(f"{listed_by} names a file that cannot be: {error}") from error
    if not path.stat().st_size:
        raise CheckpointError(f"{name} is empty")
    try:
        with safe_open(path, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{name} is not a whole safetensors file") from error


# ---- the hub --------------------------------------------------------------------------------------------------------


def _fetch(name: str, revision: str, *files: str) -> Path:
    """Fetches files of an id on the hub into the hub's cache. Without `files`: all files that are no weights.

    Returns the folder of the files.
    """
    wanted = list(files) or [*(f"*{suffix}" for suffix in READ_SUFFIXES - {".safetensors"}), MANIFEST, LEXICON_FILE]
    try:
        folder = _snapshot(name, revision, wanted)
        if not files and not has_file(folder, _INDEX):
            return _snapshot(name, folder.name, [_WEIGHTS])
    except HFValidationError as error:
        raise CheckpointError("is neither a folder nor an id on the Hugging Face hub") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError("is not a folder, and the Hugging Face hub cannot be asked for it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reasons = {401: "has none that may be read without a login", 403: "does not let us read it", 404: "has none"}
        reason = reasons.get(status, f"answers with status {status}")
        raise CheckpointError(f"is not a folder, and the Hugging Face hub {reason}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError("is not a folder, and the files that the Hugging Face hub has cannot be kept") from error
    return folder


def _snapshot(name: str, revision: str, files: list[str]) -> Path:
    """Returns the folder of an id in the hub's cache, with those of the named files that exist."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        raise
    except Exception:  # a missing network raises errors of any type: the cache may have the files
        return Path(snapshot_download(name, revision=revision, local_files_only=True))


def _fetch_converted(name: str) -> Path:
    """Returns the files that the hub's own converter offers for an id without safetensors."""
    from transformers.safetensors_conversion import auto_conversion

    convert: Any = auto_conversion  # its declared type is wrong
    try:
        revision = convert(name)[1]
    except Exception as error:  # a missing service raises errors of any type
        raise CheckpointError(f"{_WEIGHTS} is missing, and the hub has not converted it") from error
    if revision is None:
        raise CheckpointError(f"{_WEIGHTS} is missing")
    return _fetch(name, revision)
