"""`sidelight attribute --file`: the order of lines, lines that fail, interruptions and pipes."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import signal
import subprocess

import grpc
import numpy as np
import pytest
from cli_process import COMMAND, SENTENCE, run, start
from harness import wait_until
from sidelight.client import Client, InvalidArgumentError, NotFoundError
from sidelight.client.cli.lines import is_line_error
from sidelight.client.cli.main import main


def test_a_file_keeps_its_order_with_several_requests_under_way(fake, tmp_path, capsys):
    lines = [f"line {number} here" for number in range(40)]
    lines[7] = "with\u2028a separator"
    (tmp_path / "in.txt").write_text("\n".join(lines), encoding="utf-8")
    path = tmp_path / "out.npz"
    assert main(["attribute", "--file", str(tmp_path / "in.txt"), "--address", fake.address, "--save", str(path)]) == 0
    output = capsys.readouterr()
    expected = [" ".join(word[::-1] for word in line.split()) for line in lines]
    assert output.out.split("\n")[:-1] == expected
    assert "40 texts" in output.err
    assert 1 < fake.most_running <= 48
    with np.load(path) as arrays:
        assert arrays["39/cross"].shape == (4, 4, 2, 3)
        assert "39/decoder_self" in arrays  # without --kinds, the file has every kind of the model
        assert "39/encoder_self" in arrays


def test_interrupting_a_file_cancels_what_is_under_way(fake):
    process = start("attribute", "--file", "-", "--address", fake.address, stdin=subprocess.PIPE)
    try:
        process.stdin.write("one\nhang on\n")
        process.stdin.close()
        assert process.stdout.readline() == "eno\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == "sidelight: interrupted\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    assert fake.cancelled.wait(10)


def test_texts_go_to_stdout_while_the_progress_bar_is_on_a_terminal(fake, tmp_path):
    (tmp_path / "in.txt").write_text("one two\nthree\n")
    controller, terminal = pty.openpty()
    try:
        process = start("attribute", "--file", str(tmp_path / "in.txt"), "--address", fake.address, stderr=terminal)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out == "eno owt\neerht\n"
        assert b"2 texts" in os.read(controller, 65536)
    finally:
        os.close(controller)
        os.close(terminal)


def test_a_closed_output_ends_the_run_without_a_message(fake, tmp_path):
    (tmp_path / "in.txt").write_text("one two\n" * 500)
    process = start("attribute", "--file", str(tmp_path / "in.txt"), "--address", fake.address, "--quiet")
    assert process.stdout.readline() == "eno owt\n"
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_files_that_cannot_be_read(fake, tmp_path, capsys):
    (tmp_path / "blank").write_text("\n\n")
    address = ["--address", fake.address]
    assert main(["attribute", "--file", str(tmp_path), *address]) == 1
    assert capsys.readouterr().err == f"sidelight: {tmp_path}: Is a directory\n"
    main(["attribute", "--file", str(tmp_path / "blank"), "--save", str(tmp_path / "o.html"), *address])
    assert capsys.readouterr().out == "\n\n"
    assert not (tmp_path / "o.html").exists()


def run_on_lines(fake, data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Runs `sidelight attribute --file -` with these bytes on standard input."""
    command = [COMMAND, "attribute", "--file", "-", "--quiet", "--address", fake.address, *arguments]
    return subprocess.run(command, input=data, capture_output=True, timeout=120, cwd="/", check=False)


def test_bad_lines_fail_alone_and_are_named(fake, tmp_path):
    lines = [
        b"one two",
        b"caf\xe9",
        b"late now",
        b"great now",
        b"wrong now",
        b"dear now",
        b"\xff",
        b"three",
        b"crash now",
    ]
    path = tmp_path / "out.npz"
    completed = run_on_lines(fake, b"\n".join(lines), "--save", str(path), "--timeout", "5")
    assert completed.returncode == 1
    assert completed.stdout == b"eno owt\n\n\n\n\n\n\neerht\n\n"
    messages = completed.stderr.decode().splitlines()
    assert messages[:-1] == [
        "sidelight: line 2: not UTF-8: unexpected end of data at byte 3",
        "sidelight: line 3: Deadline Exceeded",
        "sidelight: line 4: Received message larger than max",
        "sidelight: line 5: source.text: is wrong",
        "sidelight: line 6: decoding.max_new_tokens: is wrong",
        "sidelight: line 7: not UTF-8: invalid start byte at byte 0",
        "sidelight: line 9: internal error",
    ]
    assert messages[-1] == f"saved {path}"
    with np.load(path) as arrays:
        assert {name.partition("/")[0] for name in arrays} == {"0", "1"}


