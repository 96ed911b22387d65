"""Front ends in processes: one that is killed, the engine's process that is killed, signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from follow_driver import FollowDriver, details_of
from front_ends import is_alive, kill, running_front_ends
from harness import CROSS, request, wait_until
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as services

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="several front ends need Linux")]

# The follow streams that the server takes.
NUM_PLACES = 8


def long_request(num_steps: int = 250) -> pb.AttributeRequest:
    message = request("A dog runs. " * 10, [CROSS])
    message.decoding.ignore_eos = True
    message.decoding.max_new_tokens = num_steps
    return message


class Stream:
    """One stream over a connection of its own, read in a thread."""

    def __init__(self, server, message: pb.AttributeRequest) -> None:
        self.call = services.AttributionServiceStub(server.channel()).Attribute(message, timeout=120)
        self.has_begun = threading.Event()
        self.end = ""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for response in self.call:
                self.has_begun.set()
                if response.HasField("finished"):
                    self.end = "finished"
        except grpc.RpcError as error:
            self.end = error.code().name  # pyright: ignore[reportAttributeAccessIssue]
            with contextlib.suppress(Exception):
                self.end += " " + details_of(error)[1]  # pyright: ignore[reportArgumentType]
        self.has_begun.set()

    def join(self) -> str:
        self._thread.join(120)
        return self.end


def metric(server, name: str) -> float:
    url = server.log.split("metrics at ")[1].split()[0]
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().split("\n")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def begin(server, count: int, message: pb.AttributeRequest) -> list[Stream]:
    streams = [Stream(server, message) for _ in range(count)]
    for stream in streams:
        assert stream.has_begun.wait(60)
    return streams


@pytest.fixture(scope="module")
def server():
    """A server for several tests. The last one ends it."""
    options = ["--metrics-address", "127.0.0.1:0", "--grace", "30", "--max-follow-streams", str(NUM_PLACES)]
    with running_front_ends(*options) as server:
        yield server


def test_a_killed_front_end_loses_its_own_streams_and_starts_again(server):
    pids = server.pids
    assert sorted(pids) == [0, 1]
    streams = begin(server, 16, long_request())
    kill(pids[0])
    ends = [stream.join() for stream in streams]
    assert 0 < ends.count("finished") < 16
    assert {end.split()[0] for end in ends if end != "finished"} == {"UNAVAILABLE"}
    wait_until(lambda: server.pids[0] != pids[0])
    wait_until(lambda: metric(server, "sidelight_requests_running") == 0)
    assert metric(server, "sidelight_slots_used") == 0
    again = [Stream(server, request("A dog.")) for _ in range(16)]
    assert [stream.join() for stream in again] == ["finished"] * 16


def can_follow(server, opened: list[FollowDriver]) -> bool:
    """Whether a follow stream opens, which is added to a list."""
    driver = FollowDriver(services.AttributionServiceStub(server.channel()))
    try:
        driver.add_source("A dog.")
    except grpc.RpcError:
        driver.close()
        return False
    opened.append(driver)
    return True


def test_a_killed_front_end_gives_the_places_of_its_follow_streams_back(server):
    drivers = [FollowDriver(services.AttributionServiceStub(server.channel())) for _ in range(NUM_PLACES)]
    for driver in drivers:
        driver.add_source("A dog")
    assert not can_follow(server, drivers)
    victim = server.pids[0]
    kill(victim)
    wait_until(lambda: server.pids[0] != victim)
    num_live = 0
    for driver in drivers:
        with contextlib.suppress(grpc.RpcError):
            driver.add_source(" runs.")
            num_live += 1
    num_lost = NUM_PLACES - num_live
    assert [can_follow(server, drivers) for _ in range(num_lost + 1)] == [True] * num_lost + [False]
    for channel in server.channels:
        channel.close()


def test_front_ends_that_are_killed_leave_no_descriptor_and_no_memory(server):
    descriptors = num_descriptors(server.process.pid)
    for _ in range(3):
        victim = server.pids[1]
        kill(victim)
        wait_until(lambda victim=victim: server.pids[1] != victim)
    wait_until(lambda: num_descriptors(server.process.pid) <= descriptors)
    shared = Path(f"/proc/{server.process.pid}/maps").read_text().count("memfd:sidelight")
    assert shared == 2 * 2  # two rings for each front end


def test_sigterm_lets_the_streams_of_all_front_ends_finish(server):
    streams = begin(server, 24, long_request(100))
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping within" in server.log)
    time.sleep(0.2)
    codes = [Stream(server, request("A dog.")).join() for _ in range(6)]
    assert {code.split()[0] for code in codes} == {"UNAVAILABLE"}
    assert [stream.join() for stream in streams] == ["finished"] * 24
    assert server.wait() == 0


def num_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_second_signal_ends_all_processes_at_once():
    with running_front_ends("--grace", "60") as server:
        begin(server, 4, long_request())
        pids = server.pids
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping within" in server.log)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(20) == -signal.SIGTERM
        wait_until(lambda: not any(map(is_alive, pids.values())))


def test_without_the_engines_process_streams_end_with_unavailable():
    with running_front_ends() as server:
        streams = begin(server, 8, long_request())
        pids = server.pids
        kill_process(server)
        assert {stream.join().split()[0] for stream in streams} == {"UNAVAILABLE"}
        wait_until(lambda: not any(map(is_alive, pids.values())))


def kill_process(server) -> None:
    server.process.kill()
    server.process.wait()
