"""The script for machines with a GPU, without one: all of it with --dry, and what it does when a part goes wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # a minute and a half of processor time: it compiles the programs for CPUs anew
@pytest.mark.timeout(900)
def test_the_whole_script_runs_dry(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    done = subprocess.run(
        ["bash", HERE / "run.sh", tmp_path / "out", "--dry"],
        env={**environment, "PYTHON": sys.executable},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert done.returncode == 0, log[-5000:]
    assert done.stdout.startswith("**Nothing is wrong**")
    assert len(done.stdout.splitlines()) <= 60
    assert done.stdout == (tmp_path / "out" / "summary.md").read_text()
    for part in load_script("run").PARTS:
        found = json.loads((tmp_path / "out" / f"{part.name}.json").read_text())
        assert found["lines"], part.name
        assert not found["wrong"]
    for kernel in ("decode", "backend", "rows"):
        # So many checks, none of them wrong, and the same bits twice for all of them.
        assert re.search(rf"^\| {kernel} \| (\d+) \| 0 \| .* \| \1 of \1 \|$", done.stdout, re.MULTILINE)
    machine = json.loads((tmp_path / "out" / "machine.json").read_text())["figures"]["machine"]
    assert "/site/sidelight/" in machine["sidelight"]  # the checkout that was put on the path, not an installed one


def make_parts(run: ModuleType, folder: Path, scripts: dict[str, str]) -> None:
    for name, script in scripts.items():
        (folder / f"{name}.py").write_text(
            f"import json, sys, time, pathlib\nout = pathlib.Path(sys.argv[1])\n{script}"
        )
    run.HERE = folder
    run.PARTS = tuple(run.PartLimits(name, name.title(), 20, 2) for name in scripts)


WRITE = 'out.joinpath("{}.json").write_text(json.dumps({{"figures": {{}}, "lines": ["found"], "wrong": {}}}))\n'


def test_no_part_stops_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run = load_script("run")
    scripts = {
        "endless": WRITE.format("endless", []) + "time.sleep(60)",
        "failing": "raise SystemExit(3)",
        "finding": WRITE.format("finding", ["two is not three"]),
        "right": WRITE.format("right", []),
    }
    make_parts(run, tmp_path, scripts)
    out = tmp_path / "out"
    out.mkdir()
    (out / "right.json").write_text("{}")  # left by an earlier run
    monkeypatch.setattr(sys, "argv", ["run.py", str(out), str(tmp_path), "--dry"])
    assert run.main() == 1
    summary = capsys.readouterr().out.splitlines()
    assert summary[0].startswith("**Wrong: 3**")
    assert "- endless: ended after its 2 s" in summary
    assert "- failing: failed with 3, see log.txt" in summary
    assert "- finding: two is not three" in summary
    # What a part had found when it was ended is there.
    assert summary[summary.index("**Endless**") + 1] == "found"
    assert summary[-2:] == ["**Right**", "found"]


def test_a_run_without_faults_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = load_script("run")
    make_parts(run, tmp_path, {"right": WRITE.format("right", [])})
    monkeypatch.setattr(sys, "argv", ["run.py", str(tmp_path), str(tmp_path), "--dry"])
    assert run.main() == 0


def test_what_is_printed_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run = load_script("run")
    long = WRITE.format("long", []).replace('["found"]', '["found"] * 100')
    make_parts(run, tmp_path, {"long": long})
    monkeypatch.setattr(sys, "argv", ["run.py", str(tmp_path), str(tmp_path), "--dry"])
    run.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 60
    assert lines[-1].startswith("… 43 more lines in ")


def test_the_parts_take_seven_minutes_at_most():
    assert sum(part.limit for part in load_script("run").PARTS) <= 7 * 60


def test_the_wheels_are_the_lowest_that_are_allowed():
    tomllib = load_script("checkout").tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    least = {Requirement(each).name: str(Requirement(each).specifier) for each in allowed}
    lines = [line for line in (HERE / "wheels.txt").read_text().splitlines() if not line.startswith("#")]
    for requirement in map(Requirement, lines):
        pinned = str(requirement.specifier).removeprefix("==")
        assert not pinned or f">={pinned}" in least[requirement.name].split(","), requirement
    # Each package of gRPC's is there, and protobuf, for which code is generated.
    names = {Requirement(line).name for line in lines}
    assert names >= {name for name in least if name.startswith(("grpcio", "googleapis", "protobuf"))}


def test_a_wrong_call_says_how_to_call(tmp_path: Path):
    for arguments in ([], ["--dry"], [tmp_path, "--quick"], [tmp_path, tmp_path]):
        done = subprocess.run(["bash", HERE / "run.sh", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "usage: " in done.stderr
    done = subprocess.run(
        ["bash", HERE / "run.sh", tmp_path],
        env={**os.environ, "PYTHON": "no-such-python"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "run.sh: there is no no-such-python\n"
