"""The command line against a server that can be made to wait: order, interruption, pipes."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sidelight.client.cli import demo as demo_command
from sidelight.client.cli import lines as lines_module
from sidelight.client.cli.lines import MAX_LINE_BYTES, Line, count_lines, open_lines
from sidelight.client.cli.main import main
from sidelight.v1 import attention_pb2

TOO_LONG = "longer than 4 MiB, the most that a server takes"

COMMAND = str(Path(sys.executable).with_name("sidelight"))


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    environment = {**os.environ, "COLUMNS": "80", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([COMMAND, *arguments], text=True, env=environment, cwd="/", **pipes)


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
    assert 1 < fake.most_running <= 8
    with np.load(path) as arrays:
        assert arrays["39/cross"].shape == (4, 4, 2, 3)
        assert "39/decoder_self" in arrays  # every kind of the model, since nothing else was asked
        assert "39/encoder_self" in arrays


def test_numbers_travel_as_the_options_say(fake, tmp_path):
    path = tmp_path / "out.npz"
    options = ["--heads", "1.2:0.75,0.0", "--reduce", "mean", "--encoding", "uint8", "--top-positions", "2"]
    drawing = ["--sample", "--top-k", "7"]  # another top k
    base = ["attribute", "one two three", "--address", fake.address]
    assert main([*base, *options, *drawing, "--save", str(path)]) == 0
    (request,) = fake.requests
    assert request.capture.encoding == attention_pb2.ENCODING_UINT8
    assert request.capture.top_k == 2
    assert request.decoding.sampling.top_k == 7
    first, second = request.capture.heads.list.heads
    assert (first.layer, first.head, first.weight) == (1, 2, 0.75)
    assert (second.layer, second.head, second.HasField("weight")) == (0, 0, False)
    with np.load(path) as arrays:
        assert arrays["0/cross"].dtype == np.float32
        assert ((arrays["0/cross"] > 0).sum(0) == 2).all()
    assert main(base) == 0
    capture = fake.requests[1].capture
    assert (capture.encoding, capture.top_k) == (attention_pb2.ENCODING_UNSPECIFIED, 0)


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


def test_texts_go_to_stdout_though_the_bar_is_on_a_terminal(fake, tmp_path):
    (tmp_path / "in.txt").write_text("one two\nthree\n")
    ours, theirs = pty.openpty()
    try:
        process = start("attribute", "--file", str(tmp_path / "in.txt"), "--address", fake.address, stderr=theirs)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out == "eno owt\neerht\n"
        assert b"2 texts" in os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_reader_that_leaves_is_no_disaster(fake, tmp_path):
    (tmp_path / "in.txt").write_text("one two\n" * 500)
    process = start("attribute", "--file", str(tmp_path / "in.txt"), "--address", fake.address, "--quiet")
    assert process.stdout.readline() == "eno owt\n"
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


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
        (["--file", "-", "--target", "y"], 2, "--target goes with TEXT"),
        (["x", "--timeout", "nan"], 1, "timeout: must be above 0"),
        (["x", "--model", "nobody", "--save", "/tmp/never.json"], 1, "name: "),
    ],
)
def test_what_is_wrong_is_said_in_a_line(fake, capsys, arguments, status, message):
    try:
        code = main(["attribute", *arguments, "--address", fake.address])
    except SystemExit as stop:  # argparse
        code = stop.code
    error = capsys.readouterr().err
    assert code == status
    assert message in error
    assert not Path("/tmp/never.json").exists()


def test_files_that_cannot_be_read(fake, tmp_path, capsys):
    (tmp_path / "blank").write_text("\n\n")
    address = ["--address", fake.address]
    assert main(["attribute", "--file", str(tmp_path), *address]) == 1
    assert capsys.readouterr().err == f"sidelight: {tmp_path}: Is a directory\n"
    main(["attribute", "--file", str(tmp_path / "blank"), "--save", str(tmp_path / "o.html"), *address])
    assert capsys.readouterr().out == "\n\n"
    assert not (tmp_path / "o.html").exists()


def test_an_argument_that_is_not_utf8_is_said_plainly(fake):
    command = [COMMAND.encode(), b"attribute", b"caf\xe9", b"--address", fake.address.encode()]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr == "sidelight: source: has a lone surrogate, U+DCE9 at index 3: no text may have one\n"


def attributed(fake, data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """What becomes of a file's bytes, on standard input."""
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
    done = attributed(fake, b"\n".join(lines), "--save", str(path), "--timeout", "5")
    assert done.returncode == 1
    assert done.stdout == b"eno owt\n\n\n\n\n\n\neerht\n\n"
    messages = done.stderr.decode().splitlines()
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


