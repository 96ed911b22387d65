"""Texts are printed unchanged into a pipe, and with their control characters escaped on a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sidelight.client import Client
from sidelight.client.cli.attribute import print_attribution
from sidelight.client.cli.main import main
from sidelight.client.views.terminal import escape_controls, make_console, print_error, print_text

COMMAND = str(Path(sys.executable).with_name("sidelight"))

CONTROLS = [*map(chr, (*range(0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, 0x2028, 0x2029))]
CONTROLS += [*map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x2070)))]

DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")

MARKUP = [
    "Das ist [/INST] gut",
    "[b]rot[/b] [link=http://x]y[/link] [/] [@click=a]b[/]",
    ":car: :smiley: :warning:",
    "\\[b] \\\\ [[b]] 'text' 12.5 True None http://x.y/z",
    "a[/x]",
    "word " * 60,  # wider than any terminal
]
HOSTILE = [
    "\x1b[31mrot\x1b[0m \x1b]0;title\x07 \x9b2J",
    "abc\u202egnp.exe \u2066x\u2069 \u200e\u200f\u061c",
    "one\ttwo\rthree\x07\x08\x0b\x0c four\x00",
    "".join(CONTROLS),
]


def is_harmless(text: str) -> bool:
    return not set(text) & (set(CONTROLS) - set("\n\t"))


def run_on_terminal(*arguments: str, stdin: bytes = b"", stderr: bool = True) -> tuple[str, int]:
    """Runs a command on a terminal. Returns its output without rich's own styles, and its exit status."""
    controller, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color"}
    try:
        process = subprocess.Popen(
            [COMMAND, *arguments],
            stdin=subprocess.PIPE,
            stdout=terminal,
            stderr=terminal if stderr else subprocess.DEVNULL,
            env=environment,
            cwd="/",
        )
        os.close(terminal)
        process.stdin.write(stdin)
        process.stdin.close()
        output = b""
        with contextlib.suppress(OSError):  # raised when the other end is closed
            while True:
                output += os.read(controller, 65536)
        status = process.wait(60)
    finally:
        os.close(controller)
    text = output.decode().replace("\r\n", "\n")
    # Styles, and the sequences that draw and remove the progress bar.
    return re.sub(r"\x1b\[([0-9;]*m|\?25[hl]|[0-9]*[AK])|\r(?=\x1b|$)", "", text), status


def run_in_pipe(*arguments: str, stdin: bytes = b"", **environment: str) -> tuple[bytes, bytes, int]:
    completed = subprocess.run(
        [COMMAND, *arguments], input=stdin, capture_output=True, timeout=60, env={**os.environ, **environment}, cwd="/"
    )
    return completed.stdout, completed.stderr, completed.returncode


@given(st.text() | st.text(st.sampled_from([*CONTROLS, "a", "한", "["])))
def test_control_characters_become_pictures_and_others_stay(text):
    for keep_lines in (False, True):
        escaped = escape_controls(text, keep_lines=keep_lines)
        assert len(escaped) == len(text)
        assert is_harmless(escaped)
        assert keep_lines or not set(escaped) & set("\n\t")
        for character, replacement in zip(text, escaped, strict=True):
            assert character == replacement or character in CONTROLS


def test_every_control_character_of_unicode_is_escaped():
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category, direction = unicodedata.category(character), unicodedata.bidirectional(character)
        if category in ("Cc", "Zl", "Zp") or direction in DIRECTIONS:
            assert escape_controls(character) != character
        elif category[0] in "LMNPS":
            assert escape_controls(character) == character


@pytest.mark.parametrize("text", [*MARKUP, *HOSTILE])
def test_a_console_prints_strings_unchanged(text):
    output = io.StringIO()
    terminal = Console(file=output, force_terminal=True, color_system="truecolor", width=80)
    print_text(terminal, text, style="bold")
    printed = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())
    assert is_harmless(printed)
    assert printed.expandtabs() == escape_controls(text, keep_lines=True).expandtabs() + "\n"
    output = io.StringIO()
    print_text(Console(file=output, width=80), text, style="bold")
    assert output.getvalue() == f"{text}\n"


def test_consoles_read_no_markup():
    output = io.StringIO()
    console = make_console()
    console.file = output
    console.print("[b]rot[/b] :car: [/INST]")
    assert output.getvalue() == "[b]rot[/b] :car: [/INST]\n"


@pytest.mark.parametrize("text", [*MARKUP, *HOSTILE])
def test_print_attribution_prints_any_text(fake, text):
    fake.text = text
    for is_terminal in (False, True):
        output = io.StringIO()
        console = Console(file=output, force_terminal=is_terminal, width=80)  # markup is on, as by default
        with Client(fake.address) as client:
            assert print_attribution(client, "one two", {"target": text}, console).text == text
        if is_terminal:
            printed = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())
            assert is_harmless(printed)
            assert printed.expandtabs().endswith(escape_controls(text, keep_lines=True).expandtabs() + "\n")
        else:
            assert output.getvalue().endswith(f"\n{text}\n")


ALL = " ".join([*MARKUP, *HOSTILE]).replace("\x00", "")  # no argument holds a NUL