def test_an_error_of_all_lines_ends_the_run_and_results_so_far_are_saved(fake, tmp_path):
    lines = ["one two", *["gone now"] * 20]
    path = tmp_path / "out.npz"
    completed = run_on_lines(fake, "\n".join(lines).encode(), "--save", str(path))
    assert completed.returncode == 1
    assert completed.stdout == b"eno owt\n"
    assert completed.stderr.decode().splitlines() == [f"saved {path}", "sidelight: name: is wrong"]
    with np.load(path) as arrays:
        assert "0/cross" in arrays
        assert "1/cross" not in arrays


def test_each_line_is_answered_when_it_comes_and_an_interruption_waits_for_no_line(fake):
    process = start("attribute", "--file", "-", "--address", fake.address, stdin=subprocess.PIPE)
    try:
        for line, answer in (("one two", "eno owt"), ("", ""), ("three", "eerht")):
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{answer}\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == "sidelight: interrupted\n"
    finally:
        process.kill()
        process.communicate()


def test_a_run_that_ends_early_waits_for_no_line(fake):
    process = start("attribute", "--file", "-", "--address", fake.address, stdin=subprocess.PIPE)
    try:
        process.stdin.write("gone now\n")
        process.stdin.flush()
        assert process.wait(30) == 1
        assert process.stderr.read() == "sidelight: name: is wrong\n"
    finally:
        process.kill()
        process.communicate()


def test_if_a_file_cannot_be_read_further_results_so_far_are_saved(fake, tmp_path, monkeypatch, capsys):
    class Broken(io.BytesIO):
        def read(self, size: int | None = None) -> bytes:
            if data := super().read(size):
                return data
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Broken(b"one two\nthree\nfour")))
    path = tmp_path / "out.npz"
    assert main(["attribute", "--file", "-", "--quiet", "--address", fake.address, "--save", str(path)]) == 1
    output = capsys.readouterr()
    assert output.out == "eno owt\neerht\n"
    assert output.err.splitlines() == [f"saved {path}", "sidelight: standard input: Input/output error"]
    with np.load(path) as arrays:
        assert {name.partition("/")[0] for name in arrays if "/" in name} == {"0", "1"}


def test_lines_reach_the_server_as_they_are(fake):
    completed = run_on_lines(fake, b"\xef\xbb\xbfone\rtwo\r\n\x1bthree\n")
    assert completed.returncode == 0, completed.stderr
    assert sorted(request.source.text for request in fake.requests) == ["\x1bthree", "one\rtwo"]


