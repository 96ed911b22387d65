"""Servers with front ends: real ones in processes, and for one loaded model in threads, over the same channels."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cli_process
import grpc
from harness import wait_until
from sidelight.server.api import Address
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.entrypoints.front_end import run_front_end
from sidelight.server.frontends import ChannelEnd, FrontEnds
from sidelight.server.models.loader import LoadedModel
from sidelight.server.operations import CallLimits, MetricsServer, Security


class ThreadNursery:
    """Starts front ends in threads of this process, which cannot fork: it has threads."""

    def __init__(self, address: Address, security: Security, limits: CallLimits) -> None:
        self._arguments = address, security, limits
        self._threads: list[threading.Thread] = []

    def start(self, end: ChannelEnd) -> int:
        """Starts a front end."""
        thread = threading.Thread(target=run_front_end, args=(end, *self._arguments), name="front end")
        thread.start()
        self._threads.append(thread)
        return 0

    def close(self) -> None:
        """Waits for all front ends."""
        for thread in self._threads:
            thread.join(60)


@contextlib.contextmanager
def serving_by_front_ends(
    *models: LoadedModel,
    count: int = 2,
    limits: EngineConfig | None = None,
    security: Security | None = None,
    call_limits: CallLimits | None = None,
    metrics: MetricsServer | None = None,
) -> Iterator[str]:
    """Serves models with front ends in threads; gives the address. `metrics` is closed at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="engines loop")
    thread.start()
    address = Address("127.0.0.1:0")
    address.share()
    nursery = ThreadNursery(address, security or Security(), call_limits or CallLimits())

    async def start() -> FrontEnds:
        front_ends = FrontEnds(models, [limits or EngineConfig() for _ in models], nursery, count)
        await front_ends.start()
        return front_ends

    try:
        front_ends = asyncio.run_coroutine_threadsafe(start(), loop).result(240)
        if metrics is not None:
            metrics.start(front_ends.method_metrics, front_ends.model_metrics)
        try:
            yield address.name
        finally:
            if metrics is not None:
                metrics.close()
            asyncio.run_coroutine_threadsafe(front_ends.stop(0), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        address.close()


@dataclass
class ServerProcess:
    """A server of the command line with front ends."""

    process: subprocess.Popen[str]
    log_path: Path
    address: str = ""
    channels: list[grpc.Channel] = field(default_factory=list[grpc.Channel])

    @property
    def log(self) -> str:
        """The log so far."""
        return self.log_path.read_text()

    @property
    def pids(self) -> dict[int, int]:
        """The processes of the front ends that were last said to listen, by their numbers."""
        words = [line.split(" front end ")[-1].split() for line in self.log.split("\n") if " listens, process " in line]
        return {int(line[0]): int(line[-1]) for line in words}

    def channel(self) -> grpc.Channel:
        """A connection of its own, which is closed at the end."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self.channels.append(grpc.insecure_channel(self.address, options=options))
        return self.channels[-1]

    def wait(self, seconds: float = 60.0) -> int:
        """Waits for the end. Returns the exit status."""
        return self.process.wait(seconds)


@contextlib.contextmanager
def running_front_ends(*options: str, count: int = 2) -> Iterator[ServerProcess]:
    """A server of the command line with front ends, and its log."""
    with tempfile.TemporaryDirectory() as folder:
        log_path = Path(folder) / "log"
        with log_path.open("w") as log:
            command = ["serve", "--address", "127.0.0.1:0", "--frontends", str(count), *options]
            process = cli_process.start(*command, stderr=log)
        server = ServerProcess(process, log_path)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, server.log
            server.address = line.split()[-1]
            yield server
        finally:
            for channel in server.channels:
                channel.close()
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
            wait_until(lambda: not any(is_alive(pid) for pid in server.pids.values()))


def is_alive(pid: int) -> bool:
    """Whether there is a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill(pid: int) -> None:
    """Ends a process by SIGKILL, and waits for its end."""
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)
