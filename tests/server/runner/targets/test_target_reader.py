"""Given targets that are read together get what each gets alone: in every family, with captures of all kinds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from combinations import slow_except
from mixed_requests import IN_SLOTS, assert_same, message, outputs_alone
from model_zoo import FAMILIES
from sidelight.server.api.validation import validate_request
from sidelight.server.capture import PassRecorder
from sidelight.server.engine.outputs import target_outputs
from sidelight.server.errors import RequestError
from sidelight.server.models import LoadedModel
from sidelight.server.request import Output, Request
from sidelight.server.runner import TargetPass
from sidelight.server.runner.targets import TargetReader, target_reader
from sidelight.v1 import attention_pb2 as attention

TEXT = "Der schnelle braune Fuchs springt über den faulen Hund, und der Hund will nicht."


def given_request(loaded: LoadedModel, name: str, number: int) -> Request:
    """A request with a given target. The requests differ in what `mixed_requests.message` says, and in length."""
    request = message(loaded, FAMILIES[name], number)
    request.ClearField("prefix")
    request.given.text = TEXT[: 1 + 11 * number % len(TEXT)].strip()
    if number % 3 == 0:
        request.resume_at = 1
    if number % 4 == 1 and not request.capture.none:
        request.capture.steps.begin, request.capture.steps.end = 1, 4
    if number % 2 and not request.capture.none:
        request.capture.row = attention.ROW_READING
    return validate_request(request, loaded, f"r{number}")


@torch.inference_mode()
def read(loaded: LoadedModel, requests: list[Request], max_tokens: int = 200) -> tuple[list[list[Output]], int]:
    """Reads the targets together as far as they can be. Returns the outputs of each, and the number of batches."""
    reader = TargetReader(loaded, loaded.backend, loaded.backend.new_kv_cache(1))
    passes = [TargetPass(loaded, request) for request in requests]
    waiting, num_batches = [each for each in passes if each.can_share], 0
    while waiting:
        done = reader.read(waiting, max_tokens)
        waiting = [each for each in waiting if each not in done and each.can_share]
        num_batches += 1
    outputs = [
        [output for output in target_outputs(loaded, each.request, each) if output is not None] for each in passes
    ]
    return outputs, num_batches


@pytest.mark.parametrize("name", slow_except(IN_SLOTS, ("marian", "t5", "gemma2")))
def test_each_gets_what_it_gets_alone(zoo, name):
    loaded = zoo(name)
    if loaded.backend is None:
        pytest.skip("no batches")
    requests = [given_request(loaded, name, number) for number in range(16)]
    num_shared = sum(TargetPass(loaded, request).can_share for request in requests)
    outputs, num_batches = read(loaded, requests)
    assert num_shared >= 10
    assert num_batches < num_shared
    for request, found in zip(requests, outputs, strict=True):
        assert_same(found, outputs_alone(loaded, request))


@torch.inference_mode()
def test_a_pass_has_no_more_tokens_or_bytes_than_it_may(bundled, monkeypatch):
    shapes, num_bytes = [], []
    original, record = type(bundled.backend).read_targets, PassRecorder.__init__

    def noting(backend, batch):
        shapes.append((*batch.sources.shape, *batch.targets.shape))
        return original(backend, batch)

    def noting_bytes(recorder, plan, queries, positions, rows, count, *others):
        each = sum(plan.row_bytes(kind, positions[kind]) for kind in plan.kinds)
        num_bytes[-1] += count * (queries.stop - queries.start) * each
        record(recorder, plan, queries, positions, rows, count, *others)

    monkeypatch.setattr(type(bundled.backend), "read_targets", noting)
    requests = [given_request(bundled, "marian", number) for number in range(24)]
    shared = [each for each in requests if TargetPass(bundled, each).can_share and (each.capture.kinds or each.scores)]
    for max_tokens in (1, 60, 100_000):
        shapes.clear()
        expected, _ = read(bundled, shared, max_tokens)
        assert sum(shape[0] for shape in shapes) == len(shared)
        assert all(shape[0] == 1 or max(shape[0] * shape[1], shape[2] * shape[3]) <= max_tokens for shape in shapes)
        assert (len(shapes) == 1) == (max_tokens == 100_000)
    most = max(request.single_pass_bytes for request in shared)
    monkeypatch.setattr(target_reader, "MAX_PART_BYTES", 2 * most)
    monkeypatch.setattr(PassRecorder, "__init__", noting_bytes)
    make_groups = TargetReader._make_groups
    monkeypatch.setattr(TargetReader, "_make_groups", lambda *args: (num_bytes.append(0), make_groups(*args))[1])
    outputs, num_batches = read(bundled, shared, 100_000)
    assert num_batches > 1
    assert max(num_bytes) <= 2 * most
    for found, same in zip(outputs, expected, strict=True):
        assert_same(found, same)


def test_nothing_runs_that_nobody_wants(bundled, monkeypatch):
    calls = []
    layers = bundled.model.get_decoder().layers
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    request = given_request(bundled, "marian", 4)
    plan = replace(request.capture, kinds=("cross",), layers={"cross": (0,)}, first_step=0, end_step=None)
    low = replace(request, capture=plan, scores=())
    monkeypatch.setattr(TargetReader, "_scores", None)
    try:
        (found,), _ = read(bundled, [low])
        assert not calls  # the only layer that runs ends at its attention
        assert all(step.cross.values.shape[1] == 1 for step in found[1:-1])
        nothing = replace(low, capture=replace(plan, kinds=()))
        with monkeypatch.context() as patch:
            patch.setattr(type(bundled.backend), "read_targets", None)
            (found,), _ = read(bundled, [nothing])
        assert len(found) == 2 + len(low.target.text.tokens)
    finally:
        for layer in layers:
            layer._forward_hooks.clear()


def test_what_cannot_be_read_together_is_read_alone(bundled, monkeypatch):
    requests = [given_request(bundled, "marian", number) for number in (1, 3, 5)]
    expected, _ = read(bundled, requests)
    original = type(bundled.backend).read_targets

    def failing(backend, batch):
        if len(batch.lengths) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return original(backend, batch)

    monkeypatch.setattr(type(bundled.backend), "read_targets", failing)
    outputs, num_batches = read(bundled, requests)
    assert num_batches == 1
    for found, same in zip(outputs, expected, strict=True):
        assert_same(found, same)


@torch.inference_mode()
def test_a_number_that_is_not_finite_ends_its_own_request(bundled):
    """The embedding of one token is NaN. No request has scores: the logits of all would be NaN."""
    requests = [replace(given_request(bundled, "marian", number), scores=()) for number in (1, 3, 4, 5)]
    others = {id_ for request in requests[:3] for id_ in (*request.target.text.ids, *request.source.ids)}
    own = set(requests[3].target.text.ids[:-1]) - others
    token, weight = next(iter(own)), bundled.model.get_input_embeddings().weight
    reader = TargetReader(bundled, bundled.backend, bundled.backend.new_kv_cache(1))
    passes = [TargetPass(bundled, request) for request in requests]
    before = weight[token].clone()
    try:
        weight[token] = float("nan")
        assert len(reader.read(passes, 1000)) == 4
    finally:
        weight[token] = before
    assert [isinstance(each.result, RequestError) for each in passes] == [False, False, False, True]
