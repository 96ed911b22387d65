"""The last layer apart from the model: the same scores, the same tokens, and nothing computed that nobody asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mixed_requests import IN_SLOTS, alone, assert_same, mixed_requests, slots_run, then_one_by_one, together
from model_zoo import build_model
from sidelight.server.layers import LMHead, linear_kernels
from sidelight.server.layers.screened_head import ScreenedHead
from sidelight.server.models import load
from sidelight.server.runner.sequence import Sequence

CAPPED = {"gemma2"}  # scores that are more than the last layer's
OWN_WEIGHT = {"llama", "qwen3"}  # not the embedding's


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(params=["searched", "written"])
def estimated(request, monkeypatch) -> list[int]:
    """Has estimates used however small a vocabulary is; grows with each use, by the number of rows.

    As where programs run, and as where estimates are written first.
    """
    used: list[int] = []
    estimate, seek = ScreenedHead.estimate, LMHead.argmax_query

    def counted(screen: ScreenedHead, hidden: torch.Tensor):
        used.append(len(hidden))
        return estimate(screen, hidden)

    def searched(vocabulary: LMHead, rows: int, *others):
        sought = seek(vocabulary, rows, *others)
        used.extend([rows] * (sought is not None and vocabulary._screen is not None))
        return sought

    monkeypatch.setattr(ScreenedHead, "is_worth", lambda *_, **__: True)
    monkeypatch.setattr(ScreenedHead, "is_ever_worth", True)
    monkeypatch.setattr(ScreenedHead, "estimate", counted)
    monkeypatch.setattr(LMHead, "argmax_query", searched if request.param == "searched" else lambda *_: None)
    return used


# Each family with one of the two, neighbours with different ones: what is estimated does not depend on the family.
@pytest.mark.parametrize(
    ("name", "estimated"),
    [(name, ("searched", "written")[place % 2]) for place, name in enumerate(IN_SLOTS)],
    indirect=["estimated"],
)
def test_estimates_change_no_token(name, folder, estimated):
    loaded = load(build_model(name, folder))
    plain = [replace(job, scores=()) for job in mixed_requests(loaded, name, 9) if not job.target.do_sample]
    expected = alone(loaded, plain)
    estimated.clear()
    for number, events in together(loaded, plain, then_one_by_one([(3, -1, 1), (2, 1, -1)])).items():
        assert_same(events, expected[number])
    assert loaded.backend is not None
    vocabulary = loaded.backend.lm_head
    assert (vocabulary is None) == (name in CAPPED)
    assert bool(estimated) == (name not in CAPPED | OWN_WEIGHT)


def test_all_scores_where_somebody_looks_at_them(folder, estimated):
    loaded = load(build_model("marian", folder))
    requests = mixed_requests(loaded, "marian", 8)
    penalized = requests[0].target.generation | {"repetition_penalty": 1.3}
    for job in (
        requests[1],
        requests[2],
        replace(requests[0], target=replace(requests[0].target, generation=penalized)),
    ):
        estimated.clear()
        expected = alone(loaded, [job])
        assert_same(together(loaded, [job], then_one_by_one([]))[0], expected[0])
        assert not estimated  # scores, sampling, a penalty that depends on scores


def test_what_is_read_is_not_scored(folder, monkeypatch):
    """A prompt's positions have scores that nobody wants."""
    loaded = load(build_model("gpt2", folder))
    scored: list[int] = []
    logits = LMHead.logits
    monkeypatch.setattr(LMHead, "logits", lambda self, hidden: scored.append(len(hidden)) or logits(self, hidden))
    layer = loaded.model.get_output_embeddings()
    seen: list[int] = []
    layer.register_forward_hook(lambda _layer, given, _made: seen.append(given[0].numel() // given[0].shape[-1]))
    requests = mixed_requests(loaded, "gpt2", 2)
    with torch.inference_mode():
        run = slots_run(loaded, 2)
        sequences = run.add(requests)
        assert all(isinstance(sequence, Sequence) and sequence.is_prefilling for sequence in sequences)
        for sequence in run.live:
            while sequence.is_prefilling:
                run.runner.prefill(sequence)
        assert not any(seen)
        assert not scored
        run.step()
    assert sum(seen) == 2


def test_the_model_alone_is_as_it_was(folder):
    """Whoever calls it gets all its scores, before and after a pass that left them out."""
    loaded = load(build_model("bart", folder))
    assert loaded.backend is not None
    vocabulary = loaded.backend.lm_head
    assert vocabulary is not None
    inputs = {"input_ids": torch.tensor([[4, 5, 6]]), "decoder_input_ids": torch.tensor([[2, 7]])}
    with torch.inference_mode():
        before = loaded.model(**inputs).logits
        with vocabulary.skipping():
            assert loaded.model(**inputs).logits.shape[0] == 0
        torch.testing.assert_close(vocabulary.logits(vocabulary.pop_hidden()[0]), before[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(loaded.model(**inputs).logits, before)


def test_no_copy_is_kept_that_saves_no_time(folder, monkeypatch):
    monkeypatch.setattr(ScreenedHead, "is_ever_worth", False)
    backend = load(build_model("bart", folder)).backend
    assert backend is not None
    assert backend.lm_head is not None
    assert backend.lm_head._screen is None


def test_a_machine_without_int8_has_all_scores(folder, monkeypatch):
    monkeypatch.setattr(linear_kernels, "_is_exact", lambda _name, _width: False)
    backend = load(build_model("bart", folder)).backend
    assert backend is not None
    assert backend.lm_head is not None
    assert backend.lm_head._screen is None
