"""`sidelight align`: what it prints and saves, against a real server."""

from __future__ import annotations

import dataclasses
import json

import pytest
from sidelight.client import Signals
from sidelight.client.cli.main import main

SOURCE, TARGET = "I don't want to be your friend.", "Ich will nicht dein Freund sein."


@pytest.fixture
def align(bundled_server, capsys):
    """Runs the command. Returns its exit status, its output and its messages."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["align", *arguments, "--address", bundled_server])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def test_each_output_of_a_pair(align):
    assert align(SOURCE, "--target", TARGET, "--output", "pharaoh") == (0, "0-0 2-1 1-2 5-3 6-4 4-5 7-6\n", "")
    assert align("I bought a <b>big</b> house.", "--markup", "html", "--output", "text") == (
        0,
        "Ich habe ein <b>großes</b> Haus gekauft.\n",
        "",
    )
    status, output, _ = align("a <b>b</b>", "--target", "x y", "--links", "1-0", "--markup", "xml", "--output", "json")
    assert status == 0
    assert json.loads(output) == {
        "target": "<b>x</b> y",
        "links": [{"source": [2, 3], "target": [0, 1], "score": 1.0}],
        "pharaoh": "1-0",
        "markup": {
            "report": [{"markup": "<b>", "source": [2, 3], "target": [0, 1], "placement": "links", "score": 1.0}]
        },
        "stop_reason": "given",
        "signals": {},
    }
    signals = json.loads(align(SOURCE, "--target", TARGET, "--output", "json")[1])["signals"]
    assert set(signals) == {field.name for field in dataclasses.fields(Signals)}


def test_the_table_has_the_links(align):
    status, output, _ = align("one two three", "--target", "drei eins", "--links", "0-1 2-0")
    assert status == 0
    assert output.splitlines()[0] == "drei eins"
    assert [line.split() for line in output.splitlines()[-3:]] == [
        ["source", "target", "score"],
        ["three", "drei", "1.00"],
        ["one", "eins", "1.00"],
    ]


def test_pairs_print_a_line_each_in_order(align, tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text(f"{SOURCE}\t{TARGET}\n\nA dog.\nDon't stop!\tHalt!\n" + "a\tb\n" * 100, encoding="utf-8")
    status, output, messages = align("--pairs", str(path), "--output", "pharaoh")
    lines = output.splitlines()
    assert (status, messages, len(lines)) == (0, "", 104)
    assert lines[:3] == ["0-0 2-1 1-2 5-3 6-4 4-5 7-6", "", "0-0 1-1 2-2"]
    assert lines[4:] == ["0-0"] * 100
    status, output, _ = align("--pairs", str(path), "--output", "json", "--pretokenized")
    results = [json.loads(line) for line in output.splitlines()]
    assert results[1] is None
    assert results[2]["target"] == "Ein Hund."
    assert results[3]["links"][0]["target"] == [0, 5]
    assert align("--pairs", str(path))[1].splitlines()[:3] == [TARGET, "", "Ein Hund."]


def test_a_line_that_fails_is_named_and_the_others_go_on(align, tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("a\tb\n<b>x\ty\na\tb\n", encoding="utf-8")
    status, output, messages = align("--pairs", str(path), "--output", "pharaoh", "--markup", "html", "--strict")
    assert (status, output) == (1, "0-0\n\n0-0\n")
    assert messages.startswith("sidelight: line 2: source.text: ")


def test_an_error_that_all_lines_have_ends_the_run(align, tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("a\tb\n" * 5, encoding="utf-8")
    status, output, messages = align("--pairs", str(path), "--heads", "9.9")
    assert (status, output) == (1, "")
    assert messages.count("\n") == 1
    assert "heads.list.heads[0].layer" in messages
    assert align("--pairs", str(tmp_path / "none"))[0] == 1


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_a_picture_has_a_curve_for_each_link(align, tmp_path, suffix):
    path = tmp_path / f"links{suffix}"
    status, _, messages = align("a < &", "--target", "x y", "--links", "0-1", "--save", str(path))
    picture = path.read_text(encoding="utf-8")
    assert (status, messages) == (0, f"saved {path}\n")
    assert picture.count("<path ") == 1
    assert "<title>a – y: 1.00\n\n1.00  a</title></path>" in picture
    assert ">&lt;</text>" in picture
    assert align("a", "--target", "b", "--save", str(tmp_path / "x.gif"))[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a", "--pairs", "f"],
        ["--pairs", "f", "--target", "x"],
        ["--pairs", "f", "--output", "table"],
        ["a", "--strict"],
        ["a", "--markup", "html", "--strict", "--lenient"],
        ["a", "--markup", "pdf"],
        ["a", "--features", "magic"],
    ],
)
def test_a_wrong_command_line_ends_with_2(align, arguments):
    with pytest.raises(SystemExit) as raised:
        align(*arguments)
    assert raised.value.code == 2
