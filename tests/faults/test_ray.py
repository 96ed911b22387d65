"""Replicas on Ray Serve, behind Ray's HAProxy; `-s` prints figures."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import numpy as np
import pytest
from follow_driver import details_of, event, start, token_ids
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import CROSS, DECODER_SELF, request, steps_of, stub, wait_until
from ray_cluster import RayCluster, read_process, serving_on_ray
from sidelight.client import Capture, Client, Decoding
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # a busy machine takes minutes to start the cluster and the second replica
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Ray's HAProxy is for Linux"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install 'sidelight[ray]'"),
]

SENTENCE = "My grandmother is still vigorous at 82 years old."
TOKEN = "a-token-of-the-website-0"
SINGLE_TOKEN = "a-token-of-one-request-0"
METADATA = [("authorization", f"Bearer {TOKEN}")]
LONG = Decoding(max_new_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """One replica, and a second one as soon as the load asks for it."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    single = f'[single]\ntokens = ["{SINGLE_TOKEN}"]\nmax_requests = 1\n'
    tokens.write_text(f'[website]\ntokens = ["{TOKEN}"]\n{single}')
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 4, "upscale_delay_s": 0}
    scaling |= {"downscale_delay_s": 3600, "metrics_interval_s": 0.5, "look_back_period_s": 2}
    deployment = {"autoscaling_config": scaling, "ray_actor_options": {"num_cpus": 1}}
    with serving_on_ray({"tokens": str(tokens)}, deployment) as found:
        yield found


def calls_of(address: str, metadata: list[tuple[str, str]] | None) -> dict[str, list[object]]:
    """What each method answers, without ids and times."""
    with stub(address) as service:
        attribute = request(SENTENCE, [CROSS, DECODER_SELF], request_id="one")
        many = [pb.AttributeManyRequest(attribute=request(SENTENCE, [CROSS], request_id=f"{n}")) for n in range(3)]
        follow = [start(), event(source=text.Text(text=SENTENCE)), *[event(target=token_ids(9))] * 3]
        align = pb.AlignRequest(source=text.Text(text=SENTENCE))
        responses = list(service.AttributeMany(iter(many), metadata=metadata))
        events = [each for response in responses for each in [response, *response.batch.responses]]
        answers = service.Follow(iter(follow), metadata=metadata)
        return {
            "Attribute": steps_of(list(service.Attribute(attribute, metadata=metadata))),
            "AttributeMany": sorted(
                (each.request_id, step.index, step.token.id) for each in events for step in each.response.steps.steps
            ),
            "Follow": [step for answer in answers for step in answer.steps.steps],
            "Align": list(service.Align(align, metadata=metadata).links),
            "GetModel": [service.GetModel(pb.GetModelRequest(), metadata=metadata)],
        }


