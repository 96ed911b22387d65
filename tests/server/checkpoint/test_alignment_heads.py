import json
from pathlib import Path
from typing import Any

import pytest
from sidelight.server.alignment import (
    LEXICON_FILE,
    PRESET_FILE,
    AlignmentHead,
    AlignmentPreset,
    CalibrationFigures,
    Lexicon,
    write_preset,
)
from sidelight.server.checkpoint import Checkpoint, CheckpointError, load_alignment_preset

_PRESET = AlignmentPreset(
    (AlignmentHead(1, 2, 2.0), AlignmentHead(0, 0)),
    "reading",
    "keep",
    "itermax",
    {"itermax": 0.25},
    {"attention": 0.5, "lexicon": 1.0},
    Lexicon.of_pairs([("old", "alt", 0.5)]),
    CalibrationFigures(3, "gold", 0.5, 0.25, 0.125, {"predicting": ((0.5, 0.25),)}),
)


def _checkpoint(folder: Path, generation_config: dict[str, Any] | None = None) -> Checkpoint:
    return Checkpoint("model", "main", folder, {}, generation_config or {}, "model.safetensors", {})


def test_a_preset_is_what_was_written(tmp_path: Path) -> None:
    write_preset(_PRESET, tmp_path / PRESET_FILE)
    read = load_alignment_preset(_checkpoint(tmp_path), 2, 3)
    assert read is not None
    assert read.lexicon is not None
    assert len(read.lexicon) == 1
    assert {**vars(read), "lexicon": None} == {**vars(_PRESET), "lexicon": None}


def test_the_heads_of_whisper(tmp_path: Path) -> None:
    assert load_alignment_preset(_checkpoint(tmp_path), 2, 2) is None
    preset = load_alignment_preset(_checkpoint(tmp_path, {"alignment_heads": [[1, 0], [0, 1]]}), 2, 2)
    assert preset is not None
    assert preset.heads == (AlignmentHead(1, 0), AlignmentHead(0, 1))
    assert preset.figures is None
    with pytest.raises(CheckpointError, match=r"generation_config.json: alignment_heads\[1\].head must be"):
        load_alignment_preset(_checkpoint(tmp_path, {"alignment_heads": [[1, 0], [0, 2]]}), 2, 2)
    with pytest.raises(CheckpointError, match="must be a list of pairs"):
        load_alignment_preset(_checkpoint(tmp_path, {"alignment_heads": [1]}), 2, 2)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"heads": []}, "heads must be a list with something in it"),
        ({"heads": [{"layer": 2, "head": 0}]}, "heads[0].layer must be a whole number from 0 to 1"),
        ({"heads": [{"layer": 0, "head": True}]}, "heads[0].head must be a whole number from 0 to 2"),
        ({"heads": [{"layer": 0, "head": 0, "weight": -1}]}, "heads[0].weight must be 0 or above"),
        ({"heads": [{"layer": 0, "head": 0, "weight": 0}]}, "heads must have weights whose sum"),
        ({"heads": [{"layer": 0, "head": 0}] * 2}, "heads has a head twice"),
        ({"row": "writing"}, "row must be one of predicting, reading"),
        ({"special_tokens": []}, "special_tokens must be one of keep, renormalize"),
        ({"method": None}, "method must be one of argmax"),
        ({"thresholds": {"argmax": "x"}}, "thresholds.argmax must be a number"),
        ({"weights": {"attenion": 1}}, "weights.attenion is none of attention"),
        ({"weights": 1}, "weights must be an object"),
        ({"lexicon": "../other.safetensors"}, "lexicon must be alignment_lexicon.safetensors or null"),
        ({"weights": {"lexicon": 1}, "lexicon": None}, "weights.lexicon needs a lexicon"),
        ({"figures": {"num_pairs": -1}}, "figures"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = tmp_path / PRESET_FILE
    write_preset(_PRESET, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError) as caught:
        load_alignment_preset(_checkpoint(tmp_path), 2, 3)
    assert str(caught.value).startswith(f"{PRESET_FILE}: {problem}")


def test_a_lexicon_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    write_preset(_PRESET, tmp_path / PRESET_FILE)
    (tmp_path / LEXICON_FILE).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=f"^{LEXICON_FILE} is not a whole"):
        load_alignment_preset(_checkpoint(tmp_path), 2, 3)
    (tmp_path / LEXICON_FILE).unlink()
    with pytest.raises(CheckpointError, match=f"^{LEXICON_FILE} is missing"):
        load_alignment_preset(_checkpoint(tmp_path), 2, 3)
