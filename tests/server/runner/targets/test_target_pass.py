"""A long given target is read in parts: with the same steps as in one pass, and only the rows that are asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from combinations import slow_except
from model_zoo import FAMILIES
from sidelight.server.capture import CapturePlan, PassRecorder
from sidelight.server.engine.outputs.given_target import target_outputs
from sidelight.server.models import LoadedModel
from sidelight.server.request import GivenTarget, Request, Step
from sidelight.server.request import request as request_module
from sidelight.server.runner import TargetPass, single_sequence
from sidelight.server.runner.single_sequence import SingleSequenceModel
from sidelight.server.runner.targets import target_pass

PARTS = [name for name, family in FAMILIES.items() if family.captures_rows]


def make_request(loaded: LoadedModel, **fields) -> Request:
    languages = loaded.tokenizer.resolve_languages("", "")
    source = loaded.tokenizer.encode_source("The quick dog does not care at all about it.", languages)
    prompt = loaded.tokenizer.start_ids(languages)
    if loaded.is_encoder_decoder:
        target = loaded.tokenizer.encode_target("Der schnelle Hund, und der Fuchs und der Hund.", languages)
    else:
        target = loaded.tokenizer.encode_continuation(source, " Der schnelle Hund, und der Fuchs und der Hund.")
    kinds = tuple(kind for kind in ("cross", "decoder_self") if kind in loaded.kinds)
    layers = {kind: tuple(range(loaded.attention_layers.num_layers(kind))) for kind in kinds}
    heads = {kind: loaded.heads(kind) for kind in kinds}
    names = ("row", "first_step", "end_step", "encoding", "top_k")
    plan = CapturePlan(kinds, layers, heads, **{name: fields.pop(name) for name in names if name in fields})
    return Request("", source, tuple(prompt), GivenTarget(target), plan, ("probability", "entropy"), **fields)


@torch.inference_mode()
def steps_of(loaded: LoadedModel, request: Request) -> tuple[list[Step], int]:
    """The steps, and how many outputs took a pass more."""
    outputs = list(target_outputs(loaded, request, TargetPass(loaded, request)))
    return [output for output in outputs if isinstance(output, Step)], outputs.count(None)


def check_equal(steps: list[Step], expected: list[Step]) -> None:
    assert len(steps) == len(expected)
    for step, same in zip(steps, expected, strict=True):
        assert (step.index, step.token, step.text) == (same.index, same.token, same.text)
        np.testing.assert_allclose(step.scores, same.scores, rtol=1e-4, atol=1e-5)
        for arrays, others in ((step.cross, same.cross), (step.decoder_self, same.decoder_self)):
            assert (arrays is None) == (others is None)
            if arrays is not None:
                assert arrays.values.shape == others.values.shape
                assert np.abs(arrays.values - others.values).max() < 1e-5


@pytest.mark.parametrize("name", slow_except(PARTS, ("marian", "bart", "t5", "llama", "gemma2")))
@pytest.mark.parametrize("row", ["predicting", "reading"])
def test_parts_give_the_steps_of_one_pass(zoo, monkeypatch, name, row):
    loaded = zoo(name)
    spans = [{"first_step": 3, "end_step": 9}, {"resume_at": 5}, {"end_step": 2}, {"first_step": 999}]
    for fields in ({}, *(spans if name in ("bart", "llama") else spans[:1])):
        request = make_request(loaded, row=row, **fields)
        monkeypatch.setattr(target_pass, "_PASS_TOKENS", 10_000)
        monkeypatch.setattr(target_pass, "MAX_PART_BYTES", 2**30)
        expected, num_more = steps_of(loaded, request)
        assert num_more == 0
        monkeypatch.setattr(target_pass, "_PASS_TOKENS", 7)
        steps, num_more = steps_of(loaded, request)
        assert num_more >= len(request.target.text.tokens) // 7 - 1
        check_equal(steps, expected)
        monkeypatch.setattr(target_pass, "_PASS_TOKENS", 10_000)
        monkeypatch.setattr(target_pass, "MAX_PART_BYTES", 1000)
        check_equal(steps_of(loaded, request)[0], expected)


def test_only_rows_that_are_sent_are_computed_and_held(zoo, monkeypatch):
    loaded = zoo("llama")
    num_queries = []
    original = PassRecorder._tensors_of

    def noting(recorder, kind, queries, device):
        if kind not in recorder._tensors:
            num_queries.append(queries.stop - queries.start)
        return original(recorder, kind, queries, device)

    monkeypatch.setattr(PassRecorder, "_tensors_of", noting)
    request = make_request(loaded, first_step=4, end_step=6)
    steps_of(loaded, request)
    assert num_queries == [2]
    assert request.single_pass_bytes == 2 * request.step_bytes(
        len(request.source.tokens) + len(request.target.text.tokens)
    )
    # All rows, a few at a time.
    num_queries.clear()
    monkeypatch.setattr(target_pass, "MAX_PART_BYTES", 4 * request.step_bytes(1000))
    monkeypatch.setattr(request_module, "MAX_PART_BYTES", 3 * request.step_bytes(20))
    request = make_request(loaded)
    steps_of(loaded, request)
    assert sum(num_queries) == len(request.target.text.tokens)
    assert request.single_pass_bytes == 3 * request.step_bytes(20)


@pytest.mark.parametrize(
    "fields",
    [{}, {"over_heads": "mean", "over_layers": "max"}, {"top_k": 3}, {"encoding": "uint8"}],
    ids=["all", "reduced", "top-k", "uint8"],
)
@pytest.mark.parametrize("name", slow_except([name for name in PARTS if FAMILIES[name].is_encoder_decoder], ("t5",)))
@torch.inference_mode()
def test_the_rows_of_an_encoder_are_the_same_in_parts(zoo, monkeypatch, name, fields):
    loaded = zoo(name)
    ids = loaded.tokenizer.encode_source("The quick dog does not care at all about it.").ids
    layers = tuple(range(loaded.attention_layers.num_layers("encoder_self")))
    heads = {"encoder_self": loaded.heads("encoder_self")}
    plan = CapturePlan(("encoder_self",), {"encoder_self": layers}, heads, **fields)

    def parts() -> list:
        return list(SingleSequenceModel(loaded, plan, ids, (1,)).encode())

    (whole,) = parts()
    monkeypatch.setattr(single_sequence, "MAX_PART_BYTES", 2 * plan.row_bytes("encoder_self", len(ids)))
    some = parts()
    assert [len(part.values) for part in some[:-1]] == [2] * (len(ids) // 2 - 1 + len(ids) % 2)
    for number, arrays in enumerate(zip(*some, strict=True)):
        if whole[number] is None:
            assert set(arrays) == {None}
        else:
            joined, same = np.concatenate(arrays).astype(np.float64), whole[number].astype(np.float64)
            last_bit = 1 if whole[number].dtype == np.uint8 else 1e-6
            np.testing.assert_allclose(joined, same, rtol=1e-5, atol=last_bit)
