"""`sidelight ui` without the address of a server: it starts one of its own, and leaves none behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from http.client import HTTPConnection
from pathlib import Path
from subprocess import Popen
from urllib.parse import urlsplit

import pytest
from cli_process import run, start
from harness import wait_until

pytestmark = pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs a Linux that lists children in /proc"
)


def find_children(process_id: int) -> list[int]:
    """The processes that a process has started."""
    tasks = Path(f"/proc/{process_id}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def kill(process: Popen[str]) -> str:
    """Ends what is left of a command and of its server. Gives the rest of the standard error."""
    for child in find_children(process.pid) if process.poll() is None else ():
        os.kill(child, signal.SIGKILL)
    process.kill()
    return process.communicate()[1]


def wait_gone(process_id: int) -> bool:
    """Whether a process that is no child of this one ends within half a minute."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def get_json(url: str, path: str) -> object:
    place = urlsplit(url)
    connection = HTTPConnection(place.hostname, place.port, timeout=60)
    connection.request("GET", path)
    try:
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_its_server_ends_with_the_page(number, status):
    process = start("ui", "--listen", "127.0.0.1:0")
    try:
        url = process.stdout.readline().split()[-1]
        (server,) = find_children(process.pid)
        (model,) = get_json(url, "/models")
        assert model["attentions"]["cross"] == {"layers": 3, "heads": 4}
        process.send_signal(number)
        assert process.wait(60) == status
        assert wait_gone(server)
    finally:
        errors = kill(process)
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_its_server_ends_while_it_starts(number):
    process = start("ui", "--listen", "127.0.0.1:0")
    try:
        assert "starting a server" in process.stderr.readline()
        wait_until(lambda: find_children(process.pid) or process.poll() is not None)
        children = find_children(process.pid)
        assert children
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert all(map(wait_gone, children))
    finally:
        errors = kill(process)
    assert "Traceback" not in errors


def test_an_address_that_is_taken_is_told_before_a_server_starts():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        completed = run("ui", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert completed.returncode == 1
    assert "in use" in completed.stderr
    assert "starting" not in completed.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("missing", "extra"), [("torch", "server"), ("starlette", "ui")])
def test_what_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch, missing, extra):
    """Python finds a package that says what it would say if there were none."""
    message = f"No module named {missing!r}"
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError({message!r}, name={missing!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    completed = run("ui", "--listen", "127.0.0.1:0")
    assert completed.returncode == 1
    last = completed.stderr.splitlines()[-1]
    assert last == f"sidelight: {missing} is missing; install it with: pip install 'sidelight[{extra}]'"
