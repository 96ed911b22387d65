"""Step scores are the scores that Inseq's formulas give for the model's raw logits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inseq.attr import step_functions
from sidelight.client import Client, Decoding, Sampling
from sidelight.server.models.loader import LoadedModel
from sidelight.server.sampling import step_scores

SENTENCE = "My grandmother is still vigorous at 82 years old."
NAMES = ["probability", "logit", "entropy", "cross_entropy", "perplexity", "top_p_size"]


def inseq_score(name: str, logits: torch.Tensor, target: torch.Tensor, top_p: float) -> float:
    """Computes one score of one step with Inseq's function."""
    arguments = SimpleNamespace(
        attribution_model=SimpleNamespace(output2logits=lambda output: output.logits),
        forward_output=SimpleNamespace(logits=logits[None]),
        target_ids=target[None],
    )
    functions = {
        "probability": step_functions.probability_fn,
        "logit": step_functions.logit_fn,
        "entropy": step_functions.entropy_fn,
        "cross_entropy": step_functions.crossentropy_fn,
        "perplexity": step_functions.perplexity_fn,
    }
    if name == "top_p_size":
        return float(step_functions.top_p_size_fn(arguments, top_p))
    return float(functions[name](arguments))


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_formulas_are_inseqs(scale, top_p):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 503, generator=generator) * scale
    targets = torch.tensor([0, 502, 7, 99, int(logits[4].argmax())])
    scores = step_scores(NAMES, logits, targets, top_p)
    for row, (line, target) in enumerate(zip(logits, targets, strict=True)):
        # Where Inseq's perplexity is infinite, the score is the greatest float32.
        expected = [min(inseq_score(name, line, target, top_p), np.finfo(np.float32).max) for name in NAMES]
        np.testing.assert_allclose(scores[row].numpy(), expected, rtol=2e-5, atol=1e-5)


def test_banned_tokens_do_not_count():
    logits = torch.tensor([[0.0, float("-inf"), 1.0]])
    scores = step_scores(["entropy", "probability"], logits, torch.tensor([1]), 0.9)
    probabilities = np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
    np.testing.assert_allclose(scores.numpy(), [[-(probabilities * np.log(probabilities)).sum(), 0.0]], atol=1e-6)


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).to(torch.float16)
    targets = torch.tensor([1, 2, 3])
    torch.testing.assert_close(
        step_scores(NAMES, logits, targets, 0.9), step_scores(NAMES, logits.float(), targets, 0.9)
    )


def test_scores_use_the_models_logits_and_not_those_of_sampling(bundled: LoadedModel, bundled_server):
    """A high temperature changes the drawn tokens, but not their scores."""
    with Client(bundled_server) as client:
        decoding = Decoding(Sampling(temperature=3.0, top_k=10, seed=4), repetition_penalty=2.0, max_new_tokens=12)
        result = client.attribute(SENTENCE, decoding=decoding, scores=NAMES, score_top_p=0.5, timeout=60).result()
    source = torch.tensor([[token.id for token in result.source]])
    ids = [token.id for token in (*result.started.prefix, *result.steps)]
    with torch.inference_mode():
        logits = bundled.model(input_ids=source, decoder_input_ids=torch.tensor([ids[:-1]])).logits[0]
    for step, target in enumerate(ids[1:]):
        expected = [inseq_score(name, logits[step], torch.tensor(target), 0.5) for name in NAMES]
        scores = [float(result.scores[name][step]) for name in NAMES]
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