def test_what_fails_for_every_line_ends_the_run_and_keeps_what_there_is(fake, tmp_path):
    lines = ["one two", *["gone now"] * 20]
    path = tmp_path / "out.npz"
    done = attributed(fake, "\n".join(lines).encode(), "--save", str(path))
    assert done.returncode == 1
    assert done.stdout == b"eno owt\n"
    assert done.stderr.decode().splitlines() == [f"saved {path}", "sidelight: name: is wrong"]
    with np.load(path) as arrays:
        assert "0/cross" in arrays
        assert "1/cross" not in arrays


def read_lines(name: str) -> list[Line]:
    with open_lines(name) as lines:
        return list(lines)


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"a\rb\nc\n", ["a\rb", "c"]),  # a lone carriage return ends nothing
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\r\r\nb", ["a\r", "b"]),
        (b"a\r", ["a\r"]),
        (b"\xef\xbb\xbfa\nb", ["a", "b"]),
        (b"a\n\xef\xbb\xbfb", ["a", "\ufeffb"]),  # not at the start, it is text
        ("a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g".encode(), ["a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"]),
        (b"a\x00b\n", ["a\x00b"]),
        (b"", []),
        (b"\n", [""]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb", ["not UTF-8: unexpected end of data at byte 0"]),
        (b"\xef\xbb\xbf\n", [""]),
        (b"x" * MAX_LINE_BYTES + b"\r\na", ["x" * MAX_LINE_BYTES, "a"]),
        (b"\xef\xbb\xbf" + b"x" * MAX_LINE_BYTES, ["x" * MAX_LINE_BYTES]),
        (b"a\n" + b"x" * (MAX_LINE_BYTES + 1), ["a", TOO_LONG]),
        (b"x" * MAX_LINE_BYTES + b"\r", [TOO_LONG]),
        (b"x" * (MAX_LINE_BYTES + 1) + b"\r\na", [TOO_LONG, "a"]),
        (b"x" * (MAX_LINE_BYTES + 2) + b"\r\n\na", [TOO_LONG, "", "a"]),
        (b"x" * MAX_LINE_BYTES * 3 + b"\n" + b"y" * MAX_LINE_BYTES * 2, [TOO_LONG, TOO_LONG]),
    ],
    ids=lambda value: repr(value)[:20] if isinstance(value, bytes) else "",
)
def test_a_file_and_standard_input_have_the_same_lines(tmp_path, monkeypatch, data, texts):
    (tmp_path / "in").write_bytes(data)
    assert [str(line) for line in read_lines(str(tmp_path / "in"))] == texts
    assert count_lines(str(tmp_path / "in")) == data.removeprefix(b"\xef\xbb\xbf").count(b"\n") + (
        data[-1:] not in (b"\n", b"")
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="latin-1"))
    assert [str(line) for line in read_lines("-")] == texts
    assert count_lines("-") is None


def test_of_a_table_the_first_column_is_read(tmp_path):
    long = b"x" * (MAX_LINE_BYTES * 2)
    (tmp_path / "in.tsv").write_bytes(b"a\r\tb\r\nc\t\xff\td\ne\nf\t" + long + b"\n" + long + b"\tg\nh\tg")
    texts = ["a\r", "c", "e", "f", TOO_LONG, "h"]
    assert [str(line) for line in read_lines(str(tmp_path / "in.tsv"))] == texts


@given(st.lists(st.binary(max_size=6), max_size=8), st.integers(1, 5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_do_not_depend_on_how_their_bytes_come(monkeypatch, parts, size):
    """Against the plain way: everything at once, split by a pattern."""

    class Slow(io.BytesIO):
        def read(self, _most: int | None = None) -> bytes:
            return super().read(size)

    ends = (b"\n", b"\r\n", b"\r", b"", b"\xef\xbb\xbf")
    data = b"".join(part + ends[place % len(ends)] for place, part in enumerate(parts))
    expected = re.split(rb"\r?\n", data.removeprefix(b"\xef\xbb\xbf"))
    expected = expected if expected[-1] else expected[:-1]
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 7)
    monkeypatch.setattr(lines_module, "_MAX_BUFFER_BYTES", 9)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Slow(data)))
    got = read_lines("-")
    assert len(got) == len(expected)
    for line, whole in zip(got, expected, strict=True):
        if len(whole) > 7:
            assert str(line).startswith("longer than")
        elif isinstance(line, str):
            assert line.encode() == whole
        else:
            assert str(line).startswith("not UTF-8")
            with pytest.raises(UnicodeDecodeError):
                whole.decode()


