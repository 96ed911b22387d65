"""Replicas on a cluster of Ray in processes of their own, from the file in server/deploy."""

from __future__ import annotations

import csv
import io
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from deployment import DEPLOY
from harness import wait_until

SCRIPT = Path(__file__).with_name("serve_on_ray.py")
# What marks all processes of a cluster: Ray's children inherit the environment.
_MARK = "TEST_OF_RAY_SERVE"
_MAX_START_SECONDS = 240
# Ray gives its own processes 15 seconds to start, which are not always enough on a busy machine.
_MAX_TRIES = 6


@dataclass(frozen=True)
class RayCluster:
    """One cluster.

    Attributes:
        address: Where HAProxy listens for gRPC.
        mark: What the environment of all processes has.
        stats_url: What HAProxy says about the replicas, as CSV.
    """

    address: str
    mark: str
    stats_url: str

    def replica_pids(self) -> list[int]:
        """The processes of replicas, those that start among them."""
        return [pid for pid in _marked_pids(self.mark) if read_process(pid, "cmdline").startswith(b"ray::ServeReplica")]

    def haproxy_pids(self) -> list[int]:
        """The processes of HAProxy."""
        return [pid for pid in _marked_pids(self.mark) if b"bin/haproxy" in read_process(pid, "cmdline")]

    def wait_until_up(self, count: int) -> None:
        """Waits until HAProxy sends calls to so many replicas. A busy machine takes minutes to start one."""
        end = time.monotonic() + _MAX_START_SECONDS
        while self.num_up() < count:
            assert time.monotonic() < end, f"{self.num_up()} replicas, not {count}"
            time.sleep(0.2)

    def num_up(self) -> int:
        """How many replicas HAProxy sends calls to."""
        try:
            with urllib.request.urlopen(self.stats_url, timeout=10) as answer:
                table = io.StringIO(answer.read().decode().lstrip("# "))
        except (urllib.error.URLError, OSError):
            return 0
        rows = csv.DictReader(table)
        names = ("BACKEND", "FRONTEND")
        return sum(
            "grpc" in row["pxname"] and "fallback" not in row["pxname"] + row["svname"]
            and row["svname"] not in names and row["status"].startswith("UP")
            for row in rows
        )  # fmt: skip


def free_port() -> int:
    """A port that is free now, of those that the system gives to nobody who asks for any port."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


@contextmanager
def serving_on_ray(args: dict[str, Any], deployment: dict[str, Any]) -> Iterator[RayCluster]:
    """Serves on a cluster. `args` are settings; `deployment` is what differs in the options of the deployment."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # paths of sockets must be short
    mark, stats_port, port = uuid.uuid4().hex, free_port(), free_port()
    config = yaml.safe_load((DEPLOY / "ray-serve.yaml").read_text())
    config["grpc_options"]["port"], config["http_options"]["port"] = port, free_port()
    (application,) = config["applications"]
    application["args"].update(args)
    application["deployments"][0].update(deployment)
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    environment = _environment(folder, mark, stats_port)
    cluster = RayCluster(f"127.0.0.1:{port}", mark, f"http://127.0.0.1:{stats_port}/stats;csv")
    try:
        ray_address = _start_ray(folder, environment)
        with (folder / "serve.txt").open("wb") as log:
            command = [sys.executable, str(SCRIPT), str(folder / "serve.yaml"), ray_address]
            subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        cluster.wait_until_up(1)
        yield cluster
    except BaseException:
        _print_logs(folder)
        raise
    finally:
        _end(mark)
        shutil.rmtree(folder, ignore_errors=True)


def _start_ray(folder: Path, environment: dict[str, str]) -> str:
    """Starts a cluster. Returns its address."""
    for _ in range(_MAX_TRIES):
        port = free_port()
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--temp-dir={folder}"]
        # The processors that Ray counts are what replicas ask for, and need not be there.
        command += ["--num-cpus=8", "--object-store-memory=80000000", "--include-dashboard=false"]
        command += [f"--port={port}", f"--ray-client-server-port={free_port()}"]
        with (folder / "start.txt").open("ab") as log:
            run = subprocess.run(command, env=environment, cwd=folder, stdout=log, stderr=log, timeout=150)
        if run.returncode == 0:
            return f"127.0.0.1:{port}"
        _end(environment[_MARK])
    raise AssertionError("Ray has not started")


def _environment(folder: Path, mark: str, stats_port: int) -> dict[str, str]:
    haproxy = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "SERVER_STATE_BASE": ""}
    haproxy |= {"SERVER_STATE_FILE": "server-state", "METRICS_SOCKET_PATH": "metrics.sock"}
    return os.environ | {
        _MARK: mark,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_agent_register_timeout_ms": "200000",  # a busy machine may be that slow
        "RAY_enable_metrics_collection": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        **{f"RAY_SERVE_HAPROXY_{name}": str(folder / file) for name, file in haproxy.items()},
    }


def _marked_pids(mark: str) -> list[int]:
    entry = f"{_MARK}={mark}".encode()
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if entry in read_process(pid, "environ").split(b"\0")]


def read_process(pid: int, name: str) -> bytes:
    """A file of /proc about a process; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _end(mark: str) -> None:
    """Ends all processes of the cluster, those among them that Ray would leave behind."""
    for pid in _marked_pids(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not _marked_pids(mark))


def _print_logs(folder: Path) -> None:
    logs = ("raylet.*", "serve/controller*.log", "serve/replica*.log")
    for path in [*folder.glob("*.txt"), *(path for log in logs for path in folder.glob(f"session_latest/logs/{log}"))]:
        print(f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}")
