"""Both clients against a real server."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import sidelight.client as package
from sidelight.client import (
    AsyncClient,
    Capture,
    Client,
    DeadlineExceededError,
    Decoding,
    Greedy,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    Sampling,
    SidelightError,
    UnavailableError,
    UnimplementedError,
)
from sidelight.client.errors import from_rpc_error

SENTENCE = "I don't want to be your friend."
EVERYTHING = Capture(kinds=("cross", "decoder_self", "encoder_self"))


@pytest.fixture(scope="module")
def client(bundled_server):
    with Client(bundled_server) as client:
        yield client


def test_steps_come_one_by_one_and_make_the_result(client):
    stream = client.attribute(SENTENCE, capture=EVERYTHING, scores=["probability", "entropy"], timeout=60)
    steps = list(stream)
    result = stream.result()
    assert result.text == "Ich will nicht dein Freund sein."
    assert "".join(step.text for step in steps) == result.text
    assert [step.token for step in steps] == list(result.steps)
    source, count = len(result.source), len(steps)
    assert result.cross.shape == (source, count, 3, 4)
    assert result.encoder_self.shape == (source, source, 3, 4)
    assert result.decoder_self.shape == (1 + count, count, 3, 4)
    for index, step in enumerate(steps):
        np.testing.assert_array_equal(result.cross[:, index], step.cross)
        np.testing.assert_array_equal(result.decoder_self[: index + 1, index], step.decoder_self)
        assert np.isnan(result.decoder_self[index + 1 :, index]).all()
        assert step.scores == {name: result.scores[name][index] for name in ("probability", "entropy")}
    assert result.usage.target_tokens == count
    assert result.stop_reason == "end_token"


def test_the_header_can_be_read_first_and_no_step_is_lost(client):
    with client.attribute(SENTENCE, timeout=60) as stream:
        assert [token.piece for token in stream.started.source][-1] == "</s>"
        assert stream.started.layouts["cross"].shape == (3, 4)
        assert [step.index for step in stream] == list(range(8))


def test_result_without_iterating(client):
    assert client.attribute(SENTENCE, timeout=60).result().text == "Ich will nicht dein Freund sein."


async def test_the_asyncio_client_gives_the_same_results(client, bundled_server):
    options = {"capture": EVERYTHING, "scores": ["logit"], "timeout": 60}
    expected = client.attribute(SENTENCE, **options).result()
    async with AsyncClient(bundled_server) as async_client:
        async with async_client.attribute(SENTENCE, **options) as stream:
            assert (await stream.started()).source == expected.source
            steps = [step async for step in stream]
            result = await stream.result()
        assert await async_client.list_models() == client.list_models()
        assert await async_client.get_model() == client.get_model()
        with pytest.raises(InvalidArgumentError) as error_info:
            await async_client.attribute(" ").result()
        assert error_info.value.field == "source.text"
        with pytest.raises(NotFoundError):
            await async_client.get_model("nothing")
    assert [step.token for step in steps] == list(expected.steps) == list(result.steps)
    np.testing.assert_array_equal(result.cross, expected.cross)
    np.testing.assert_array_equal(result.decoder_self, expected.decoder_self)
    np.testing.assert_array_equal(result.encoder_self, expected.encoder_self)
    np.testing.assert_array_equal(result.scores["logit"], expected.scores["logit"])


def test_ids_targets_prefixes_and_ways_of_decoding(client):
    result = client.attribute(SENTENCE, timeout=60).result()
    from_ids = client.attribute([token.id for token in result.source], timeout=60).result()
    assert from_ids.steps == result.steps
    given = client.attribute(SENTENCE, target=result.text, timeout=60).result()
    assert given.stop_reason == "given"
    np.testing.assert_allclose(given.cross, result.cross, atol=1e-5)
    continued = client.attribute(SENTENCE, prefix="Ich will", timeout=60).result()
    assert continued.text == result.text
    assert len(continued.steps) == len(result.steps) - 2
    short = client.attribute(SENTENCE, decoding=Decoding(Greedy(), max_new_tokens=3), timeout=60).result()
    assert short.steps[:2] == result.steps[:2]
    sampling = Decoding(Sampling(temperature=3.0, top_k=0, seed=5))
    first, second = (client.attribute(SENTENCE, decoding=sampling, timeout=60).result() for _ in range(2))
    assert first.steps == second.steps != result.steps
    assert first.usage.seed == 5


def test_a_stream_left_early_is_cancelled(client):
    decoding = Decoding(Greedy(), max_new_tokens=200, ignore_eos=True)
    with client.attribute(SENTENCE, decoding=decoding, timeout=60) as stream:
        next(iter(stream))
    with pytest.raises(SidelightError) as error_info:
        stream.result()
    assert error_info.value.status == grpc.StatusCode.CANCELLED


def test_models_are_described(client):
    (model,) = client.list_models()
    assert model == client.get_model() == client.get_model("tatoeba-en-de")
    assert model.is_encoder_decoder
    assert model.attentions["cross"].layers == 3
    assert model.attentions["cross"].heads == 4
    assert model.max_source_tokens == 256
    assert model.default


async def test_health_is_that_of_a_service_or_of_the_server(client, bundled_server):
    assert client.check_health()
    async with AsyncClient(bundled_server) as async_client:
        assert await async_client.check_health("sidelight.v1.AttributionService", timeout=60)
        with pytest.raises(NotFoundError):
            await async_client.check_health("nobody")
    with pytest.raises(NotFoundError):
        client.check_health("nobody")


def test_errors_have_the_servers_details(client):
    with pytest.raises(InvalidArgumentError) as error_info:
        client.attribute(SENTENCE, capture=Capture(layers=[7]), request_id="r-1").result()
    error = error_info.value
    assert error.field == "capture.heads.layers.layers[0]"
    assert list(error.fields) == [error.field]
    assert error.reason == "LAYER_OUT_OF_RANGE"
    assert error.request_id == "r-1"
    assert error.status == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(DeadlineExceededError):
        client.attribute(SENTENCE, timeout=1e-6).result()
    with Client("127.0.0.1:1") as client, pytest.raises(UnavailableError):
        client.list_models(timeout=5)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"timeout": -1}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"target": "Ja", "decoding": Decoding()}, "decoding"),
        ({"capture": Capture(kinds=("sideways",))}, "capture.kinds"),
        ({"capture": Capture(over_heads="median")}, "capture.over_heads"),
        ({"capture": Capture(layers=[0], heads=[(0, 0)])}, "capture.heads"),
        ({"scores": ["luck"]}, "scores"),
    ],
)
def test_invalid_options_are_refused_before_sending(client, options, field):
    with pytest.raises(InvalidArgumentError) as error_info:
        client.attribute(SENTENCE, **options)
    assert error_info.value.field == field


def test_a_retry_delay_is_passed_on(bundled):
    from harness import serving
    from sidelight.server.engine.engine import EngineConfig

    with serving(bundled, limits=EngineConfig(max_running=1, max_waiting=0)) as address, Client(address) as client:
        with pytest.raises(ResourceExhaustedError) as error_info:
            client.attribute(SENTENCE, timeout=60).result()
        assert error_info.value.retry_delay == 1.0


def test_an_error_without_details_becomes_an_exception_of_this_package():
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNIMPLEMENTED, grpc.aio.Metadata(), grpc.aio.Metadata(), "no")
    exception = from_rpc_error(error)
    assert isinstance(exception, UnimplementedError)
    assert str(exception) == "no"


def test_all_public_names_are_listed():
    module = importlib.import_module("sidelight.client")
    assert sorted(package.__all__) == package.__all__
    assert all(hasattr(module, name) for name in package.__all__)
    folder = Path(module.__file__).parent
    submodules = {path.stem for path in [*folder.glob("*.py"), *(path.parent for path in folder.glob("*/*.py"))]}
    public = {name for name in vars(module) if not name.startswith("_")} - submodules
    assert public == set(package.__all__)


def test_the_client_needs_no_torch():
    code = (
        "import sys, sidelight.client.cli.main; print(sorted({'torch', 'transformers', 'triton'} & set(sys.modules)))"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert completed.stdout.strip() == "[]"


def test_the_command_line_starts_before_slow_imports():
    """Otherwise Ctrl-C in the first half second would print a traceback."""
    code = (
        "import sys, sidelight.client.cli.main; print(sorted({'numpy', 'grpc', 'rich', 'google'} & set(sys.modules)))"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert completed.stdout.strip() == "[]"


def test_the_sdk_imports_neither_rich_nor_torch():
    code = (
        "import sys; from sidelight.client import AsyncClient, Capture, Client, Decoding, SidelightError, Token;"
        "print(sorted({'rich', 'torch', 'transformers'} & set(sys.modules)))"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert completed.stdout.strip() == "[]"


def test_everything_public_can_be_imported_in_any_order():
    code = (
        "import sidelight.client as c; assert set(c.__all__) <= set(dir(c)); c.errors.describe_error; c.save; c.Client;"
        "from sidelight.client import *; from sidelight.client import converters;"
        "from sidelight.client.views import heatmap; Capture(), Token;"
        "assert not hasattr(c, 'Clinet')"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
