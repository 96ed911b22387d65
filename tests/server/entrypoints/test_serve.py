"""What `sidelight serve` prints until it serves."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from damaged_checkpoints import weights
from harness import wait_until
from sidelight.client import Client
from sidelight.client.cli.main import main
from sidelight.server.api.server import Server
from sidelight.server.api.transport.addresses import Address
from sidelight.server.entrypoints import loading, serve
from sidelight.server.models import loader
from sidelight.server.models.loader import bundled_model
from sidelight.server.operations import Security
from sidelight.server.settings import add_flags, read_settings

COMMAND = str(Path(sys.executable).with_name("sidelight"))


@contextlib.contextmanager
def running(*options: object):
    """A server of the command line: its first line, and its address."""
    command = [COMMAND, "serve", *map(str, options), "--address", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tempfile.gettempdir()) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            yield line, line.split()[-1]
        finally:
            process.kill()


def lines_until_serving(*options: str) -> tuple[str, list[str]]:
    """The first line of standard output, and all lines of the log until then."""
    command = [COMMAND, "serve", "--address", "127.0.0.1:0", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=tempfile.gettempdir(), env=environment
        )
        with process:
            assert process.stdout is not None
            line = process.stdout.readline()
            log.seek(0)
            lines = log.read().split("\n")
            process.send_signal(signal.SIGKILL)
    return line, [line for line in lines if line.strip()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_start_prints_five_lines_at_most():
    line, log = lines_until_serving()
    assert line.startswith("sidelight: serving tatoeba-en-de at 127.0.0.1:")
    assert len(log) <= 4
    assert not any("\r" in line or "DEBUG" in line for line in log)
    said = "\n".join(log)
    assert "loading the bundled model" in said
    assert "packed 34 linear layers in float32" in said
    assert "32 slots of 256 source and 256 target tokens" in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("level", "least"), [("debug", 8), ("warning", 0)])
def test_the_log_says_as_much_as_it_is_asked_for(level, least):
    _, log = lines_until_serving("--log-level", level)
    assert len(log) >= least if least else not log


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_two_models_are_served_each_with_its_own_settings():
    options = ["--model", f"b={bundled_model()},dtype=int8,max-slots=3,max-length=20,threads=1", "--max-slots", "5"]
    with running(bundled_model(), *options) as (line, address):
        assert line.startswith("sidelight: serving bundled, b at ")
        with Client(address) as client:
            second, first = client.list_models(timeout=30)  # by name
            assert (first.name, first.dtype, second.name, second.dtype) == ("bundled", "float32", "b", "int8")
            assert second.max_source_tokens == 20 < first.max_source_tokens
            texts = [client.attribute("A dog.", model=name).result().text for name in ("bundled", "b")]
    assert texts == ["Ein Hund.", "Ein Hund."]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_server_with_status_0(bundled, monkeypatch, capsys, number):
    """Within the grace of the setting."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    graces: list[float] = []
    stop = Server.stop

    async def noting(server: Server, grace: float = 0.0) -> None:
        graces.append(grace)
        await stop(server, grace)

    monkeypatch.setattr(Server, "stop", noting)
    arguments = argparse.ArgumentParser()
    add_flags(arguments)
    settings = read_settings(arguments.parse_args(["--address", "127.0.0.1:0", "--grace", "2.5"]))
    try:
        with Address(settings.values.address) as held:
            configs = loading._engine_configs([bundled], settings, [()])
            arguments = ([bundled], configs, held, Security(), serve._Monitoring(), settings.values)
            serving = asyncio.create_task(serve._serve(*arguments))
            while "serving" not in capsys.readouterr().out:
                assert not serving.done(), serving.exception()
                await asyncio.sleep(0.01)
            os.kill(os.getpid(), number)
            assert await asyncio.wait_for(serving, 60) == 0
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert graces == [2.5]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs a process with the id 1")
def test_the_first_process_of_a_container_ends_while_it_loads(tmp_path):
    """The kernel gives such a process no signal that it does not handle."""
    (log := tmp_path / "log").touch()
    command = ["unshare", "--pid", "--fork", "--kill-child", COMMAND, "serve", "--address", "127.0.0.1:0"]
    with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
        wait_until(lambda: "loading" in log.read_text())
        (server,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(server), signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert process.stdout is not None
        assert not process.stdout.read()


def break_nothing(_folder: Path) -> None:
    pass


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)


def empty_folder(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def turn_a_tensor(folder: Path) -> None:
    with weights(folder) as tensors:
        name = next(name for name, tensor in tensors.items() if tensor.dim() == 2 and len(set(tensor.shape)) == 2)
        tensors[name] = tensors[name].T.contiguous()


def write_config(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text)


UNKNOWN = json.dumps({"model_type": "sidelight-has-no-such", "architectures": ["NoSuchModel"]})


@pytest.mark.parametrize(
    ("damage", "path", "words"),
    [
        (break_nothing, "no/such/folder", "no/such/folder"),
        (break_nothing, "model/config.json", "is a file, where a model's folder should be"),
        (empty_folder, "model", "config.json"),
        (remove("config.json"), "model", "config.json"),
        (remove("model.safetensors"), "model", "model.safetensors"),
        (cut, "model", "model.safetensors"),
        (turn_a_tensor, "model", "by config.json"),
        (write_config('{"model_type": '), "model", "config.json"),
        (write_config(UNKNOWN), "model", "NoSuchModel"),
    ],
    ids=["no folder", "a file", "empty", "no config", "no weights", "cut", "shape", "JSON", "architecture"],
)
def test_a_broken_model_ends_the_start_with_one_line(copy_model, tmp_path, capsys, damage, path, words):
    damage(copy_model("bundled"))
    assert main(["serve", str(tmp_path / path), "--address", "127.0.0.1:0", "--offline", "--log-level", "error"]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith("sidelight: cannot load ")
    assert words in line


def test_what_nobody_has_foreseen_ends_the_start_with_one_line(capsys, monkeypatch):
    monkeypatch.setattr(loader, "open_checkpoint", lambda _: {}["unforeseen\nTraceback"])
    assert main(["serve", "--address", "127.0.0.1:0", "--log-level", "error"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sidelight: cannot load")
    assert "unforeseen" in line
