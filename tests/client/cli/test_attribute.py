"""`sidelight attribute` with one text, against a real server and against a fake one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from cli_process import COMMAND, SENTENCE, run, start
from sidelight.client.cli.main import main


def test_a_text_is_shown_with_its_attention(bundled_server):
    completed = run("attribute", SENTENCE, "--address", bundled_server)
    assert completed.returncode == 0
    lines = completed.stdout.splitlines()
    assert lines[0].split() == ["I", "don", "'", "t", "want", "to", "be", "your", "friend", ".", "</s>"]
    assert [line.split()[0] for line in lines[1:-1]] == ["Ich", "will", "nicht", "dein", "Freund", "sein", ".", "</s>"]
    assert lines[-1] == "Ich will nicht dein Freund sein."
    assert "\x1b" not in completed.stdout
    assert completed.stderr == ""


def test_scores_of_words_are_shown_and_special_tokens_have_their_names(bundled_server):
    arguments = ["--grouping", "word", "--scores", "probability", "--address", bundled_server, "--no-color"]
    lines = run("attribute", "A dog.", *arguments).stdout.splitlines()
    assert lines[0].split() == ["probability", "A", "dog", ".", "</s>"]
    assert [line.split()[0] for line in lines[1:-1]] == ["Ein", "Hund", ".", "</s>"]
    assert all(0 < float(line.split()[1]) <= 1 for line in lines[1:-1])


def test_steps_are_shown_as_they_arrive(fake):
    process = start("attribute", "hang on now", "--address", fake.address)
    try:
        assert process.stdout.readline().split() == ["hang", "on", "now", "</s>"]
        assert process.stdout.readline().split()[0] == "gnah"
        assert not fake.cancelled.is_set()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert err == "sidelight: interrupted\n"
    assert out == ""
    assert fake.cancelled.wait(10)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["fail now"], 1, "sidelight: capture.kinds: odd request\n"),
        (["broken now"], 1, "sidelight: the server's answer does not fit the contract"),
        (["x", "--layers", "3-1"], 2, "invalid number or range: '3-1'"),
        (["x", "--heads", "1"], 2, "invalid LAYER.HEAD[:WEIGHT]: '1'"),
        (["x", "--heads", "1.1,0.1:-1"], 2, "invalid LAYER.HEAD[:WEIGHT]: '0.1:-1'"),
        (["x", "--encoding", "uint4"], 2, "argument --encoding: invalid choice: 'uint4'"),
        (["x", "--top-positions", "-1"], 1, "sidelight: capture.top_k: "),
        (
            ["--file", "-", "--beam", "4", "--hypotheses", "2"],
            2,
            "--hypotheses goes with TEXT, or with --save and a .npz",
        ),
        (["--file", "-", "--target", "y"], 2, "--target goes with TEXT"),
        (["x", "--timeout", "nan"], 1, "timeout: must be above 0"),
        (["x", "--model", "nobody", "--save", "/tmp/never.json"], 1, "name: "),
    ],
)
def test_errors_are_one_line(fake, capsys, arguments, status, message):
    try:
        code = main(["attribute", *arguments, "--address", fake.address])
    except SystemExit as stop:  # argparse
        code = stop.code
    error = capsys.readouterr().err
    assert code == status
    assert message in error
    assert not Path("/tmp/never.json").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "COMMAND"),
        (["attribute"], 2, "either TEXT or --file"),
        (["attribute", "x", "--file", "y"], 2, "either TEXT or --file"),
        (["attribute", "x", "--kinds", "sideways"], 2, "none of cross"),
        (["attribute", "x", "--layers", "a"], 2, "invalid"),
        (["attribute", "x", "--timeout", "-1"], 1, "timeout: must be above 0"),
        (["attribute", "x", "--save", "/nowhere/out.json"], 1, "/nowhere/out.json: No such file"),
        (["attribute", "x", "--save", "out.txt"], 1, "suffix"),
        (["attribute", "--file", "/nowhere.txt"], 1, "/nowhere.txt: No such file"),
        (["attribute", "x", "--temperature", "2"], 2, "need --sample"),
        (["attribute", "x", "--beam", "4", "--sample"], 2, "error: --sample and --beam exclude each other"),
        (["attribute", "x", "--hypotheses", "2"], 2, "error: --hypotheses, --length-penalty and --early-stopping need"),
        (["attribute", "x", "--kl-top-k", "2"], 2, "error: the second context is missing: give --contrast-source"),
        (["attribute", "x", "--source-slices", "5-5"], 2, "invalid BEGIN-END: '5-5'"),
        (["attribute", "x", "--steps", "-5"], 2, "--steps"),
        (["attribute", "x", "--target", "y", "--max-new-tokens", "3"], 2, "--target"),
        (["attribute", "x", "--target", "y", "--stop", "z"], 2, "--target"),
        (["attribute", "x", "--layers", "9"], 1, "capture.heads.layers.layers[0]: 9 is out of range"),
        (["attribute", " "], 1, "source.text: must not be empty"),
        (["attribute", "x", "--address", "127.0.0.1:1"], 1, "no server answers at 127.0.0.1:1"),
    ],
)
def test_errors_of_a_real_server_are_one_line(bundled_server, capsys, arguments, status, message):
    if arguments and "--address" not in arguments:
        arguments = [*arguments, "--address", bundled_server]
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse
        code = stop.code
    error = capsys.readouterr().err
    assert code == status
    assert message in error
    assert "Traceback" not in error


def test_an_argument_that_is_not_utf8_is_named(fake):
    command = [COMMAND.encode(), b"attribute", b"caf\xe9", b"--address", fake.address.encode()]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    completed = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd="/", env=environment, check=False
    )
    assert completed.returncode == 1
    assert completed.stderr == "sidelight: source: has a lone surrogate, U+DCE9 at index 3: no text may have one\n"


def test_colours_follow_options_and_environment(fake, monkeypatch, capsys):
    arguments = ["attribute", "one two", "--address", fake.address]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    main(arguments)
    assert "48;" in capsys.readouterr().out  # a background
    main([*arguments, "--no-color"])
    assert "48;" not in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    main(arguments)
    assert "48;" not in capsys.readouterr().out
