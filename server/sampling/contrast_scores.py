"""Scores that compare the model's predictions in two contexts.

The formulas are those of Inseq 0.7.1 (inseq/attr/step_functions.py), in float32. Where Inseq's numbers are infinite or
NaN because a probability is 0 in float32, these stay finite: they come from log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..request import Score


class ContrastLogits(NamedTuple):
    """What the model predicts in the second context at some steps, and what the predictions are compared for.

    `logits` is `[steps, vocabulary]`; `targets`, `[steps]`, are the tokens of this context. The other fields are those
    of `request.Contrast`.
    """

    logits: Tensor
    targets: Tensor
    kl_top_p: float = 1.0
    kl_top_k: int = 0


def contrast_formulas(logits: Tensor, targets: Tensor, contrast: ContrastLogits) -> dict[Score, Callable[[], Tensor]]:
    """The formula of each score, `[steps]`.

    `logits` is float32 `[steps, vocabulary]`, of the request's own context; `targets`, `[steps]`, are its tokens.
    """
    others = contrast.logits.float()

    def logit(values: Tensor, tokens: Tensor) -> Tensor:
        return values.gather(-1, tokens[:, None])[:, 0]

    def log_probability(values: Tensor, tokens: Tensor) -> Tensor:
        return logit(values.log_softmax(-1), tokens)

    def difference() -> Tensor:
        return log_probability(others, contrast.targets) - log_probability(logits, targets)

    return {
        "contrast_logits": lambda: logit(others, contrast.targets),
        "contrast_prob": lambda: log_probability(others, contrast.targets).exp(),
        "contrast_logits_diff": lambda: logit(logits, targets) - logit(others, contrast.targets),
        "contrast_prob_diff": lambda: (
            log_probability(logits, targets).exp() - log_probability(others, contrast.targets).exp()
        ),
        "pcxmi": lambda: difference() / math.log(2),
        "in_context_pvi": difference,
        "kl_divergence": lambda: _kl_divergence(logits, others, contrast.kl_top_p, contrast.kl_top_k),
    }


def _kl_divergence(logits: Tensor, others: Tensor, top_p: float, top_k: int) -> Tensor:
    """Computes sum(p (log p - log q)) over the kept tokens; a probability of 0 adds nothing.

    As in Inseq, the sum of the logits of both contexts says which tokens are kept.
    """
    infinity = float("inf")
    if top_p < 1.0:
        dropped = _outside_top_p(logits + others, top_p)
        logits, others = logits.masked_fill(dropped, -infinity), others.masked_fill(dropped, -infinity)
    if top_k:
        merged = logits + others
        dropped = merged < merged.topk(top_k).values[:, -1:]
        logits, others = logits.masked_fill(dropped, -infinity), others.masked_fill(dropped, -infinity)
    log_p, log_q = logits.log_softmax(-1), others.log_softmax(-1)
    return torch.where(log_p > -infinity, log_p.exp() * (log_p - log_q), 0.0).sum(-1)


def _outside_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Whether a token is among the least likely tokens, which sum to 1 - p: bool, of the shape of `logits`."""
    ascending, index = logits.sort(-1)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped[:, -1] = False  # the likeliest token always stays
    return dropped.scatter(-1, index, dropped)
