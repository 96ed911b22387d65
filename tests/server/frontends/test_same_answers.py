"""What clients get from front ends is what they get from one process: numbers, texts, statuses."""

from __future__ import annotations

import concurrent.futures
import urllib.request
from dataclasses import replace

import grpc
import numpy as np
import pytest
from answers import ask, assert_equal
from follow_driver import FollowDriver, align_att, array, details_of
from front_ends import serving_by_front_ends
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import CROSS, request, stub, wait_until
from inference_stubs import infer_request, inference_stub, tensors_of
from mixed_requests import message
from model_zoo import FAMILIES
from sidelight.server.operations import CallLimits, MetricsServer, ModelLimits, Security
from sidelight.server.operations.tokens import TokenFile
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2 as text

# Connections of one client: enough that both front ends get some.
NUM_CONNECTIONS = 12


@pytest.fixture(scope="module")
def metrics():
    return MetricsServer("127.0.0.1:0")


@pytest.fixture(scope="module")
def address(bundled, metrics):
    with serving_by_front_ends(bundled, metrics=metrics) as address:
        yield address


@pytest.fixture(scope="module")
def front_ends(address):
    """Stubs with a connection each."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    channels = [grpc.insecure_channel(address, options=options) for _ in range(NUM_CONNECTIONS)]
    yield [services.AttributionServiceStub(channel) for channel in channels]
    for channel in channels:
        channel.close()


@pytest.fixture
def one_process(bundled_server):
    with stub(bundled_server) as service:
        yield service


def answer_of(service, message: pb.AttributeRequest) -> list[bytes]:
    """The outputs of a request, one by one, without times."""
    outputs = []
    for response in service.Attribute(message, timeout=120):
        if response.HasField("finished"):
            for name in ("queue_time", "time_to_first_step", "total_time"):
                response.finished.usage.ClearField(name)
        parts = [*response.steps.steps, *response.units.units] or [response]
        outputs += [part.SerializeToString(deterministic=True) for part in parts]
    return outputs


def test_mixed_requests_get_the_same_rows_at_the_same_time(bundled, one_process, front_ends):
    messages = [message(bundled, FAMILIES["marian"], number) for number in range(14)]
    for number, each in enumerate(messages):
        each.request_id = f"request {number}"
    messages.append(request("A dog.", [CROSS], request_id="given", given=text.Text(text="Ein Hund.")))
    units = request("A dog runs.", [CROSS], request_id="units")
    units.capture.grouping = attention.GROUPING_WORD
    messages.append(units)
    linked = request("A dog runs.", request_id="linked", link_options=pb.LinkOptions(), signals=True)
    messages.append(linked)
    expected = [ask(one_process, each) for each in messages]
    with concurrent.futures.ThreadPoolExecutor(len(messages)) as threads:
        answers = list(threads.map(ask, front_ends * 2, messages))
    for ours, theirs in zip(answers, expected, strict=True):
        assert ours.error == theirs.error == (0, "", "")
        assert_equal(ours.events, theirs.events)


def test_a_long_encoder_matrix_comes_through_shared_memory(one_process, front_ends):
    message = request("A dog runs. " * 20, [attention.ATTENTION_KIND_ENCODER_SELF, CROSS], request_id="long")
    message.decoding.max_new_tokens = 3
    assert answer_of(front_ends[0], message) == answer_of(one_process, message)


def test_many_texts_and_pairs_on_one_stream(one_process, front_ends):
    def results(service):
        events = [pb.AttributeManyRequest(attribute=request(f"Dog {i}.", request_id=f"t{i}")) for i in range(20)]
        for i in range(4):
            pair = pb.AlignRequest(source=text.Text(text=f"<b>Dog</b> {i}."), request_id=f"a{i}")
            pair.markup.format = pb.MARKUP_FORMAT_HTML
            events.append(pb.AttributeManyRequest(align=pair))
        found = {}
        for response in service.AttributeMany(iter(events), timeout=120):
            for each in [response, *response.batch.responses]:
                if each.response.HasField("finished"):
                    found[each.request_id] = each.response.finished.text
                elif each.HasField("alignment"):
                    found[each.request_id] = each.alignment.marked_target_text
        return found

    expected = results(one_process)
    assert len(expected) == 24
    for service in front_ends[:3]:
        assert results(service) == expected


def test_a_pair_is_linked_by_the_encoders_states(one_process, front_ends):
    message = pb.AlignRequest(source=text.Text(text="A dog runs."), target=text.Text(text="Ein Hund läuft."))
    message.link_options.features.append(pb.LINK_FEATURE_ENCODER_STATES)
    message.request_id = "pair"
    answers = [service.Align(message, timeout=60) for service in (one_process, *front_ends[:2])]
    for each in answers:
        each.ClearField("usage")
    assert answers[0].links
    assert answers[1:] == [answers[0]] * 2


@pytest.mark.parametrize("by_policy", [False, True])
def test_a_source_grows(one_process, front_ends, by_policy):
    def steps(service):
        options = {"policy": align_att(tokens=2), "decoding": text.Decoding()} if by_policy else {}
        driver = FollowDriver(service, **options)
        driver.add_source("My grandmother is still")
        if by_policy:
            driver.wait_for_more()
            driver.add_source(" vigorous at 82 years old.")
            driver.send(source_done=pb.SourceDone())
            driver.finish()
        else:
            driver.add_ids(9, 20, 31)
            driver.take_back(1)
            driver.add_source(" vigorous at 82 years old.")
            driver.add_ids(*range(100, 140))
            driver.finish()
        return [(step.token.id, array(step.cross).tolist()) for step in driver.steps]

    expected = steps(one_process)
    assert expected
    assert steps(front_ends[0]) == expected


def test_errors_and_models_are_the_same(one_process, front_ends):
    def error(service, message):
        with pytest.raises(grpc.RpcError) as raised:
            list(service.Attribute(message, timeout=60))
        return raised.value.code(), raised.value.details(), details_of(raised.value)

    too_wide = request("A dog.", decoding=text.Decoding(beam=text.Beam(width=33)))
    for wrong in (pb.AttributeRequest(), request("A dog.", model="other"), too_wide):
        assert error(front_ends[0], wrong) == error(one_process, wrong)
    assert front_ends[1].GetModel(pb.GetModelRequest()) == one_process.GetModel(pb.GetModelRequest())


def test_a_request_is_cancelled_over_any_connection(front_ends):
    message = request("A dog runs. " * 10, [CROSS], request_id="long")
    message.decoding.ignore_eos = True
    message.decoding.max_new_tokens = 250
    for service in front_ends:
        call = front_ends[0].Attribute(message, timeout=60)
        next(call)
        found = service.CancelAttribution(pb.CancelAttributionRequest(request_id="long"), timeout=30)
        assert found.cancelled == 1
        with pytest.raises(grpc.RpcError) as raised:
            list(call)
        assert raised.value.code() == grpc.StatusCode.CANCELLED  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(grpc.RpcError) as raised:
        front_ends[1].CancelAttribution(pb.CancelAttributionRequest(request_id="long"), timeout=30)
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND  # pyright: ignore[reportAttributeAccessIssue]


def test_metrics_are_the_sums(front_ends, metrics):
    def count() -> float:
        with urllib.request.urlopen(metrics.url, timeout=10) as answer:
            lines = answer.read().decode().split("\n")
        begin = 'grpc_server_handled_total{grpc_code="OK",grpc_method="ListModels"'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(begin))

    before = count()
    for service in front_ends:
        service.ListModels(pb.ListModelsRequest(), timeout=30)
    wait_until(lambda: count() == before + len(front_ends))


def test_all_front_ends_serve(address):
    for _ in range(6):
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            checked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert checked.status == health_pb2.HealthCheckResponse.SERVING


def beginning_of(call) -> str:
    """Whether a stream has begun, or else the reason of its error."""
    try:
        next(call)
    except grpc.RpcError as error:
        return details_of(error)[1]  # pyright: ignore[reportArgumentType]
    return "begun"


def test_a_clients_limit_is_that_of_all_front_ends(bundled, tmp_path):
    path = tmp_path / "tokens.toml"
    path.write_text('[someone]\ntokens = ["a-token-of-thirty-two-characters"]\nmax_requests = 3\n')
    metadata = [("authorization", "Bearer a-token-of-thirty-two-characters")]
    message = request("A dog runs. " * 10, [CROSS])
    message.decoding.ignore_eos = True
    message.decoding.max_new_tokens = 250
    with serving_by_front_ends(bundled, security=Security(tokens=TokenFile(str(path)))) as address:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.insecure_channel(address, options=options) for _ in range(8)]
        calls = [services.AttributionServiceStub(each).Attribute(message, metadata=metadata) for each in channels]
        codes = map(beginning_of, calls)
        assert sorted(codes) == ["TOO_MANY_REQUESTS"] * 5 + ["begun"] * 3
        for call in calls:
            call.cancel()
        service = services.AttributionServiceStub(channels[0])

        def is_accepted() -> bool:
            try:
                return bool(list(service.Attribute(request("A dog."), metadata=metadata, timeout=60)))
            except grpc.RpcError:
                return False

        wait_until(is_accepted)  # what was cancelled counts no more
        for channel in channels:
            channel.close()


def test_the_open_inference_protocol(bundled_server, address):
    message = infer_request("A dog runs.", "A dog.", outputs=["text_output", "cross_attention", "links"])
    answers = []
    for each in (bundled_server, address):
        with inference_stub(each) as service:
            answers.append(tensors_of(service.ModelInfer(message, timeout=60)))
    expected, found = answers
    assert set(found) == set(expected) == {"text_output", "cross_attention", "links"}
    for name, tensor in expected.items():
        assert np.array_equal(found[name], tensor), name


def test_limits_are_kept(bundled):
    """Those of calls, which the front ends keep by themselves, and those of the model."""
    model = replace(bundled, limits=ModelLimits(max_new_tokens=5))
    with (
        serving_by_front_ends(model, call_limits=CallLimits(max_message_bytes=2000)) as address,
        stub(address) as service,
    ):
        limits = service.GetModel(pb.GetModelRequest(), timeout=60).model.limits
        assert limits.max_request_bytes == 2000
        with pytest.raises(grpc.RpcError) as raised:
            list(service.Attribute(request("x" * 2000), timeout=60))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        responses = list(service.Attribute(request("A dog.", decoding=text.Decoding(ignore_eos=True)), timeout=60))
        assert responses[-1].finished.usage.target_tokens == 5
