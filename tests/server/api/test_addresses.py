"""Addresses: a wrong address is refused, an address in use is refused at once, and a socket's path has one server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import request, stub, wait_until
from sidelight.client import AsyncClient
from sidelight.client.cli.main import main
from sidelight.server.api.server import Server
from sidelight.server.api.transport.addresses import Address, AddressError
from sidelight.server.operations import Security

COMMAND = str(Path(sys.executable).with_name("sidelight"))


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":",
        ":50051",
        "127.0.0.1",
        "127.0.0.1:",
        "localhost",
        "127.0.0.1:-1",
        "127.0.0.1:99999",
        "127.0.0.1:65536",
        "127.0.0.1:" + "9" * 5000,
        "127.0.0.1:http",
        "127.0.0.1:+80",
        "127.0.0.1: 80",
        "127.0.0.1:\u0665",
        "127.0.0.1:1.5",
        "127.0.0.1:80:80",
        "::1:50051",
        "[::1]",
        "[::1]:",
        "[nothing]:50051",
        "http://127.0.0.1:50051",
        "dns:///127.0.0.1:50051",
        "no.such.host.invalid:50051",
        "a b:50051",
        "x" * 300 + ":50051",
        "1.2.3.4:50051",
        "unix:",
        "unix://",
        "unix:/no/such/folder/socket",
        "unix:/tmp/" + "x" * 200,
        "unix:/tmp/a\0b",
    ],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(AddressError, match=r"^cannot listen on ") as raised:
        Address(address)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("kind", ["no folder", "a file in between", "a folder that may not be written to"])
def test_the_error_of_an_impossible_path_names_only_the_address(tmp_path, kind):
    folder = tmp_path / "folder"
    if kind == "a file in between":
        folder.touch()
    elif kind != "no folder":
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        folder.mkdir(mode=0o500)
    with pytest.raises(AddressError) as raised:
        Address(f"unix:{folder}/x")
    assert str(raised.value).startswith(f"cannot listen on unix:{folder}/x: ")
    assert "lock" not in str(raised.value)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        *(("--threads", value, "must be a whole number from 1 to 1,024") for value in ("x", "0", "1025", "1.5", "")),
        *(("--max-slots", value, "must be a whole number from 1 to 1,000,000,000") for value in ("x", "-1", "1e3")),
        ("--max-length", "long", "must be a whole number from 1 to 1,000,000,000"),
        *(("--memory-fraction", value, "must be a number above 0 and at most 1") for value in ("x", "nan", "0", "2")),
    ],
)
def test_the_error_of_a_bad_option_says_what_the_option_must_be(capsys, option, value, said):
    with pytest.raises(SystemExit) as raised:
        main(["serve", f"{option}={value}"])
    assert raised.value.code == 2
    assert f"argument {option}: {said}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "localhost:0", "0.0.0.0:0", "[::]:0", "[::1]:0", "unix-abstract:sidelight"]
)
def test_addresses_of_every_form_are_served(bundled, address):
    if "::" in address and not socket.has_ipv6:
        pytest.skip("no IPv6 here")

    async def serve() -> str:
        server = Server([bundled], address)
        served = await server.start()
        async with grpc.aio.insecure_channel(
            served.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
        ) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        await server.stop()
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        return served

    served = asyncio.run(serve())
    assert served == address if address.startswith("unix") else served.rpartition(":")[0] == address.rpartition(":")[0]
    assert not served.endswith(":0")


def test_a_port_is_held_while_nobody_listens_there():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    with Address(f"127.0.0.1:{port}") as held:
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) != 0  # refused: it is not ready
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        held.release()
        with socket.socket() as other:
            other.bind(("127.0.0.1", port))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_that_is_taken_is_refused(host):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(AddressError, match="another server listens there"):
            Address(f"{host}:{other.getsockname()[1]}")


# ---- sockets in the file system -------------------------------------------------------------------------------------


async def answers(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        return answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
def test_a_second_server_on_a_socket_is_refused(bundled, tmp_path, form):
    path = tmp_path / "socket"
    address = form.format(path)

    async def serve() -> None:
        first = Server([bundled], address)
        await first.start()
        second = Server([bundled], f"unix:{path}")
        with pytest.raises(AddressError, match="another server listens there"):
            await second.start()
        await second.stop()
        assert path.exists()
        assert await answers(address)
        await first.stop()
        third = Server([bundled], address)
        await third.start()
        assert await answers(address)
        await third.stop()

    asyncio.run(serve())
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_still_loading_has_its_socket(tmp_path):
    with Address(f"unix:{tmp_path}/socket"):
        with pytest.raises(AddressError, match="another server listens there"):
            Address(f"unix:{tmp_path}/socket")
        Address(f"unix:{tmp_path}/other").close()
    Address(f"unix:{tmp_path}/socket").close()
    assert list(tmp_path.iterdir()) == []


def test_a_socket_of_somebody_else_is_left(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        for _ in range(3):  # its backlog is full in the end
            with pytest.raises(AddressError, match="another server listens there"):
                Address(f"unix:{path}")
        assert path.exists()
    path.unlink()
    with Address(f"unix:{path}") as held, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))  # meanwhile
        other.listen()
        with pytest.raises(AddressError, match="another server listens there"):
            held.release()


def test_what_a_dead_server_has_left_is_taken(bundled, tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    (tmp_path / "socket.lock").touch()

    async def serve() -> None:
        server = Server([bundled], f"unix:{path}")
        await server.start()
        assert await answers(f"unix:{path}")
        await server.stop()

    asyncio.run(serve())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_socket_is_left(tmp_path, kind):
    path = tmp_path / "socket"
    path.write_text("mine") if kind == "file" else path.mkdir()
    with pytest.raises(AddressError, match="no socket"):
        Address(f"unix:{path}")
    assert path.exists()


# ---- the command line -----------------------------------------------------------------------------------------------


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, "serve", *arguments], capture_output=True, text=True, timeout=120, cwd="/")


def test_an_address_is_refused_before_anything_is_loaded(monkeypatch, capsys):
    from sidelight.server.models import loader as models

    monkeypatch.setattr(models, "load", None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for address in ("127.0.0.1", "127.0.0.1:-1", f"127.0.0.1:{other.getsockname()[1]}"):
            assert main(["serve", "--address", address]) == 1
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1
            assert lines[0].startswith(f"sidelight: cannot listen on {address}: ")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--threads", "99999999999"),
        ("--threads", "1025"),
        ("--threads", "0"),
        ("--threads", "x"),
        ("--max-slots", "99999999999"),
        ("--max-waiting", "-1"),
        ("--max-feature-mib", "0"),
        ("--max-length", "0"),
        ("--memory-fraction", "nan"),
    ],
)
def test_numbers_that_are_a_slip_are_refused(option, value, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["serve", option, value])
    assert raised.value.code == 2
    assert f"argument {option}: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_the_error_of_a_model_that_cannot_be_served_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    ended = serve(str(tmp_path), "--address", f"unix:{tmp_path}/socket")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"sidelight: cannot load {tmp_path}: config.json must hold")
    assert "Traceback" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.slow
def test_two_servers_of_the_command_line_and_one_socket(tmp_path):
    address = f"unix:{tmp_path}/socket"
    first = subprocess.Popen([COMMAND, "serve", "--address", address], stdout=subprocess.PIPE, text=True, cwd="/")
    try:
        while not (tmp_path / "socket.lock").exists():
            assert first.poll() is None
            time.sleep(0.01)
        second = serve("--address", address)  # most likely while the first one loads
        assert second.returncode == 1
        assert second.stderr == f"sidelight: cannot listen on {address}: another server listens there\n"
        assert first.stdout is not None
        assert first.stdout.readline() == f"sidelight: serving tatoeba-en-de at {address}\n"
        assert serve("--address", address).returncode == 1
        with stub(address) as service:
            assert list(service.Attribute(request("A dog."), timeout=60))[-1].HasField("finished")
        first.send_signal(signal.SIGKILL)
        first.wait(30)
        assert os.path.exists(tmp_path / "socket")
        Address(address).close()
    finally:
        first.kill()
        first.communicate()


def test_an_address_in_use_is_said(bundled, bundled_server):
    async def start() -> None:
        await Server([bundled], bundled_server).start()

    with pytest.raises(AddressError, match="cannot listen"):
        asyncio.run(start())


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o777])
async def test_a_unix_socket_has_its_mode_from_its_first_moment(bundled, tmp_path, mode):
    path = tmp_path / "socket"
    seen: set[int] = set()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            with contextlib.suppress(FileNotFoundError):
                seen.add(stat.S_IMODE(os.stat(path).st_mode))

    watcher = threading.Thread(target=watch)
    watcher.start()
    umask = os.umask(0o022)
    try:
        server = Server([bundled], f"unix:{path}", security=Security(unix_mode=mode))
        address = await server.start()
        async with AsyncClient(address) as client:
            assert await client.list_models()
        assert os.umask(0o022) == 0o022
        await asyncio.to_thread(wait_until, lambda: seen)
    finally:
        os.umask(umask)
        await server.stop()
        is_over.set()
        watcher.join()
    assert seen == {mode}


def test_several_processes_share_a_port_that_nobody_else_can_take(tmp_path):
    with Address("127.0.0.1:0") as address:
        address.share()
        host, _, port = address.name.rpartition(":")
        assert int(port) > 0
        listeners = []
        for _ in range(2):
            address.release()  # as each front end does
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, int(port)))
            listener.listen()
            listeners.append(listener)
        with pytest.raises(AddressError, match="another server listens there"):
            Address(address.name)
        for listener in listeners:
            listener.close()
    with (
        Address(f"unix:{tmp_path}/socket") as path,
        pytest.raises(AddressError, match="give HOST:PORT, or --frontends 1"),
    ):
        path.share()
