"""Bars on standard error while something takes long: on a terminal only, and never with --quiet."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path

import pytest
from cli_process import start
from sidelight.client.cli.main import main
from sidelight.client.views import show_waiting
from sidelight.server.entrypoints.progress import open_progress, show_loading
from sidelight.server.models import LOADING_STAGES, bundled_model, load
from terminals import Terminal, open_terminal

SHOW_CURSOR = "\x1b[?25h"


@pytest.fixture(autouse=True)
def terminal_with_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the machine that runs the tests must not decide what a terminal can."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def write_to(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(terminal.end), "w"))


def show_model(progress):
    with show_loading(progress, "model") as show:
        for stage in LOADING_STAGES:
            show(stage)


def test_loading_shows_each_stage(monkeypatch):
    stages = []
    with open_terminal() as terminal, monkeypatch.context() as patch:
        write_to(patch, terminal)
        with open_progress(quiet=False) as progress, show_loading(progress, "[red]model") as show:

            def on_stage(stage):
                stages.append(stage)
                show(stage)

            load(on_stage=on_stage)
        sys.stderr.close()
    assert tuple(stages) == LOADING_STAGES
    for stage in LOADING_STAGES:
        # The hub's bars have the terminal while files may come from there.
        assert (f"loading [red]model: {stage}" in terminal.plain_text) == (stage != LOADING_STAGES[0])
    assert terminal.text.count(SHOW_CURSOR) == 2


def test_lines_of_the_log_stand_above_the_bars(monkeypatch):
    with open_terminal() as terminal, monkeypatch.context() as patch:
        write_to(patch, terminal)
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger().addHandler(handler)
        before = handler.stream
        with open_progress(quiet=False) as progress:
            progress.add_task("working", total=None)
            progress.refresh()
            logging.getLogger("sidelight.test").error("a line of the log")
        assert handler.stream is before
        logging.getLogger().removeHandler(handler)
        sys.stderr.close()
    assert "\na line of the log\n" in terminal.plain_text
    assert terminal.plain_text.count("working") >= 2


def test_quiet_commands_and_pipes_show_nothing(monkeypatch, capsys):
    with open_terminal() as terminal, monkeypatch.context() as patch:
        write_to(patch, terminal)
        with open_progress(quiet=True) as progress, show_waiting("waiting", quiet=True):
            show_model(progress)
        sys.stderr.close()
    assert terminal.text == ""
    with open_progress(quiet=False) as progress, show_waiting("waiting", quiet=False):
        show_model(progress)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [False, True])
def test_serve_shows_that_it_loads(quiet):
    with open_terminal() as terminal:
        level = ["--log-level", "warning"] if quiet else []
        process = start("serve", "--address", "127.0.0.1:0", *level, stderr=terminal.end)
        try:
            assert process.stdout.readline().startswith("sidelight: serving ")
        finally:
            process.terminate()
            process.communicate(timeout=60)
    lines = [line.strip() for line in terminal.plain_text.splitlines()]
    assert any(line.startswith("loading tatoeba-en-de: packing layers") for line in lines) == (not quiet)
    assert any(line.endswith("loading the bundled model") for line in lines) == (not quiet)
    assert terminal.text.count("\x1b[?25l") == terminal.text.count(SHOW_CURSOR)


@pytest.mark.slow
def test_demo_shows_that_its_server_starts():
    with open_terminal() as terminal:
        process = start("demo", "--no-color", "A dog.", stderr=terminal.end)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "Hund" in output
    assert "starting the server" not in output
    assert "starting the server" in terminal.plain_text


@pytest.mark.slow
def test_calibrating_shows_how_far_it_is(tmp_path: Path, monkeypatch, capsys):
    folder = tmp_path / "model"
    shutil.copytree(bundled_model(), folder)
    (tmp_path / "pairs.tsv").write_text("I like dogs.\tIch mag Hunde.\nTom is old.\tTom ist alt.\n")
    (tmp_path / "gold").write_text("0-0 1-1 2-2 3-3\n0-0 1-1 2-2 3-3\n")
    command = ["calibrate", str(folder), "--pairs", str(tmp_path / "pairs.tsv"), "--gold", str(tmp_path / "gold")]
    shown = []
    for quiet in ([], ["--quiet"]):
        with open_terminal() as terminal, monkeypatch.context() as patch:
            write_to(patch, terminal)
            assert main([*command, *quiet]) == 0
            sys.stderr.close()
        shown.append(terminal.plain_text)
        assert "on 2 pairs against gold" in capsys.readouterr().out
    for task in ("loading model: packing layers", "attention", "heads and features"):
        assert task in shown[0]
    assert shown[1] == ""
