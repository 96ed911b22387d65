"""Objects that both processes have: messages name them instead of holding copies.

A preset may have a lexicon of megabytes. A method of one process holds tensors of the model. And some objects are known
by their identity, such as the plan for the rows of links.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from typing import Any

from ..capture import WEIGHTS
from ..models import ModelInfo

Key = tuple[str, ...]


class References:
    """The names of objects that both processes have. Without `add_models`, every object is copied."""

    def __init__(self) -> None:
        self._objects: dict[Key, Any] = {("weights",): WEIGHTS}
        self._keys: dict[int, Key] = {id(WEIGHTS): ("weights",)}

    def add_models(self, models: Iterable[ModelInfo]) -> None:
        """Names the objects of some models. Both processes have the same models."""
        for model in models:
            found: dict[str, Any] = {f"method {name}": each for name, each in model.attention_layers.methods.items()}
            if "cross" in model.kinds:
                found |= {
                    "preset": model.link_preset,
                    "lexicon": model.link_preset.lexicon,
                    "links": model.links_plan,
                    "signals": model.signals_plan,
                }
            for name, each in found.items():
                if each is not None:
                    self._objects[model.name, name] = each
                    self._keys.setdefault(id(each), (model.name, name))

    def pickler(self, file: io.BytesIO, take_out: Callable[[pickle.PickleBuffer], bool]) -> pickle.Pickler:
        """Returns what writes messages. `take_out` gets each array, and returns whether it stays in the pickle."""
        return _Pickler(file, take_out, self._keys)

    def unpickler(self, file: io.BytesIO, buffers: Iterable[bytearray]) -> pickle.Unpickler:
        """Returns what reads messages. `buffers` are the arrays that were taken out."""
        return _Unpickler(file, buffers, self._objects)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, take_out: Callable[[pickle.PickleBuffer], bool], keys: dict[int, Key]) -> None:
        super().__init__(file, protocol=5, buffer_callback=take_out)
        self._keys = keys

    def persistent_id(self, obj: Any) -> Key | None:
        return self._keys.get(id(obj))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, buffers: Iterable[bytearray], objects: dict[Key, Any]) -> None:
        super().__init__(file, buffers=buffers)
        self._objects = objects

    def persistent_load(self, pid: Any) -> Any:
        return self._objects[pid]
