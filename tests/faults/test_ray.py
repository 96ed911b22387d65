"""Replicas on Ray Serve, behind Ray's HAProxy; `-s` prints figures."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

import grpc
import pytest
from follow_driver import details_of, event, start, token_ids
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import CROSS, DECODER_SELF, request, steps_of, stub, wait_until
from ray_cluster import RayCluster, serving_on_ray
from sidelight.client import Client, Decoding
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(420),  # the cluster takes a minute or more to start
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


@pytest.fixture(scope="module")
def client(cluster: RayCluster) -> Iterator[Client]:
    with Client(cluster.address, token=TOKEN) as made:
        yield made


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
