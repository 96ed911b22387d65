"""`sidelight follow`: words in as they come, and a translation out that never changes."""

from __future__ import annotations

import subprocess

import pytest
from cli_process import run, start
from sidelight.client import Client
from sidelight.client.cli.follow import _split_words

LINES = ["Where did you buy that old book?", "", "Good morning!", "I don't want to be your friend."]


@pytest.fixture
def translations(bundled_server) -> list[str]:
    """The translations of whole lines."""
    with Client(bundled_server) as client:
        return [client.attribute(line).result().text if line else "" for line in LINES]


def test_each_line_is_translated(bundled_server, translations):
    process = run("follow", "--address", bundled_server, "--hold-words", "3", stdin="\n".join(LINES))
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines() == translations


def test_what_is_written_comes_before_the_end_and_stays(bundled_server):
    with start("follow", "--address", bundled_server, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("Where did you buy that old ")
        process.stdin.flush()
        early = process.stdout.read(2)
        assert early == "Wo"
        process.stdin.write("book?\n")
        process.stdin.close()
        assert early + process.stdout.read() == "Wo hast du dieses alte Buch gekauft?\n"
        assert process.wait(30) == 0


@pytest.mark.parametrize("part", ["dog!" * 85, "dog," * 84 + " dog,"])  # 255 tokens of 256
def test_a_line_that_is_too_long_is_translated_part_by_part(bundled_server, part):
    rest = "I'm your friend."  # three words, which are held back until the line is complete
    process = run("follow", "--address", bundled_server, "--hold-words", "3", stdin=f"{part} {rest}\n")
    assert (process.returncode, process.stderr, process.stdout.count("\n")) == (0, "", 1)
    with Client(bundled_server) as client:
        begin, space, end = process.stdout[:-1].rpartition(" " + client.attribute(rest).result().text)
        assert (bool(begin), bool(space), end) == (True, True, "")
        whole = client.attribute(part, prefix=begin).result()
    # The target of the first part is whole: the model writes nothing behind it.
    assert (whole.text, whole.stop_reason) == (begin, "end_token")


def test_a_word_that_is_too_long_is_named_and_other_lines_go_on(bundled_server, translations):
    lines = [LINES[2], "dog-" * 300 + " and more", LINES[2]]
    process = run("follow", "--address", bundled_server, "--hold-words", "3", stdin="\n".join(lines))
    written = process.stdout.splitlines()
    assert (process.returncode, written) == (1, [translations[2], "", translations[2]])
    (message,) = process.stderr.splitlines()
    assert message.startswith("sidelight: line 2: source.text: ")


def test_words_as_they_come():
    pieces = ["Wh", "ere  did y", "ou", " buy?\n", "\nGood", " ", "morning", "\n漢字 x"]
    split = list(_split_words(iter(pieces)))
    assert split == ["Where", "  did", " you", " buy?", "\n", "\n", "Good", " morning", "\n", "漢字", " x"]
    assert list(_split_words(iter(["漢", "字 ", "x"]))) == ["漢", "字", " x"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["--hold-words", "0"], "Good", "sidelight: start.policy.align_att.words: must be at least 1\n"),
        (["--layers", "7"], "Good", "sidelight: start.policy.align_att.heads.layers.layers[0]: 7 is out of range"),
        (["--hold-words", "1", "--hold-tokens", "1"], "", "not allowed with argument"),
    ],
)
def test_errors_are_one_line(bundled_server, arguments, stdin, message):
    process = run("follow", "--address", bundled_server, *arguments, stdin=stdin)
    assert process.returncode in (1, 2)
    assert message in process.stderr
    assert "Traceback" not in process.stderr


def test_bytes_that_are_no_text(bundled_server):
    with start("follow", "--address", bundled_server, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.buffer.write(b"Good \xff\n")
        process.stdin.close()
        assert process.stderr.read().startswith("sidelight: standard input: not UTF-8")
        assert process.wait(30) == 1
