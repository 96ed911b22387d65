"""Features of a recording: a wrong source is refused before any work is done for it, and the field is named."""

from __future__ import annotations

import numpy as np
import pytest
from answers import ask, ask_many
from harness import serving, stub
from sidelight.server.api.validation import validate_request
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.errors import RequestError
from sidelight.server.models.loader import load
from sidelight.v1 import attention_pb2, text_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb
from speech_zoo import NUM_BINS, NUM_FRAMES, build_whisper, recording


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return load(build_whisper(tmp_path_factory.mktemp("zoo")), packed=False)


def message(features: np.ndarray, **fields: object) -> service_pb.AttributeRequest:
    values = {"shape": features.shape, "values": features.astype("<f4").tobytes()} | fields
    return service_pb.AttributeRequest(source=text_pb2.Text(features=text_pb2.Features(**values)))


def refusal(request: service_pb.AttributeRequest, loaded) -> RequestError:
    with pytest.raises(RequestError) as raised:
        validate_request(request, loaded, "r")
    return raised.value


def test_features_are_the_source(whisper):
    request = validate_request(message(recording(3)), whisper, "r")
    np.testing.assert_array_equal(request.features.values, recording(3))
    assert (request.source.tokens, request.source_length) == ((), NUM_FRAMES // 2)


@pytest.mark.parametrize(
    "shape",
    [(), (NUM_BINS,), (NUM_FRAMES, NUM_BINS), (NUM_BINS, NUM_FRAMES - 1), (NUM_BINS, NUM_FRAMES, 1), (2**31, 2)],
)
def test_another_shape_is_refused(whisper, shape):
    error = refusal(message(recording(0), shape=shape), whisper)
    assert (error.field, error.reason) == ("source.features.shape", "WRONG_SHAPE")
    assert f"[{NUM_BINS}, {NUM_FRAMES}]" in str(error)


@pytest.mark.parametrize("count", [-4, -1, 4])
def test_another_number_of_bytes_is_refused(whisper, count):
    values = recording(0).tobytes()
    values = values[:count] if count < 0 else values + bytes(count)
    error = refusal(message(recording(0), values=values), whisper)
    assert (error.field, error.reason) == ("source.features.values", "WRONG_SIZE")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(whisper, number):
    features = recording(0)
    features[1, 2] = number
    error = refusal(message(features), whisper)
    assert (error.field, error.reason) == ("source.features.values", "NOT_FINITE")
    assert f"number {NUM_FRAMES + 2} " in str(error)


@pytest.mark.parametrize("kind", ["text", "token_ids", "chat"])
def test_a_speech_model_reads_no_texts(whisper, kind):
    sources = {
        "text": text_pb2.Text(text="Hello"),
        "token_ids": text_pb2.Text(token_ids=text_pb2.TokenIds(ids=[3])),
        "chat": text_pb2.Text(chat=text_pb2.Chat(messages=[text_pb2.ChatMessage(role="user", content="Hello")])),
    }
    error = refusal(service_pb.AttributeRequest(source=sources[kind]), whisper)
    assert (error.field, error.reason) == (f"source.{kind}", "WRONG_SOURCE")


def test_a_text_model_reads_no_features(bundled):
    error = refusal(message(recording(0)), bundled)
    assert (error.field, error.reason) == ("source.features", "WRONG_SOURCE")


@pytest.mark.parametrize("field", ["prefix", "given"])
def test_features_are_no_target(whisper, field):
    request = message(recording(0))
    getattr(request, field).CopyFrom(request.source)
    assert refusal(request, whisper).field == field


def test_the_bytes_of_recordings_that_wait_are_bounded(whisper):
    """The recordings of a request and of its contrast count; a request that has ended gives its bytes back."""
    limits = EngineConfig(max_running=2, max_feature_bytes=4 * recording(0).nbytes)
    requests = []
    for number in range(8):
        request = message(recording(number))
        request.decoding.max_new_tokens, request.decoding.ignore_eos = 40, True
        request.contrast.source.CopyFrom(message(recording(100 + number)).source)
        request.scores.append(attention_pb2.SCORE_KL_DIVERGENCE)
        requests.append(request)
    with serving(whisper, limits=limits) as address, stub(address) as service:
        for _ in range(2):
            answers = ask_many(service, {str(number): request for number, request in enumerate(requests)})
            errors = {answer.error for answer in answers.values() if answer.code}
            assert errors == {(8, "QUEUE_FULL", "source.features")}
            assert all(answer.code or len(answer.steps) == 40 for answer in answers.values())
            assert sum(not answer.code for answer in answers.values()) >= 2
        assert not ask(service, requests[0]).code


def test_a_recording_beyond_the_bound_is_refused_before_it_is_read(whisper):
    request = message(np.full_like(recording(0), np.nan))
    limits = EngineConfig(max_feature_bytes=recording(0).nbytes - 1)
    with serving(whisper, limits=limits) as address, stub(address) as service:
        assert ask(service, request).error == (8, "QUEUE_FULL", "source.features")
        assert ask(service, service_pb.AttributeRequest(source=text_pb2.Text(text="A dog."))).code == 3
