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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from deployment import DEPLOY
from harness import wait_until

SCRIPT = Path(__file__).with_name("serve_on_ray.py")
# What marks all processes of a cluster: Ray's children inherit the environment.
_MARK = "TEST_OF_RAY_SERVE"


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
        return [pid for pid in _marked_pids(self.mark) if _command_of(pid).startswith("ray::ServeReplica")]

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
    log_path = folder / "log.txt"
    with log_path.open("wb") as log:
        command = [sys.executable, str(SCRIPT), str(folder / "serve.yaml"), str(folder)]
        process = subprocess.Popen(
            command, env=_environment(folder, mark, stats_port), cwd=folder, stdout=log, stderr=log
        )
    cluster = RayCluster(f"127.0.0.1:{port}", mark, f"http://127.0.0.1:{stats_port}/stats;csv")
    try:
        wait_while_alive(process, lambda: cluster.num_up() > 0)
        yield cluster
    except BaseException:
        _print_logs(folder)
        raise
    finally:
        _end(process, mark)
        shutil.rmtree(folder, ignore_errors=True)


def wait_while_alive(process: subprocess.Popen[bytes], condition: Callable[[], object]) -> None:
    """Waits for a cluster, which takes a minute where other processes run."""
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, "Ray has ended"
        assert time.monotonic() < end, "no replica within four minutes"
        time.sleep(0.2)


def _environment(folder: Path, mark: str, stats_port: int) -> dict[str, str]:
    haproxy = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "SERVER_STATE_BASE": ""}
    haproxy |= {"SERVER_STATE_FILE": "server-state", "METRICS_SOCKET_PATH": "metrics.sock"}
    return os.environ | {
        _MARK: mark,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        **{f"RAY_SERVE_HAPROXY_{name}": str(folder / file) for name, file in haproxy.items()},
    }


def _marked_pids(mark: str) -> list[int]:
    entry = f"{_MARK}={mark}".encode()
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if entry in (path / "environ").read_bytes().split(b"\0"):
                pids.append(int(path.name))
        except OSError:
            continue
    return pids


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Ends all processes of the cluster. Ray leaves some behind, HAProxy among them."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in _marked_pids(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_until(lambda: not _marked_pids(mark))


def _print_logs(folder: Path) -> None:
    for path in [folder / "log.txt", *folder.glob("session_latest/logs/serve/*sidelight*.log")]:
        print(f"--- {path.name}\n{path.read_text(errors='replace')[-6000:]}")
