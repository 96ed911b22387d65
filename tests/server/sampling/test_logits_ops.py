"""Operations on logits give what transformers and torch give, at a real vocabulary's size and with ties and NaN."""

from __future__ import annotations

import math

import pytest
import torch
from sidelight.server.sampling import logits_ops
from transformers import TopPLogitsWarper


@pytest.mark.parametrize("drop", [logits_ops.drop_in_order, logits_ops.drop_below_threshold])
@pytest.mark.parametrize("kind", ["apart", "tied", "few", "infinite", "not numbers"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_the_likeliest_tokens_of_a_real_vocabulary(drop, kind, share):
    torch.manual_seed(0)
    scores = torch.randn(3, 58_101) * 3
    if kind == "tied":
        scores = scores.bfloat16().float()
    elif kind == "few":
        scores = scores.masked_fill(scores < scores.topk(50).values[:, -1:], -math.inf)
    elif kind == "infinite":
        scores[0], scores[1, 7], scores[2, ::2] = -math.inf, math.inf, -0.0
    elif kind == "not numbers":
        scores[0], scores[1, 7] = math.nan, math.nan
    shares = [share, share / 2, share]
    expected = torch.cat(
        [TopPLogitsWarper(p)(torch.empty(0), row[None]) for p, row in zip(shares, scores, strict=True)]
    )
    drop(scores, torch.tensor([[1 - p] for p in shares]))
    torch.testing.assert_close(scores, expected, rtol=0, atol=0, equal_nan=True)


def test_argmax_of_ties_nan_and_infinities():
    logits = torch.tensor([[1.0, 3.0, 3.0], [float("nan"), 1.0, 2.0], [-math.inf, -math.inf, -math.inf]])
    for dtype in (torch.float32, torch.bfloat16):
        assert logits_ops.argmax(logits.to(dtype)).tolist() == [1, 0, 0]
