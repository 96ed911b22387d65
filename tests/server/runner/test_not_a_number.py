"""NaN and infinity never leave as OK: rows, scores, encoder self-attention; decoded and given; in every encoding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import torch
from combinations import pairwise
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from harness import request, serving, steps_of, stub
from mixed_requests import slots_run
from model_zoo import build_model
from safetensors.torch import load_file, save_file
from sidelight.server.capture import AttentionArrays
from sidelight.server.models.loader import LoadedModel, bundled_model, load
from sidelight.server.sampling import step_scores
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

ALL_SCORES = [attention.SCORE_PROBABILITY, attention.SCORE_LOGIT, attention.SCORE_ENTROPY, attention.SCORE_PERPLEXITY]
TARGETS = {
    "greedy": {"decoding": text.Decoding(max_new_tokens=3)},
    "sampling": {"decoding": text.Decoding(max_new_tokens=3, sampling=text.Sampling(seed=1))},
    "given": {"given": text.Text(text="Ich will nicht.")},
}
CAPTURES = {
    "nothing": attention.Capture(none=True),
    "float32": attention.Capture(encoding=attention.ENCODING_FLOAT32),
    "float16": attention.Capture(encoding=attention.ENCODING_FLOAT16),
    "uint8": attention.Capture(encoding=attention.ENCODING_UINT8),
    "top positions": attention.Capture(encoding=attention.ENCODING_UINT8, top_k=2),
    "reading": attention.Capture(row=attention.ROW_READING),
    "reduced": attention.Capture(over_heads=attention.REDUCTION_MAX, over_layers=attention.REDUCTION_PROD),
}


@contextmanager
def filled(parameter: torch.Tensor, value: float) -> Iterator[None]:
    """Sets a number of a tensor, and then what it was."""
    flat = parameter.data.view(-1)
    before = flat[0].item()
    flat[0] = value
    try:
        yield
    finally:
        flat[0] = before


@pytest.fixture(scope="module", params=["bundled", "packed", "fsmt", "qwen3"])
def served(request, tmp_path_factory) -> Iterator[tuple[LoadedModel, str]]:
    """A model that runs by torch's own layers, by programs, by its matrices, and one without an encoder."""
    name = request.param
    is_bundled = name in ("bundled", "packed")
    path = bundled_model() if is_bundled else build_model(name, tmp_path_factory.mktemp("zoo"))
    loaded = load(path, packed=name == "packed")
    with serving(loaded) as address:
        yield loaded, address


