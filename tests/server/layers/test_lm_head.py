"""The LM head apart from the model: the same logits, the same tokens, and no logits that no request needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mixed_requests import IN_SLOTS, alone, assert_same, mixed_requests, slots_run, then_one_by_one, together
from model_zoo import build_model
from sidelight.kernels.cpu import is_supported
from sidelight.server.layers import LMHead, screened_head
from sidelight.server.layers.screened_head import ScreenedHead
from sidelight.server.models import LoadedModel, load
from sidelight.server.request import Request
from sidelight.server.runner.sequence import Sequence

CAPPED = {"gemma2"}  # the model does more to its logits than its output projection
OWN_WEIGHT = {"llama", "qwen3"}  # the output projection's weight is not the embedding's


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture
def num_searches(monkeypatch) -> list[int]:
    """Makes screening faster than all else, however small a vocabulary is; grows with each screened search."""
    searches: list[int] = []
    argmax_query = LMHead.argmax_query

    def count(lm_head: LMHead, num_rows: int, *others):
        query = argmax_query(lm_head, num_rows, *others)
        searches.extend([num_rows] * (query is not None and lm_head._screened is not None))
        return query

    monkeypatch.setattr(ScreenedHead, "is_faster", lambda *_: True)
    monkeypatch.setattr(ScreenedHead, "is_ever_faster", True)
    monkeypatch.setattr(LMHead, "argmax_query", count)
    return searches


def greedy_requests(loaded: LoadedModel, name: str) -> list[Request]:
    """Requests whose tokens are found without logits: greedy, and without scores."""
    requests = mixed_requests(loaded, name, 9)
    greedy = [request for request in requests if not (request.target.do_sample or request.target.beam)]
    return [replace(request, scores=()) for request in greedy]


def with_options(request: Request, **options) -> Request:
    return replace(request, target=replace(request.target, generation=request.target.generation | options))


@pytest.mark.skipif(not is_supported(int8=True), reason="no programs with int8 weights on this machine")
@pytest.mark.parametrize("name", IN_SLOTS)
def test_screening_changes_no_token(name, zoo, num_searches):
    loaded = zoo(name)
    requests = greedy_requests(loaded, name)
    expected = alone(loaded, requests)
    num_searches.clear()
    for number, events in together(loaded, requests, then_one_by_one([(3, -1, 1), (2, 1, -1)])).items():
        assert_same(events, expected[number])
    assert loaded.backend is not None
    assert (loaded.backend.lm_head is None) == (name in CAPPED)
    assert bool(num_searches) == (name not in CAPPED | OWN_WEIGHT)


@pytest.mark.skipif(not is_supported(int8=True), reason="no programs with int8 weights on this machine")
def test_a_forced_first_token_needs_no_logits(zoo, num_searches, monkeypatch):
    """As NLLB has it in each target: the step's other slots are searched as ever."""
    loaded = zoo("nllb")
    requests = greedy_requests(loaded, "nllb")
    forced = [with_options(request, forced_bos_token_id=5 + i) for i, request in enumerate(requests)]
    expected = alone(loaded, forced)
    num_searches.clear()
    monkeypatch.setattr(LMHead, "logits", lambda *_: pytest.fail("logits are written"))
    for number, events in together(loaded, forced, then_one_by_one([(3, -1, 1), (2, 1, -1)])).items():
        assert_same(events, expected[number])
    assert num_searches


def test_all_logits_where_a_request_looks_at_them(zoo, num_searches):
    loaded = zoo("marian")
    requests = mixed_requests(loaded, "marian", 8)
    penalized = with_options(requests[0], repetition_penalty=1.3)
    for request in (requests[1], requests[2], penalized):
        num_searches.clear()
        expected = alone(loaded, [request])
        assert_same(together(loaded, [request], then_one_by_one([]))[0], expected[0])
        assert not num_searches  # scores, drawing, a penalty that depends on logits


def test_a_prompt_has_no_logits(folder, monkeypatch):
    """No request needs the logits of a prompt's positions."""
    loaded = load(build_model("gpt2", folder))
    calls: list[int] = []
    logits = LMHead.logits
    monkeypatch.setattr(LMHead, "logits", lambda self, hidden: calls.append(len(hidden)) or logits(self, hidden))
    layer = loaded.model.get_output_embeddings()
    num_rows: list[int] = []
    layer.register_forward_hook(
        lambda _layer, inputs, _output: num_rows.append(inputs[0].numel() // inputs[0].shape[-1])
    )
    requests = mixed_requests(loaded, "gpt2", 2)
    with torch.inference_mode():
        run = slots_run(loaded, 2)
        sequences = run.add(requests)
        assert all(isinstance(sequence, Sequence) and sequence.is_prefilling for sequence in sequences)
        for sequence in run.live:
            while sequence.is_prefilling:
                run.runner.prefill(sequence)
        assert not any(num_rows)
        assert not calls
        run.step()
    assert sum(num_rows) == 2


def test_the_model_alone_is_as_it_was(zoo):
    """The model returns all logits, before and after a pass that skipped the LM head."""
    loaded = zoo("bart")
    assert loaded.backend is not None
    lm_head = loaded.backend.lm_head
    assert lm_head is not None
    inputs = {"input_ids": torch.tensor([[4, 5, 6]]), "decoder_input_ids": torch.tensor([[2, 7]])}
    with torch.inference_mode():
        before = loaded.model(**inputs).logits
        with lm_head.skipping():
            assert loaded.model(**inputs).logits.shape[0] == 0
        torch.testing.assert_close(lm_head.logits(lm_head.pop_hidden()[0]), before[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(loaded.model(**inputs).logits, before)


def test_no_copy_is_kept_that_saves_no_time(folder, monkeypatch):
    monkeypatch.setattr(ScreenedHead, "is_ever_faster", False)
    backend = load(build_model("bart", folder)).backend
    assert backend is not None
    assert backend.lm_head is not None
    assert backend.lm_head._screened is None


def test_a_machine_without_int8_programs_has_no_screening(folder, monkeypatch):
    monkeypatch.setattr(screened_head, "is_supported", lambda **_: False)
    monkeypatch.setattr(ScreenedHead, "is_ever_faster", True)
    backend = load(build_model("bart", folder)).backend
    assert backend is not None
    assert backend.lm_head is not None
    assert backend.lm_head._screened is None
