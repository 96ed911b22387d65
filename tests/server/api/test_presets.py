"""The preset "alignment" in captures and policies, through a real server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from harness import serving
from sidelight.client import AlignAtt, Capture, Client, Decoding, InvalidArgumentError, Step
from sidelight.server.alignment import PRESET_FILE, AlignmentHead, AlignmentPreset, CalibrationFigures, write_preset
from sidelight.server.models import LoadedModel, bundled_model, load

_FIGURES = CalibrationFigures(7, "gold", 0.25, 0.5, 0.75, {"predicting": ((0.5,) * 4,) * 3})
_PRESET = AlignmentPreset((AlignmentHead(2, 3, 3.0), AlignmentHead(1, 2)), "reading", "renormalize", figures=_FIGURES)
_SOURCE, _TARGET = "Where did you buy that old book?", "Wo hast du das alte Buch gekauft?"


@pytest.fixture(scope="module")
def client(bundled: LoadedModel) -> Iterator[Client]:
    with serving(replace(bundled, alignment=_PRESET)) as address, Client(address) as client:
        yield client


def test_a_model_shows_its_calibration(client: Client) -> None:
    model = client.get_model()
    assert model.presets == ("alignment",)
    calibration = model.calibration
    assert calibration is not None
    assert calibration.heads == ((2, 3, 3.0), (1, 2, 1.0))
    assert (calibration.row, calibration.special_tokens) == ("reading", "renormalize")
    assert (calibration.pairs, calibration.reference, calibration.alignment_error_rate) == (7, "gold", 0.25)
    assert (calibration.precision, calibration.recall) == (0.5, 0.75)
    assert (calibration.has_lexicon, calibration.lexicon_entries) == (False, 0)


def test_the_preset_is_its_list_of_heads(client: Client) -> None:
    listed = Capture(heads=[(2, 3, 3.0), (1, 2, 1.0)], over_heads="mean", row="reading", special_tokens="renormalize")
    expected = client.attribute(_SOURCE, target=_TARGET, capture=listed).result()
    result = client.attribute(_SOURCE, target=_TARGET, capture=Capture(heads="alignment", over_heads="mean")).result()
    np.testing.assert_array_equal(result.cross, expected.cross)
    assert (result.started.row, result.started.special_tokens) == ("reading", "renormalize")
    # What the request sets is as the request says; heads that stay apart have no weights.
    own = Capture(heads="alignment", row="predicting", special_tokens="keep")
    plain = Capture(heads=[(2, 3), (1, 2)])
    result, expected = (client.attribute(_SOURCE, target=_TARGET, capture=capture).result() for capture in (own, plain))
    np.testing.assert_array_equal(result.cross, expected.cross)


def test_a_preset_is_refused_where_it_has_no_meaning(client: Client) -> None:
    for capture in (Capture(heads="others"), Capture(heads="alignment", kinds=["cross", "decoder_self"])):
        with pytest.raises(InvalidArgumentError) as caught:
            client.attribute(_SOURCE, capture=capture).result()
        assert caught.value.field == "capture.heads.preset"


def test_the_policy_looks_where_the_preset_looks(client: Client) -> None:
    def decisions(policy: AlignAtt) -> list[object]:
        with client.follow(policy=policy, capture=Capture(none=True), decoding=Decoding(max_new_tokens=12)) as stream:
            stream.add_source(_SOURCE)
            stream.complete_source()
            return [event.decision and event.decision.source_token for event in stream if isinstance(event, Step)]

    by_preset = decisions(AlignAtt(words=1))
    assert by_preset == decisions(AlignAtt(words=1, heads="alignment"))
    assert by_preset == decisions(AlignAtt(words=1, heads=[(2, 3, 3.0), (1, 2, 1.0)], row="reading"))
    assert by_preset != decisions(AlignAtt(words=1, layers=[0]))


def test_a_broken_file_keeps_a_model_from_loading(tmp_path: Path) -> None:
    shutil.copytree(bundled_model(), tmp_path / "model")
    write_preset(replace(_PRESET, heads=(AlignmentHead(3, 0),)), tmp_path / "model" / PRESET_FILE)
    with pytest.raises(Exception, match=r"alignment_heads.json: heads\[0\].layer must be a whole number from 0 to 2"):
        load(tmp_path / "model")


def test_the_bundled_model_is_calibrated(bundled: LoadedModel) -> None:
    preset = bundled.alignment
    assert preset is not None
    assert preset.lexicon is not None
    assert preset.lexicon.score(["book"], ["buch"])[0, 0] > 0.5
    assert preset.figures is not None
    assert preset.figures.error_rate < 0.2
