"""Lines of files and of standard input."""

from __future__ import annotations

import io
import os
import re
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sidelight.client.cli import lines as lines_module
from sidelight.client.cli.lines import MAX_LINE_BYTES, Line, count_lines, open_lines

TOO_LONG = "longer than 4 MiB, the most that a server takes"


def read_lines(name: str) -> list[Line]:
    with open_lines(name) as lines:
        return list(lines)


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"a\rb\nc\n", ["a\rb", "c"]),  # a lone carriage return ends no line
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\r\r\nb", ["a\r", "b"]),
        (b"a\r", ["a\r"]),
        (b"\xef\xbb\xbfa\nb", ["a", "b"]),
        (b"a\n\xef\xbb\xbfb", ["a", "\ufeffb"]),  # a byte order mark is text, unless it is at the start
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


def test_the_first_column_of_a_table_is_read(tmp_path):
    long = b"x" * (MAX_LINE_BYTES * 2)
    (tmp_path / "in.tsv").write_bytes(b"a\r\tb\r\nc\t\xff\td\ne\nf\t" + long + b"\n" + long + b"\tg\nh\tg")
    texts = ["a\r", "c", "e", "f", TOO_LONG, "h"]
    assert [str(line) for line in read_lines(str(tmp_path / "in.tsv"))] == texts


@given(st.lists(st.binary(max_size=6), max_size=8), st.integers(1, 5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_do_not_depend_on_how_their_bytes_come(monkeypatch, parts, size):
    """Compares with a simple reading of everything at once, split by a pattern."""

    class Slow(io.BytesIO):
        def read(self, _size: int | None = None) -> bytes:
            return super().read(size)

    ends = (b"\n", b"\r\n", b"\r", b"", b"\xef\xbb\xbf")
    data = b"".join(part + ends[index % len(ends)] for index, part in enumerate(parts))
    expected = re.split(rb"\r?\n", data.removeprefix(b"\xef\xbb\xbf"))
    expected = expected if expected[-1] else expected[:-1]
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 7)
    monkeypatch.setattr(lines_module, "_MAX_BUFFER_BYTES", 9)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Slow(data)))
    lines = read_lines("-")
    assert len(lines) == len(expected)
    for line, expected_line in zip(lines, expected, strict=True):
        if len(expected_line) > 7:
            assert str(line).startswith("longer than")
        elif isinstance(line, str):
            assert line.encode() == expected_line
        else:
            assert str(line).startswith("not UTF-8")
            with pytest.raises(UnicodeDecodeError):
                expected_line.decode()


def test_a_line_that_is_too_long_is_named_before_its_end_and_never_in_memory(tmp_path):
    os.mkfifo(path := tmp_path / "in")
    may_write_more = threading.Event()

    def write() -> None:
        with path.open("wb", buffering=0) as pipe:
            pipe.write(b"one\n")
            for _ in range(16):
                pipe.write(b"x" * (1 << 20))
            assert may_write_more.wait(60)
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
                may_write_more.set()
                assert list(lines) == ["two"]
                assert tracemalloc.get_traced_memory()[1] < 32 << 20
            finally:
                tracemalloc.stop()
                may_write_more.set()
        writing.result()


def test_a_non_blocking_pipe_is_waited_for():
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    with open(read_end, "rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: list(lines_module._read_lines(file, "in")))
        os.write(write_end, b"one\ntw")
        os.write(write_end, b"o\n")
        os.close(write_end)
        assert reading.result(60) == ["one", "two"]