def test_a_process_without_standard_input_reads_nothing(fake):
    completed = subprocess.run(
        ["/bin/sh", "-c", f"exec {COMMAND} attribute --file - --quiet --address {fake.address} <&-"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        check=False,
    )
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")


def test_a_file_is_translated_in_order_and_saved(bundled_server, tmp_path):
    sentences = [SENTENCE, "", "Where is the nearest train station?", "He is a good tennis player."] * 3
    (tmp_path / "in.tsv").write_text("".join(f"{s}\tx\ty\n" for s in sentences), encoding="utf-8")
    arguments = ["--file", str(tmp_path / "in.tsv"), "--address", bundled_server, "--reduce", "mean"]
    completed = run("attribute", *arguments, "--save", str(tmp_path / "out.json"))
    assert completed.returncode == 0, completed.stderr
    lines = completed.stdout.splitlines()
    assert len(lines) == len(sentences)
    assert lines[0] == "Ich will nicht dein Freund sein."
    assert [line == "" for line in lines] == [sentence == "" for sentence in sentences]
    assert lines[:4] * 3 == lines
    assert "12 texts" in completed.stderr
    assert "tokens/s" in completed.stderr
    saved = json.loads((tmp_path / "out.json").read_text())
    assert saved["attributes"]["info"]["generated_texts"] == [line for line in lines if line]


def test_stdin_is_a_file_too(bundled_server):
    completed = run("attribute", "--file", "-", "--address", bundled_server, "--quiet", stdin=f"{SENTENCE}\n")
    assert completed.stdout == "Ich will nicht dein Freund sein.\n"
    assert completed.stderr == ""


def test_a_refused_line_is_named_and_other_lines_go_on(bundled_server, tmp_path):
    lines = [SENTENCE, "dog " * 300, SENTENCE]
    path = tmp_path / "out.json"
    arguments = ["--file", "-", "--address", bundled_server, "--save", str(path)]
    completed = run("attribute", *arguments, stdin="\n".join(lines))
    assert completed.returncode == 1
    assert completed.stdout.splitlines() == ["Ich will nicht dein Freund sein.", "", "Ich will nicht dein Freund sein."]
    assert "line 2: source.text: has 301 tokens" in completed.stderr
    assert "3 texts, 1 refused" in completed.stderr
    assert "Traceback" not in completed.stderr
    assert len(json.loads(path.read_text())["attributes"]["sequence_attributions"]) == 2


def test_bad_lines_of_every_kind_do_not_change_other_lines(bundled_server, tmp_path):
    lines = [SENTENCE.encode(), b"x" * (5 << 20), b"caf\xe9", b"dog " * 300, SENTENCE.encode()]
    (tmp_path / "in.txt").write_bytes(b"\n".join(lines))
    path = tmp_path / "out.json"
    completed = run("attribute", "--file", str(tmp_path / "in.txt"), "--address", bundled_server, "--save", str(path))
    assert completed.returncode == 1
    german = "Ich will nicht dein Freund sein."
    assert completed.stdout == f"{german}\n\n\n\n{german}\n"
    named = [line.split(":")[1] for line in completed.stderr.splitlines() if line.startswith("sidelight: ")]
    assert named == [" line 2", " line 3", " line 4"]
    assert len(json.loads(path.read_text())["attributes"]["sequence_attributions"]) == 2


def test_a_line_that_takes_too_long_is_named(bundled_server):
    arguments = ["--file", "-", "--address", bundled_server, "--quiet", "--timeout", "0.000001"]
    completed = run("attribute", *arguments, stdin=f"{SENTENCE}\n" * 3)
    assert completed.returncode == 1
    assert completed.stdout == "\n\n\n"
    assert [line[:17] for line in completed.stderr.splitlines()] == [f"sidelight: line {n}" for n in "123"]


def test_a_line_that_is_too_short_for_a_slice_is_named_and_other_lines_go_on(bundled_server):
    arguments = ["--file", "-", "--address", bundled_server, "--quiet", "--source-slices", "0-12"]
    completed = run("attribute", *arguments, stdin=f"{SENTENCE}\nHi.\n{SENTENCE}\n")
    assert completed.returncode == 1
    assert completed.stdout.splitlines() == ["Ich will nicht dein Freund sein.", "", "Ich will nicht dein Freund sein."]
    assert completed.stderr.startswith("sidelight: line 2: capture.units.source_slices[0].end: ")
    assert completed.stderr.count("\n") == 1


def test_a_line_that_is_cancelled_by_its_id_is_named_and_other_lines_go_on(bundled_server):
    arguments = ["--file", "-", "--address", bundled_server, "--quiet", "--request-id", "job"]
    with Client(bundled_server) as client, start("attribute", *arguments, stdin=subprocess.PIPE) as process:
        out: list[str] = []
        for line in (SENTENCE, "dog " * 200, SENTENCE):
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            if "dog" in line:
                wait_until(lambda: is_cancelled(client, "job1"))
            out.append(process.stdout.readline())
        process.stdin.close()
        assert process.wait(30) == 1
        assert out == ["Ich will nicht dein Freund sein.\n", "\n", "Ich will nicht dein Freund sein.\n"]
        assert process.stderr.read().startswith("sidelight: line 2: ")


def is_cancelled(client: Client, request_id: str) -> bool:
    """Cancels a request. Returns False if the request does not run."""
    try:
        return client.cancel_attribution(request_id) == 1
    except NotFoundError:
        return False


@pytest.mark.parametrize(
    ("field", "reason", "expected"),
    [
        ("source.text", "TEXT_TOO_LONG", True),
        ("capture.units.source_spans[1].end", "OUT_OF_RANGE", True),
        ("capture.units.source_slices", "EMPTY", True),
        ("capture.units.source_spans", "CONTRADICTION", False),
        ("contrast.source", "DIFFERENT_LENGTH", True),
        ("contrast.source_x", "", False),
        ("contrast", "REQUIRED", False),
        ("capture.kinds", "", False),
        ("sourceful", "", False),
    ],
)
def test_which_errors_are_of_a_line(field, reason, expected):
    error = InvalidArgumentError("wrong", grpc.StatusCode.INVALID_ARGUMENT, field, reason=reason)
    assert is_line_error(error) is expected


def test_an_option_that_is_wrong_for_all_lines_ends_the_run(bundled_server):
    completed = run(
        "attribute", "--file", "-", "--address", bundled_server, "--layers", "9", stdin=f"{SENTENCE}\n" * 50
    )
    assert completed.returncode == 1
    assert completed.stdout == ""
    assert completed.stderr.count("out of range") == 1