@pytest.mark.slow
def test_a_pipe_gets_every_byte(fake, tmp_path):
    fake.text = ALL
    address = ["--address", fake.address]
    for environment in ({}, {"FORCE_COLOR": "1", "TERM": "xterm-256color"}):
        out, err, status = run_in_pipe("attribute", "one", "--quiet", *address, **environment)
        assert (out, err, status) == (f"{ALL}\n".encode(), b"", 0)
        # With --file, each text is one line: only line feeds are replaced.
        line = ALL.replace("\n", " ")
        out, err, status = run_in_pipe(
            "attribute", "--file", "-", "--quiet", *address, stdin=b"one\ntwo\n", **environment
        )
        assert (out, err, status) == (f"{line}\n{line}\n".encode(), b"", 0)
    out, _, _ = run_in_pipe("attribute", "one", "--target", ALL, *address, "--save", str(tmp_path / "out.json"))
    assert out.endswith(f"\n{ALL}\n".encode())
    assert (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_a_terminal_gets_no_controls(fake):
    fake.text = ALL
    address = ["--address", fake.address]
    escaped = escape_controls(ALL, keep_lines=True).expandtabs()
    for arguments in (["one"], ["one", "--target", ALL], ["one", "--quiet"], [ALL, "--no-color"]):
        output, status = run_on_terminal("attribute", *arguments, *address)
        assert status == 0
        assert is_harmless(output)
        assert output.expandtabs().endswith(f"{escaped}\n")
    escaped = escape_controls(ALL.replace("\n", " "), keep_lines=True).expandtabs()
    for options in ({"stderr": True}, {"stderr": False}):
        output, status = run_on_terminal("attribute", "--file", "-", *address, stdin=b"one\ntwo\n", **options)
        assert status == 0
        assert is_harmless(output)
        assert output.expandtabs().count(escaped) == 2


def test_names_of_models(fake):
    fake.names = ["a[/x]", ":car: [b]x[/b]", "\x1b[2Jclear\u202e"]
    out, _, status = run_in_pipe("models", "--address", fake.address)
    assert status == 0
    assert names_in(out.decode()) == fake.names
    output, status = run_on_terminal("models", "--address", fake.address)
    assert status == 0
    assert is_harmless(output)
    assert names_in(output) == [escape_controls(name) for name in fake.names]


def names_in(output: str) -> list[str]:
    """The names in a list of models, whose further lines begin with spaces."""
    return [line.partition("  ")[0] for line in output.splitlines() if not line.startswith("  ")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["attribute", "wrong \x1b[31m[/x]\u202e\x07 now"], "sidelight: source.text: is wrong ␛[31m[/x]\ufffd␇\n"),
        (["attribute", "x", "--\x1b[31m\u202e"], "unrecognized arguments: --␛[31m\ufffd\n"),
        (["attribute", "x", "--file", "\x1b[31m"], "give either TEXT or --file FILE\n"),
        (["attribute", "--file", "/\x1b[31m"], "sidelight: /␛[31m: No such file or directory\n"),
        (["attribute", "x", "--save", "/tmp/\x1b[31m.txt"], "␛[31m.txt: the suffix must be one of"),
        (["attribute", "x", "--layers", "\x1b"], "invalid number or range: '\\x1b'\n"),
        (["\x1b[31m"], "invalid choice: '\\x1b[31m'"),
    ],
)
def test_errors_quote_without_controls(fake, capsys, arguments, says):
    arguments = [*arguments, *(["--address", fake.address] if arguments[0] == "attribute" else [])]
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse
        status = stop.code
    output = capsys.readouterr()
    assert status in (1, 2)
    assert output.out == ""
    assert is_harmless(output.err)
    assert says in output.err


def test_errors_on_a_terminal(fake):
    for arguments in (["wrong \x1b[31m now"], ["--file", "-"], ["x", "--\x1b[31m"]):
        stdin = "one\nwrong \x1b[31m[/x]\u202e\x07 now\n".encode()
        output, status = run_on_terminal("attribute", *arguments, "--address", fake.address, stdin=stdin)
        assert status in (1, 2)
        assert is_harmless(output)
        assert "␛[31m" in output


def test_an_address_is_quoted_without_controls(capsys):
    print_error("no server answers at \x1b[31m:1\nagain")
    assert capsys.readouterr().err == "sidelight: no server answers at ␛[31m:1␊again\n"


@pytest.mark.slow
def test_a_real_server_and_a_target_like_markup(bundled_server, tmp_path):
    for text in ("Das ist [/INST] gut", "[b]rot[/b] :car:"):
        path = tmp_path / "out.json"
        arguments = ["attribute", "This is good", "--target", text, "--address", bundled_server, "--save", str(path)]
        out, err, status = run_in_pipe(*arguments)
        assert status == 0, err
        with Client(bundled_server) as client:
            target = client.attribute("This is good", target=text).result().text
        assert out.endswith(f"\n{target}\n".encode())
        output, status = run_on_terminal(*arguments)
        assert status == 0
        assert f"\n{target}\n" in output
        assert path.exists()
        path.unlink()
