"""The history keeps the tokens of each slot, and no token that is beyond its size."""

from __future__ import annotations

import torch
from reference_sampler import LENGTH, Batch
from sidelight.server.request import DecodingParams
from sidelight.server.sampling import Sampler, SamplerOutput


@torch.inference_mode()
def test_a_context_may_have_tokens_without_logits(small, monkeypatch):
    """Some models can read more tokens than they can write."""
    head = small.model.get_output_embeddings()
    monkeypatch.setattr(head, "out_features", small.vocabulary_size - 10)
    batch = Batch(small)
    options = {"repetition_penalty": 2.0, "no_repeat_ngram_size": 1}
    context = [small.vocabulary_size - 1, 5]
    batch.add(0, DecodingParams(5, False, generation=options), context, [4])
    batch.add(1, DecodingParams(5, True, 1, generation=options), [5, 6], [4])
    for _ in range(5):
        # Older versions of transformers fail for such a token: then sampler and reference fail in the same way.
        batch.step(torch.randn(2, small.vocabulary_size - 10), sorted(batch.references))
    assert 1 in batch.references


@torch.inference_mode()
def test_tokens_after_the_longest_target_are_not_kept(small):
    """A request that reads its last token runs one more step, which samples a token too."""
    sampler = Sampler(small, 2, LENGTH)
    options = {"repetition_penalty": 2.0, "no_repeat_ngram_size": 2}
    for slot in (0, 1):
        sampler.add(slot, DecodingParams(LENGTH - 1, bool(slot), 3, generation=options), [3], [4])
    for _ in range(LENGTH + 3):
        output = sampler.sample(torch.randn(2, small.vocabulary_size), [0, 1])
    assert isinstance(output, SamplerOutput)