def test_a_line_that_is_too_long_is_named_before_its_end_and_never_held(tmp_path):
    os.mkfifo(path := tmp_path / "in")
    more = threading.Event()

    def write() -> None:
        with path.open("wb", buffering=0) as pipe:
            pipe.write(b"one\n")
            for _ in range(16):
                pipe.write(b"x" * (1 << 20))
            assert more.wait(60)
            for _ in range(112):
                pipe.write(b"x" * (1 << 20))
            pipe.write(b"\ntwo")

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        with open_lines(str(path)) as lines:
            tracemalloc.start()
            try:
                assert next(lines) == "one"
                assert str(next(lines)) == TOO_LONG
                more.set()
                assert list(lines) == ["two"]
                assert tracemalloc.get_traced_memory()[1] < 32 << 20
            finally:
                tracemalloc.stop()
                more.set()
        writing.result()


def test_a_pipe_that_does_not_block_is_waited_for():
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    with open(ours, "rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: list(lines_module._read_lines(file, "in")))
        os.write(theirs, b"one\ntw")
        os.write(theirs, b"o\n")
        os.close(theirs)
        assert reading.result(60) == ["one", "two"]


def test_each_line_is_answered_when_it_comes_and_an_interruption_waits_for_none(fake):
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


def test_a_file_that_cannot_be_read_on_keeps_what_there_is(fake, tmp_path, monkeypatch, capsys):
    class Broken(io.BytesIO):
        def read(self, most: int | None = None) -> bytes:
            if data := super().read(most):
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
    done = attributed(fake, b"\xef\xbb\xbfone\rtwo\r\n\x1bthree\n")
    assert done.returncode == 0, done.stderr
    assert sorted(request.source.text for request in fake.requests) == ["\x1bthree", "one\rtwo"]


def test_a_process_without_standard_input_reads_nothing(fake):
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {COMMAND} attribute --file - --quiet --address {fake.address} <&-"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_that_takes_time_is_imported_before_an_interruption_is_handled():
    """Besides Python's own start-up, and the modules of Sidelight that handle it."""
    script = """
import builtins, signal, sys
real = builtins.__import__

def note(name, names=None, locals=None, members=(), level=0):
    is_handled = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    if not is_handled and not level and not name.startswith("sidelight"):
        print(name)
    return real(name, names, locals, members, level)

builtins.__import__ = note
sys.argv = ["sidelight", "--version"]
from sidelight.client.cli.main import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd="/", check=True
    )
    *imported, version = done.stdout.split("\n")[:-1]
    assert version.startswith("sidelight ")
    # Python itself has these, or has them without a file; __future__ has 150 lines.
    assert set(imported) <= {"__future__", "_io", "_signal", "atexit", "io", "os", "sys"}


@pytest.mark.parametrize("module", ["argparse", "numpy.linalg", "grpc._common", "rich.console"])
def test_an_interruption_while_modules_are_imported_is_no_traceback(module):
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    command = [COMMAND, "attribute", "--file", "-", "--address", "127.0.0.1:1"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        # Each module is told when it is imported.
        for line in process.stderr:
            if line.split("|")[-1].strip() == module:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert [line for line in err.splitlines() if not line.startswith("import time:")] == ["sidelight: interrupted"]


def test_an_interruption_that_is_ignored_stays_ignored(fake):
    """As of what a shell runs in the background."""
    script = f"trap '' INT; echo ready; {COMMAND} attribute --file - --quiet --address {fake.address}"
    process = subprocess.Popen(
        ["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("one two\n")
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "eno owt\n")


def test_models_are_listed(fake, capsys):
    assert main(["models", "--address", fake.address]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "teller  fake, float32 on cpu; decoder_self 2x3"


def test_colour_only_where_it_is_wanted(fake, monkeypatch, capsys):
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


def test_a_demonstration_that_is_told_to_end_takes_its_server_along():
    process = start("demo")
    try:
        for line in process.stdout:
            if "127.0.0.1:" in line:
                break
        address = next(word for word in line.split() if word.startswith("127.0.0.1:")).rstrip(":")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()
    assert main(["models", "--address", address]) == 1


def test_a_demonstration_without_a_server_says_why(tmp_path, monkeypatch, capsys):
    script = tmp_path / "sidelight"
    script.write_text("#!/bin/sh\necho 'sidelight: torch is missing; install it' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(demo_command.sys, "executable", str(tmp_path / "python"))
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "sidelight: torch is missing; install it\n"
