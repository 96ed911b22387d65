"""The command line, run as people run it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sidelight.client.cli.attribute_options import parse_heads, parse_layers
from sidelight.client.cli.main import main

COMMAND = str(Path(sys.executable).with_name("sidelight"))
SENTENCE = "I don't want to be your friend."


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "COLUMNS": "80", **environment}
    return subprocess.run(
        [COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=120, env=variables, cwd="/"
    )


def test_a_text_is_shown_with_its_attention(bundled_server):
    done = run("attribute", SENTENCE, "--address", bundled_server)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["I", "don", "'", "t", "want", "to", "be", "your", "friend", ".", "</s>"]
    assert [line.split()[0] for line in lines[1:-1]] == ["Ich", "will", "nicht", "dein", "Freund", "sein", ".", "</s>"]
    assert lines[-1] == "Ich will nicht dein Freund sein."
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_a_file_is_translated_in_order_and_saved(bundled_server, tmp_path):
    sentences = [SENTENCE, "", "Where is the nearest train station?", "He is a good tennis player."] * 3
    (tmp_path / "in.tsv").write_text("".join(f"{s}\tx\ty\n" for s in sentences), encoding="utf-8")
    arguments = ["--file", str(tmp_path / "in.tsv"), "--address", bundled_server, "--reduce", "mean"]
    done = run("attribute", *arguments, "--save", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(sentences)
    assert lines[0] == "Ich will nicht dein Freund sein."
    assert [line == "" for line in lines] == [sentence == "" for sentence in sentences]
    assert lines[:4] * 3 == lines
    assert "12 texts" in done.stderr
    assert "tokens/s" in done.stderr
    saved = json.loads((tmp_path / "out.json").read_text())
    assert saved["attributes"]["info"]["generated_texts"] == [line for line in lines if line]


def test_stdin_is_a_file_too(bundled_server):
    done = run("attribute", "--file", "-", "--address", bundled_server, "--quiet", stdin=f"{SENTENCE}\n")
    assert done.stdout == "Ich will nicht dein Freund sein.\n"
    assert done.stderr == ""


def test_a_refused_line_is_named_and_the_others_go_on(bundled_server, tmp_path):
    lines = [SENTENCE, "dog " * 300, SENTENCE]
    path = tmp_path / "out.json"
    arguments = ["--file", "-", "--address", bundled_server, "--save", str(path)]
    done = run("attribute", *arguments, stdin="\n".join(lines))
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["Ich will nicht dein Freund sein.", "", "Ich will nicht dein Freund sein."]
    assert "line 2: source.text: has 301 tokens" in done.stderr
    assert "3 texts, 1 refused" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(json.loads(path.read_text())["attributes"]["sequence_attributions"]) == 2


def test_bad_lines_of_every_sort_leave_the_others_alone(bundled_server, tmp_path):
    lines = [SENTENCE.encode(), b"x" * (5 << 20), b"caf\xe9", b"dog " * 300, SENTENCE.encode()]
    (tmp_path / "in.txt").write_bytes(b"\n".join(lines))
    path = tmp_path / "out.json"
    done = run("attribute", "--file", str(tmp_path / "in.txt"), "--address", bundled_server, "--save", str(path))
    assert done.returncode == 1
    german = "Ich will nicht dein Freund sein."
    assert done.stdout == f"{german}\n\n\n\n{german}\n"
    named = [line.split(":")[1] for line in done.stderr.splitlines() if line.startswith("sidelight: ")]
    assert named == [" line 2", " line 3", " line 4"]
    assert len(json.loads(path.read_text())["attributes"]["sequence_attributions"]) == 2


def test_a_line_that_takes_too_long_is_named(bundled_server):
    arguments = ["--file", "-", "--address", bundled_server, "--quiet", "--timeout", "0.000001"]
    done = run("attribute", *arguments, stdin=f"{SENTENCE}\n" * 3)
    assert done.returncode == 1
    assert done.stdout == "\n\n\n"
    assert [line[:17] for line in done.stderr.splitlines()] == [f"sidelight: line {n}" for n in "123"]


def test_an_option_that_no_line_can_have_ends_the_run(bundled_server):
    done = run("attribute", "--file", "-", "--address", bundled_server, "--layers", "9", stdin=f"{SENTENCE}\n" * 50)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("out of range") == 1


def test_options_reach_the_server(bundled_server, tmp_path, capsys):
    path = tmp_path / "out.json"
    base = ["attribute", SENTENCE, "--address", bundled_server, "--quiet", "--save", str(path)]
    assert main([*base, "--heads", "2.3,0.1", "--kinds", "cross", "--scores", "probability", "--row", "reading"]) == 0
    (sequence,) = json.loads(path.read_text())["attributes"]["sequence_attributions"]
    assert sequence["attributes"]["target_attributions"] is None
    assert list(sequence["attributes"]["step_scores"]) == ["probability"]
    assert main([*base, "--target", "Ich will nicht.", "--layers", "0-1", "--reduce-heads", "max"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Ich will nicht."
    assert main([*base, "--sample", "--seed", "3", "--temperature", "3", "--top-k", "0"]) == 0
    assert capsys.readouterr().out.strip() != "Ich will nicht dein Freund sein."


def test_lists_of_numbers():
    assert parse_layers("0,2-4,7") == [0, 2, 3, 4, 7]
    assert parse_heads("2.3,0.1") == [(2, 3), (0, 1)]
    assert parse_heads("2.3:0.75,0.1,1.0:2,1.1:.5") == [(2, 3, 0.75), (0, 1), (1, 0, 2.0), (1, 1, 0.5)]


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
        (["attribute", "x", "--temperature", "2"], 1, "need --sample"),
        (["attribute", "x", "--target", "y", "--max-new-tokens", "3"], 1, "--target"),
        (["attribute", "x", "--layers", "9"], 1, "capture.heads.layers.layers[0]: 9 is out of range"),
        (["attribute", " "], 1, "source.text: must not be empty"),
        (["attribute", "x", "--address", "127.0.0.1:1"], 1, "no server answers at 127.0.0.1:1"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(bundled_server, capsys, arguments, status, message):
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


def test_the_demonstration_translates_and_leaves_nothing_running():
    done = run("demo", "A small dog.", "[/INST] :car:")
    assert done.returncode == 0, done.stderr
    assert "Ein kleiner Hund." in done.stdout
    assert "\n[/INST] :car:\n" in done.stdout
    address = next(word for word in done.stdout.split() if word.startswith("127.0.0.1:")).rstrip(":")
    assert main(["models", "--address", address]) == 1  # nobody answers there any more


def test_serve_says_when_it_is_ready_and_stops_when_told():
    process = subprocess.Popen(
        [COMMAND, "serve", "--address", "127.0.0.1:0", "--name", "mine"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("sidelight: serving mine at 127.0.0.1:")
        address = line.split()[-1]
        done = run("models", "--address", address)
        assert done.stdout.startswith("mine  marian, float32 on cpu")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_serve_says_what_it_cannot_load(tmp_path):
    done = run("serve", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"sidelight: cannot load {tmp_path}")
    assert "Traceback" not in done.stderr


def test_pickled_weights_are_not_loaded(tmp_path):
    """A checkpoint without safetensors could run code when it is loaded."""
    import torch
    from sidelight.server.models.loader import bundled_model

    shutil.copytree(bundled_model(), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")
    done = run("serve", str(tmp_path / "model"))
    assert done.returncode == 1
    assert "safetensors" in done.stderr.strip().splitlines()[-1]