def norms(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Weights that every way to run a model reads where they are: of the first layers and of the last."""
    found = [
        parameter
        for name, parameter in loaded.model.named_parameters()
        if "norm" in name and "bias" not in name and "self_attn." not in name
    ]
    return {"first": found[0], "last": found[-1]}


def refused(address: str, message: pb.AttributeRequest) -> tuple[str, list[pb.AttributeResponse]]:
    """The reason of a refusal, or "OK"; and what came before it."""
    responses: list[pb.AttributeResponse] = []
    with stub(address) as service:
        call = service.Attribute(message, timeout=60)
        with contextlib.suppress(grpc.RpcError):
            responses.extend(call)
        if call.code() == grpc.StatusCode.OK:
            return "OK", responses
        status = rpc_status.from_call(call)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return info.reason, responses


def all_kinds(loaded: LoadedModel, capture: attention.Capture) -> attention.Capture:
    """The capture with every kind that the model has."""
    wanted = attention.Capture()
    wanted.CopyFrom(capture)
    if not capture.none:
        known = {"cross": 1, "decoder_self": 2, "encoder_self": 3}
        wanted.kinds.extend(known[kind] for kind in loaded.kinds)
    return wanted


@pytest.mark.covering(1)
@pytest.mark.parametrize(("capture", "target", "where"), pairwise(list(CAPTURES), list(TARGETS), ["first", "last"]))
def test_what_is_no_number_ends_with_a_status(served, capture, target, where):
    loaded, address = served
    for value in (float("inf"), float("nan")):
        with filled(norms(loaded)[where], value):
            message = request("I don't want to.", scores=ALL_SCORES, **TARGETS[target])
            message.capture.CopyFrom(all_kinds(loaded, CAPTURES[capture]))
            reason, responses = refused(address, message)
        assert reason == "NOT_A_NUMBER"
        assert not steps_of(responses)
        for response in responses:
            if response.HasField("encoder_self"):
                sent = response.encoder_self.attention
                scales = np.frombuffer(sent.scales, "<f4")
                kind = {attention.ENCODING_FLOAT32: "<f4", attention.ENCODING_FLOAT16: "<f2"}.get(sent.encoding, "u1")
                assert np.isfinite(np.frombuffer(sent.values, kind)).all()
                assert np.isfinite(scales).all()
    message = request("I don't want to.", **TARGETS[target])
    assert refused(address, message)[0] == "OK"


@pytest.mark.parametrize("target", TARGETS)
def test_without_scores_or_rows_too(served, target):
    loaded, address = served
    with filled(norms(loaded)["last"], float("nan")):
        message = request("I don't want to.", **TARGETS[target])
        message.capture.none = True
        # With a given target nothing is wanted of the model then, and in a batch nothing is computed.
        is_computed = target != "given" or loaded.backend is None
        assert refused(address, message)[0] == ("NOT_A_NUMBER" if is_computed else "OK")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["marian", "t5", "gpt2"])
def test_weights_that_are_numbers_and_too_large(tmp_path, name, target):
    path = build_model(name, tmp_path)
    weights = load_file(path / "model.safetensors")
    key = next(
        key for key, weight in weights.items() if weight.dim() == 2 and key.endswith("weight") and "embed" not in key
    )
    weights[key] = weights[key].clone()
    weights[key].view(-1)[:] = 3e38
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    loaded = load(path)
    with serving(loaded) as address:
        message = request("The lazy dog.", scores=ALL_SCORES, **TARGETS[target])
        message.capture.CopyFrom(all_kinds(loaded, attention.Capture()))
        assert refused(address, message)[0] == "NOT_A_NUMBER"


def test_a_fault_in_the_rows_of_one_leaves_its_neighbours(bundled):
    """Rows of several requests are looked at together."""
    from sidelight.server.api.validation import validate_request

    kinds = [attention.ATTENTION_KIND_CROSS]
    with torch.inference_mode():
        run = slots_run(bundled, 3)
        sequences = run.add_all([validate_request(request(f"A dog {n}.", kinds), bundled, str(n)) for n in range(3)])
        for layer in run.runner._cache.source_layers:
            layer.all_keys[sequences[1].slot] = float("nan")
        run.step()
    assert list(run.faults) == [sequences[1]]
    assert "finite" in str(run.faults[sequences[1]])


def weighted(weight: float, count: int, **fields) -> pb.AttributeRequest:
    message = request("I don't want to.", [attention.ATTENTION_KIND_CROSS])
    message.capture.MergeFrom(attention.Capture(**fields))
    for head in range(count):
        message.capture.heads.list.heads.append(attention.Head(layer=0, head=head, weight=weight))
    return message


@pytest.mark.parametrize(
    ("weight", "count", "fields"),
    [
        (3e38, 2, {"over_heads": attention.REDUCTION_SUM}),
        (3e38, 2, {"over_heads": attention.REDUCTION_MEAN}),
        (1e6, 1, {"over_heads": attention.REDUCTION_SUM, "encoding": attention.ENCODING_FLOAT16}),
        (20_000, 4, {"over_heads": attention.REDUCTION_SUM, "encoding": attention.ENCODING_FLOAT16}),
        (1e-45, 2, {"over_heads": attention.REDUCTION_MEAN}),
    ],
)
def test_weights_of_heads_that_numbers_cannot_hold_are_refused(bundled_server, weight, count, fields):
    with stub(bundled_server) as service, pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(weighted(weight, count, **fields), timeout=60))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details().startswith("capture.heads.list.heads")


@pytest.mark.parametrize(
    ("weight", "count", "fields"),
    [
        (3e38, 1, {"over_heads": attention.REDUCTION_SUM}),
        (1e38, 2, {"over_heads": attention.REDUCTION_MEAN}),
        (1e6, 2, {"over_heads": attention.REDUCTION_MEAN, "encoding": attention.ENCODING_FLOAT16}),
        (1e6, 2, {"over_heads": attention.REDUCTION_SUM, "encoding": attention.ENCODING_UINT8}),
        (1e38, 2, {"over_heads": attention.REDUCTION_SUM, "encoding": attention.ENCODING_UINT8}),
        (30_000, 2, {"over_heads": attention.REDUCTION_SUM, "encoding": attention.ENCODING_FLOAT16}),
        (1e-37, 2, {"over_heads": attention.REDUCTION_MEAN}),
    ],
)
def test_weights_of_heads_that_numbers_can_hold_are_taken(bundled_server, weight, count, fields):
    with stub(bundled_server) as service:
        for target in TARGETS.values():
            message = weighted(weight, count, **fields)
            message.MergeFrom(pb.AttributeRequest(**target))
            rows = [step.cross for step in steps_of(list(service.Attribute(message, timeout=60)))]
            for row in rows:
                kind = {attention.ENCODING_FLOAT16: "<f2", attention.ENCODING_UINT8: "u1"}.get(row.encoding, "<f4")
                assert np.isfinite(np.frombuffer(row.values, kind)).all()
                assert np.isfinite(np.frombuffer(row.scales, "<f4")).all()
                assert np.frombuffer(row.values, kind).any()


@pytest.mark.parametrize("gap", [10.0, 88.0, 89.0, 200.0, 1e30, 3e38])
def test_scores_of_what_is_most_unlikely_are_numbers(gap):
    """A given target may be as unlikely as it likes."""
    names = ["probability", "logit", "entropy", "cross_entropy", "perplexity", "top_p_size"]
    scores = step_scores(names, torch.tensor([[gap, 0.0, -1.0]]), torch.tensor([2]), 0.9)
    assert scores.isfinite().all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_finite_is_what_has_no_infinity_and_no_nan(dtype, bad):
    good = np.full((3, 50), np.finfo(dtype).max, dtype)  # whose sum is infinite
    assert AttentionArrays(good).is_finite()
    assert AttentionArrays(np.zeros((0, 3), dtype)).is_finite()
    assert AttentionArrays(np.ones(3, np.uint8), np.ones(2, np.float32), np.ones(3, np.int32)).is_finite()
    assert not AttentionArrays(np.ones(3, np.uint8), np.array([1, bad], np.float32)).is_finite()
    good[2, 7] = bad
    assert not AttentionArrays(good).is_finite()
    assert not AttentionArrays(np.array([np.inf, -np.inf], dtype)).is_finite()
