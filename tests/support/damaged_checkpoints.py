"""Damages the files of a model, and reads why the model is not loaded."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from sidelight.server.models.loader import ModelError, load

# Words of libraries and of Python, which an error message for people does not have.
UNHELPFUL = ("Traceback", "NoneType", "Error while loading", "\n", "list index out of range")


def refusal(path: str | Path, **options) -> str:
    """Returns the error message of a model that is not loaded, without the path of the model."""
    with pytest.raises(ModelError) as raised:
        load(path, packed=False, **options)
    message = str(raised.value)
    assert message.startswith(f"cannot load {path}: ")
    for words in UNHELPFUL:
        assert words not in message
    assert len(message) < 500 + len(str(path))
    return message.removeprefix(f"cannot load {path}: ")


def edit(path: Path, **fields) -> None:
    """Sets fields of a JSON file. None removes a field."""
    values = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}), encoding="utf-8")


@contextlib.contextmanager
def weights(path: Path):
    """Reads the tensors of a folder, lets the caller change them, and writes them back."""
    tensors = load_file(path / "model.safetensors")
    yield tensors
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path / "model.safetensors", {"format": "pt"})


def shard(path: Path) -> dict[str, str]:
    """Splits the weights of a folder into two files. Returns the file of each tensor."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    places = {name: f"model-{place % 2 + 1:05}-of-00002.safetensors" for place, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, path / file, {"format": "pt"})
    write_index(path, places)
    return places


def write_index(path: Path, places: object, **fields) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": places} | fields
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
