"""`--help` and `--version`: what a newcomer reads is true, and comes without the heavy modules."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import shlex
from collections.abc import Iterator

import pytest
from cli_process import run
from sidelight.client.cli.commands import make_parser
from sidelight.client.cli.commands.help import CommandParser
from sidelight.client.cli.main import main


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return action.choices


COMMANDS = sorted(commands())


def examples(text: str) -> Iterator[list[str]]:
    """The commands behind "examples:", without comments and what a shell does with the output."""
    for line in text.partition("examples:\n")[2].splitlines():
        words = shlex.split(line, comments=True)
        yield words[: next((index for index, word in enumerate(words) if word in {">", "<", "&"}), None)]


def help_of(*command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit):
        main([*command, "--help"])
    return output.getvalue()


def test_the_version_is_of_sidelight_and_of_the_contract(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"sidelight {importlib.metadata.version('sidelight')} (contract sidelight.v1)\n"


@pytest.mark.parametrize("command", [None, *(name for name in COMMANDS if name != "kernels")])
def test_help_ends_with_examples_that_can_be_typed(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(*([command] if command else []))
    assert max(map(len, text.partition("examples:\n")[0].splitlines())) <= 80
    found = list(examples(text))
    assert found
    for program, *arguments in found:
        assert program == "sidelight"
        assert callable(make_parser().parse_args(arguments).run)
        assert command in {None, arguments[0]} or any(words[1] == command for words in found)


def test_the_first_help_names_every_command():
    text = help_of()
    assert [line.split()[0] for line in text.splitlines() if line[:4].isspace() and line[4:5] > " "] == [*commands()]


@pytest.mark.parametrize("command", ["attribute", "align", "follow", "ui", "models"])
def test_options_of_the_connection_come_last(command):
    text = help_of(command)
    assert "\n\n" not in text[text.index("\nconnection:") :].partition("--address")[2].partition("\n\nexamples:")[0]


def test_options_of_the_server_say_their_defaults(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = help_of("serve")
    for option, default in (("--grace", "7 seconds"), ("--max-slots", "32"), ("--address", "127.0.0.1:50051")):
        (line,) = (line for line in text.splitlines() if line.strip().startswith(f"{option} "))
        assert line.endswith(f"; default {default}"), line


def test_an_error_quotes_no_control_characters(capsys):
    with pytest.raises(SystemExit):
        CommandParser(prog="x").parse_args(["\x1b[2J"])
    assert "\x1b" not in capsys.readouterr().err


def test_help_and_completion_import_nothing_heavy(monkeypatch):
    heavy = ("torch", "transformers", "numba", "triton", "starlette", "pandas", "matplotlib", "sidelight.kernels")
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    for command in (["--help"], ["serve", "--help"], ["completion", "bash"]):
        completed = run(*command)
        assert completed.returncode == 0
        imported = {line.rpartition("|")[2].strip() for line in completed.stderr.splitlines()}
        assert "sidelight.client.cli.commands" in imported
        assert not imported & {*heavy}
        assert ("shtab" in imported) == (command[0] == "completion")
