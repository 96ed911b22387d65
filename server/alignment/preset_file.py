"""alignment_heads.json: the file of an AlignmentPreset, beside a model.

Its fields are those of AlignmentPreset: `heads` (objects with `layer`, `head` and `weight`), `row`, `special_tokens`,
`method`, `thresholds`, `weights`, `lexicon` (the name of a file beside it, or null), `figures` (or null), and
`without_states` (an object with `weights`, `method` and `thresholds`, or null).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .decisions import LINK_METHODS
from .features import LINK_FEATURES
from .lexicon import Lexicon, LexiconError, replace_file
from .preset import ROWS, SPECIAL_TOKENS, AlignmentHead, AlignmentPreset, CalibrationFigures, LinkDecision

PRESET_FILE = "alignment_heads.json"
LEXICON_FILE = "alignment_lexicon.safetensors"


class PresetError(ValueError):
    """A file that holds no preset for a model. The message begins with the name of the file."""


def write_preset(preset: AlignmentPreset, path: Path) -> None:
    """Writes a preset, and its lexicon as `alignment_lexicon.safetensors` beside it."""
    fields: dict[str, Any] = {
        "heads": [head._asdict() for head in preset.heads],
        "row": preset.row,
        "special_tokens": preset.special_tokens,
        "method": preset.method,
        "thresholds": dict(preset.thresholds),
        "weights": dict(preset.weights),
        "lexicon": None if preset.lexicon is None else LEXICON_FILE,
        "figures": None if preset.figures is None else asdict(preset.figures),
        "without_states": None if preset.without_states is None else asdict(preset.without_states),
    }
    if preset.lexicon is not None:
        preset.lexicon.save(path.parent / LEXICON_FILE)
    replace_file(path, (json.dumps(fields, indent=2) + "\n").encode())


def read_preset(fields: Mapping[str, Any], folder: Path, num_layers: int, num_heads: int) -> AlignmentPreset:
    """Makes the preset of a model from the fields of its file.

    Args:
        fields: The fields.
        folder: Where the lexicon is.
        num_layers: The number of layers with cross-attention.
        num_heads: The number of heads of each layer.

    Raises:
        PresetError: A field is wrong, or does not fit the model.
    """
    reader = _Reader(fields)
    heads = tuple(_read_head(head, f"heads[{i}]", num_layers, num_heads) for i, head in enumerate(reader.list("heads")))
    _check_heads(heads)
    lexicon = _read_lexicon(fields.get("lexicon"), folder)
    decision = _read_decision(reader, "", lexicon)
    without_states: LinkDecision | None = None
    if fields.get("without_states") is not None:
        without_states = _read_decision(
            _Reader(fields["without_states"], "without_states."), "without_states.", lexicon
        )
        if "encoder_states" in without_states.weights:
            raise _error("without_states.weights.encoder_states", "contradicts its name")
    return AlignmentPreset(
        heads,
        reader.word("row", ROWS),
        reader.word("special_tokens", SPECIAL_TOKENS),
        decision.method,
        decision.thresholds,
        decision.weights,
        lexicon,
        _read_figures(fields.get("figures")),
        without_states,
    )


def read_whisper_heads(pairs: object, num_layers: int, num_heads: int) -> AlignmentPreset:
    """Makes a preset of `alignment_heads` in a generation config: pairs of layer and head. Raises PresetError."""
    name = "generation_config.json: alignment_heads"
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise PresetError(f"{name} must be a list of pairs of layer and head")
    fields: list[dict[str, Any]] = [{"layer": layer, "head": head} for layer, head in pairs]
    try:
        heads = tuple(_read_head(head, f"[{i}]", num_layers, num_heads) for i, head in enumerate(fields))
        _check_heads(heads)
    except PresetError as error:
        raise PresetError(str(error).replace(f"{PRESET_FILE}: ", name)) from error
    return AlignmentPreset(heads)


def _read_decision(reader: _Reader, path: str, lexicon: Lexicon | None) -> LinkDecision:
    weights = reader.numbers("weights", LINK_FEATURES)
    if "lexicon" in weights and lexicon is None:
        raise _error(f"{path}weights.lexicon", "needs a lexicon")
    return LinkDecision(weights, reader.word("method", LINK_METHODS), reader.numbers("thresholds", LINK_METHODS))


def _read_head(fields: object, path: str, num_layers: int, num_heads: int) -> AlignmentHead:
    reader = _Reader(fields, f"{path}.")
    weight = reader.number("weight") if "weight" in reader.fields else 1.0
    if weight < 0:
        raise _error(f"{path}.weight", "must be 0 or above")
    return AlignmentHead(reader.index("layer", num_layers), reader.index("head", num_heads), weight)


def _check_heads(heads: Sequence[AlignmentHead]) -> None:
    if len({head[:2] for head in heads}) < len(heads):
        raise _error("heads", "has a head twice")
    if not 1e-3 <= sum(head.weight for head in heads) <= 1e4:
        raise _error("heads", "must have weights whose sum is from 0.001 to 10,000")


def _read_lexicon(name: object, folder: Path) -> Lexicon | None:
    if name is None:
        return None
    if name != LEXICON_FILE:
        raise _error("lexicon", f"must be {LEXICON_FILE} or null")
    try:
        return Lexicon.load(folder / LEXICON_FILE)
    except LexiconError as error:
        raise PresetError(f"{LEXICON_FILE} {error}") from error


def _read_figures(fields: object) -> CalibrationFigures | None:
    if fields is None:
        return None
    reader = _Reader(fields, "figures.")
    grids = _Reader(reader.fields.get("head_error_rates"), "figures.head_error_rates.")
    reference = reader.fields.get("reference")
    if not isinstance(reference, str):
        raise _error("figures.reference", "must be a text")
    return CalibrationFigures(
        reader.index("num_pairs", 2**31),
        reference,
        reader.number("error_rate"),
        reader.number("precision"),
        reader.number("recall"),
        {row: _read_grid(grids.fields.get(row), row) for row in ROWS if row in grids.fields},
        _read_rates(reader.fields.get("states_error_rates")),
    )


def _read_rates(rates: object) -> tuple[float, float] | None:
    if rates is None:
        return None
    if not isinstance(rates, list) or len(rates) != 2 or not all(map(_is_number, rates)):
        raise _error("figures.states_error_rates", "must be two numbers or null")
    return float(rates[0]), float(rates[1])


def _read_grid(layers: object, row: str) -> tuple[tuple[float, ...], ...]:
    is_grid = isinstance(layers, list) and all(
        isinstance(layer, list) and all(_is_number(rate) for rate in layer) for layer in layers
    )
    if not is_grid:
        raise _error(f"figures.head_error_rates.{row}", "must be lists of numbers")
    return tuple(tuple(map(float, layer)) for layer in layers)  # pyright: ignore[reportGeneralTypeIssues]


class _Reader:
    """Fields of a JSON object."""

    def __init__(self, fields: object, path: str = "") -> None:
        self._path = path
        if not isinstance(fields, Mapping):
            raise _error(path.rstrip(".") or "it", "must be an object with fields")
        self.fields: Mapping[str, Any] = fields

    def list(self, name: str) -> Sequence[object]:
        return self._get(name, "a list with something in it", lambda value: isinstance(value, list) and bool(value))

    def word(self, name: str, words: Sequence[Any]) -> Any:
        return self._get(name, f"one of {', '.join(words)}", lambda value: value in words)

    def number(self, name: str) -> float:
        return float(self._get(name, "a number", _is_number))

    def numbers(self, name: str, keys: Sequence[Any]) -> dict[Any, float]:
        reader = _Reader(self.fields.get(name), f"{self._path}{name}.")
        for key in reader.fields:
            if key not in keys:
                raise _error(f"{self._path}{name}.{key}", f"is none of {', '.join(keys)}")
        return {key: reader.number(key) for key in reader.fields}

    def index(self, name: str, count: int) -> int:
        def is_index(value: object) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count

        return self._get(name, f"a whole number from 0 to {count - 1:,}", is_index)

    def _get(self, name: str, what: str, is_right: Callable[[Any], bool]) -> Any:
        value = self.fields.get(name)
        if not is_right(value):
            raise _error(f"{self._path}{name}", f"must be {what}")
        return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _error(field: str, problem: str) -> PresetError:
    return PresetError(f"{PRESET_FILE}: {field} {problem}")