def test_all_methods_answer_as_a_server_does(cluster, bundled_server):
    expected = calls_of(bundled_server, None)
    assert all(expected.values())
    assert calls_of(cluster.address, METADATA) == expected
    with grpc.insecure_channel(cluster.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)  # without a token
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("metadata", [[], [("authorization", "Bearer another-token-of-16")]])
def test_a_call_needs_a_token(cluster, metadata):
    with stub(cluster.address) as service, pytest.raises(grpc.RpcError) as raised:
        service.GetModel(pb.GetModelRequest(), metadata=metadata)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_errors_have_their_details(cluster):
    """Of a stream that has begun, too: a text of AttributeMany fails alone, and a follow stream as a whole."""
    with stub(cluster.address) as service:
        call = service.Attribute(request(SENTENCE, model="other"), metadata=METADATA)
        with pytest.raises(grpc.RpcError):
            next(call)
        assert (call.code(), details_of(call)) == (grpc.StatusCode.NOT_FOUND, ("model", "UNKNOWN_MODEL"))
        events = [start(), event(source=text.Text(text=SENTENCE)), event(target=token_ids(10**6))]
        call = service.Follow(iter(events), metadata=METADATA)
        with pytest.raises(grpc.RpcError):
            list(call)
        assert (call.code(), details_of(call)[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "target.token_ids.ids[0]")


def test_a_cancelled_call_ends_in_the_replica(cluster):
    """The token allows one request at once: the next one can begin only when the cancelled one has ended."""
    with stub(cluster.address) as service:
        for _ in range(3):
            call = service.Attribute(long_request(), metadata=[("authorization", f"Bearer {SINGLE_TOKEN}")])
            next(call)
            call.cancel()
            wait_until(lambda: begins(service))


def begins(service) -> bool:
    """Whether a request of the client that may have one begins. It runs to its end."""
    try:
        list(service.Attribute(request(SENTENCE), metadata=[("authorization", f"Bearer {SINGLE_TOKEN}")]))
    except grpc.RpcError as error:
        return isinstance(error, grpc.Call) and details_of(error)[1] != "TOO_MANY_REQUESTS"
    return True


def long_request(**fields: object) -> pb.AttributeRequest:
    decoding = text.Decoding(ignore_eos=True, max_new_tokens=200)
    return request(SENTENCE, [CROSS, DECODER_SELF], decoding=decoding, **fields)


# ---- load -----------------------------------------------------------------------------------------------------------


class Load:
    """Clients that send one long request after another, each on a connection of its own."""

    def __init__(self, address: str, num_clients: int) -> None:
        self._address = address
        self._stop = threading.Event()
        self.num_steps = 0
        self._pool = ThreadPoolExecutor(num_clients)
        self._clients = [self._pool.submit(self._run) for _ in range(num_clients)]

    def _run(self) -> None:
        with stub(self._address) as service:
            while not self._stop.is_set():
                for response in service.Attribute(long_request(), metadata=METADATA):
                    self.num_steps += len(response.steps.steps)

    def steps_per_second(self, seconds: float) -> float:
        before, began = self.num_steps, time.monotonic()
        time.sleep(seconds)
        return (self.num_steps - before) / (time.monotonic() - began)

    def end(self) -> None:
        self._stop.set()
        for client in self._clients:
            client.result()
        self._pool.shutdown()


@pytest.fixture(scope="module")
def two_replicas(cluster: RayCluster) -> RayCluster:
    """The cluster with a second replica, which the load brings up: 12 requests at once, where 4 are asked for."""
    load = Load(cluster.address, 12)
    try:
        load.steps_per_second(5)
        print(f"\none replica: {load.steps_per_second(10):.0f} steps/s")
        began = time.monotonic()
        wait_until(lambda: len(cluster.replica_pids()) == 2)
        print(f"a second process at most {time.monotonic() - began + 15:.0f} s after the load")
        cluster.wait_until_up(2)
        print(f"HAProxy sends calls to it after {time.monotonic() - began + 15:.0f} s at most")
        load.end()
        load = Load(cluster.address, 12)  # its connections know both
        load.steps_per_second(5)
        print(f"two replicas: {load.steps_per_second(10):.0f} steps/s")
    finally:
        load.end()
    return cluster


def test_load_brings_a_second_replica(two_replicas):
    assert two_replicas.num_up() == 2


# ---- a reader that takes nothing ------------------------------------------------------------------------------------


def test_a_reader_that_takes_nothing_has_backpressure(cluster):
    """The replica makes the rest of 64 texts only when the reader reads on. Meanwhile others are served."""
    pid = cluster.replica_pids()[0]
    with stub(cluster.address) as stalled, stub(cluster.address) as service:
        messages = [pb.AttributeManyRequest(attribute=long_request(request_id=f"{n}")) for n in range(64)]
        began = processor_seconds(pid)
        call = stalled.AttributeMany(iter(messages), metadata=METADATA)
        next(call)
        wait_until(lambda: is_idle(pid))
        idle = processor_seconds(pid)
        assert list(service.Attribute(request(SENTENCE), metadata=METADATA))[-1].HasField("finished")
        num_bytes = sum(response.ByteSize() for response in call)
        rest = processor_seconds(pid) - idle
    print(f"\na reader that takes nothing of {num_bytes / 1e6:.0f} MB: the replica works for {idle - began:.1f} s, and")
    print(f"for {rest:.1f} s more when the reader reads on (processor time)")
    assert rest > idle - began


def processor_seconds(pid: int) -> float:
    """The processor time that a process has taken."""
    fields = read_process(pid, "stat").rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_idle(pid: int) -> bool:
    """Whether a process does nothing for a second, but what Ray does each second."""
    before = processor_seconds(pid)
    time.sleep(1)
    return processor_seconds(pid) - before < 0.05


# ---- the end of a replica -------------------------------------------------------------------------------------------


class Broken:
    """One long stream, as clients in other languages have it: how it ends."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.num_steps = 0
        self.code = ""

    def run(self) -> None:
        with stub(self._address) as service:
            call = service.Attribute(long_request(), metadata=METADATA)
            with suppress(grpc.RpcError):
                for response in call:
                    self.num_steps += len(response.steps.steps)
            self.code = call.code().name


def test_a_replica_that_is_killed(two_replicas):
    """The other one loses nothing, new calls succeed, and broken streams go on with the same rows."""
    capture = Capture(kinds=("cross", "decoder_self"))
    with Client(two_replicas.address, token=TOKEN) as client:
        expected = client.attribute(SENTENCE, capture=capture, decoding=LONG).result()
    raw = [Broken(two_replicas.address) for _ in range(12)]

    def resumed() -> tuple[bool, bool]:
        with Client(two_replicas.address, token=TOKEN) as client:
            stream = client.attribute(SENTENCE, capture=capture, decoding=LONG, resume=5, timeout=120)
            result = stream.result()
            np.testing.assert_allclose(result.cross, expected.cross, rtol=0, atol=1e-6)
            np.testing.assert_allclose(result.decoder_self, expected.decoder_self, rtol=0, atol=1e-6)
            return result.steps == expected.steps, result.text == expected.text

    with ThreadPoolExecutor(24) as pool, stub(two_replicas.address) as service:
        runs = [pool.submit(each.run) for each in raw]
        results = [pool.submit(resumed) for _ in range(12)]
        wait_until(lambda: all(each.num_steps for each in raw))
        os.kill(two_replicas.replica_pids()[0], signal.SIGKILL)
        times = []
        for _ in range(100):
            began = time.monotonic()
            service.GetModel(pb.GetModelRequest(), metadata=METADATA)
            times.append(time.monotonic() - began)
        assert all(result.result() == (True, True) for result in results)
        for run in runs:
            run.result()
    codes = Counter(each.code for each in raw)
    print(f"\n12 streams that do not resume: {dict(codes)}; 12 of 12 that resume are whole")
    print(f"100 of 100 new calls: {np.median(times):.3f} s in the median, {max(times):.3f} s at most")
    assert set(codes) <= {"OK", "UNAVAILABLE", "CANCELLED"}
    assert codes["OK"] < 12
    assert all(each.num_steps == 200 for each in raw if each.code == "OK")
