import json
import shutil
from pathlib import Path

import pytest
from sidelight.client.cli.main import main
from sidelight.server.alignment import LEXICON_FILE, PRESET_FILE
from sidelight.server.entrypoints import calibration_rows, calibration_run
from sidelight.server.models import bundled_model, load

_PAIRS = [
    ("I like dogs.", "Ich mag Hunde.", "0-0 1-1 2-2 3-3"),
    ("Tom is old.", "Tom ist alt.", "0-0 1-1 2-2 3-3"),
    ("We have a house.", "Wir haben ein Haus.", "0-0 1-1 2-2 3-3 4-4"),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model without its calibration."""
    folder = tmp_path / "model"
    shutil.copytree(bundled_model(), folder)
    (folder / PRESET_FILE).unlink()
    (folder / LEXICON_FILE).unlink()
    return folder


def _write(folder: Path, gold: str | None = None) -> list[str]:
    (folder / "pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target, _ in _PAIRS))
    (folder / "gold").write_text(gold or "".join(f"{links}\n" for _, _, links in _PAIRS))
    return ["--pairs", str(folder / "pairs.tsv"), "--gold", str(folder / "gold")]


@pytest.mark.slow
def test_a_model_is_calibrated_with_gold_links(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["calibrate", str(model), *_write(tmp_path), "--picture", str(tmp_path / "heads.svg")]
    monkeypatch.setattr(calibration_rows, "_NUM_TOGETHER", 2)
    run, done = calibration_rows._run_all, []

    async def run_once(engine: object, pairs: list[object], on_pair: object) -> object:
        done.append(len(pairs))
        if len(done) == 2:
            raise KeyboardInterrupt
        return await run(engine, pairs, on_pair)

    monkeypatch.setattr(calibration_rows, "_run_all", run_once)
    assert main(arguments) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert main(arguments) == 0
    assert done == [2, 1, 1]  # the first two pairs were kept
    out = capsys.readouterr().out
    assert "on 3 pairs against gold" in out
    assert "error rate of each head, row reading" in out
    assert (tmp_path / "heads.svg").read_text().count("<rect") == 2 * 12 + 1
    assert not list(model.glob(".*"))
    fields = json.loads((model / PRESET_FILE).read_text())
    assert fields["figures"]["num_pairs"] == 3
    # Three pairs are too few for the encoder's states, which were measured all the same.
    assert len(fields["figures"]["states_error_rates"]) == 2
    assert "encoder_states" not in fields["weights"]
    assert "encoder states left out; error rate" in out
    assert fields["lexicon"] is None
    preset = load(model).alignment
    assert preset is not None
    assert preset.figures is not None
    assert preset.figures.error_rate < 0.2


@pytest.mark.parametrize(
    ("gold", "problem"),
    [
        ("0-0\n0-9\n", 'gold: line 2: pair 1 is "0-9", and the target has only 4 words'),
        pytest.param("0-0\n" * 4, "gold has more lines than", marks=pytest.mark.slow),
        pytest.param("0:0\n", "gold: line 1: pair 1 is", marks=pytest.mark.slow),
    ],
)
def test_wrong_gold_links_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], gold: str, problem: str
) -> None:
    assert main(["calibrate", str(model), *_write(tmp_path, gold)]) == 1
    assert problem in capsys.readouterr().err
    assert not (model / PRESET_FILE).exists()


@pytest.mark.parametrize("option", ["--output", "--picture"])
@pytest.mark.parametrize(("name", "problem"), [("missing/file", "is no folder"), ("", "is a folder")])
def test_what_cannot_be_written_is_refused_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option, name, problem
) -> None:
    monkeypatch.setattr(calibration_run, "load", None)
    output = [] if option == "--output" else ["--output", str(tmp_path / "heads.json")]
    arguments = ["calibrate", *_write(tmp_path), *output, option, str(tmp_path / name)]
    assert main(arguments) == 1
    assert problem in (error := capsys.readouterr().err)
    assert option in error


def test_wrong_pairs_are_refused_before_a_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("one\ttwo\nthree\n")
    assert main(["calibrate", "no/such/model", "--pairs", str(path), "--output", str(tmp_path / "out.json")]) == 1
    assert "line 2 has no tab" in capsys.readouterr().err
