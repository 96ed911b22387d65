"""Options of transformers' processors, read as numbers, do what the processors do, at their limits too."""

from __future__ import annotations

import pytest
import torch
from reference_sampler import LENGTH, Batch, sample
from sidelight.server.request import DecodingParams
from sidelight.server.sampling import Sampler


@torch.inference_mode()
def test_the_end_is_forced_where_the_first_token_is_the_last(small):
    batch = Batch(small)
    batch.add(
        0, DecodingParams(1, False, generation={"forced_bos_token_id": 5, "forced_eos_token_id": [6, 7]}), [3], [4]
    )
    batch.step(torch.randn(1, small.vocabulary_size), [0])


@torch.inference_mode()
def test_both_minimal_lengths_count(small):
    batch = Batch(small)
    for slot, (min_length, min_new_tokens) in enumerate([(6, 1), (1, 6)]):
        options = {"min_length": min_length, "min_new_tokens": min_new_tokens, "eos_token_id": 5}
        batch.add(slot, DecodingParams(8, False, generation=options), [3], [4])
    logits = torch.randn(2, small.vocabulary_size)
    logits[:, 5] = 50
    for _ in range(7):
        batch.step(logits, [0, 1])


def test_end_ids(small):
    sampler = Sampler(small, 2, LENGTH)
    sampler.add(0, DecodingParams(4, False), [3], [4])
    sampler.add(1, DecodingParams(4, False, generation={"eos_token_id": [5, 6]}), [3], [4])
    assert sampler.end_ids(0) == {small.model.generation_config.eos_token_id}
    assert sampler.end_ids(1) == {5, 6}


def test_contradictory_options_refuse_a_request(small):
    sampler = Sampler(small, 2, LENGTH)
    sampler.add(0, DecodingParams(4, False), [3], [4])
    with pytest.raises(ValueError, match="temperature"):
        sampler.add(1, DecodingParams(4, True, 1, generation={"temperature": 0.0}), [3], [4])
    assert len(sample(sampler, torch.randn(1, small.vocabulary_size), [0])) == 1
