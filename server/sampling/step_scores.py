"""Step scores: probability, entropy and others of each step, from the model's own logits.

The formulas are those of Inseq 0.7.1 (inseq/attr/step_functions.py), in float32, with natural logarithms. The scores
use logits before any logits processor: they say what the model predicts, not what decoding makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..request import Score
from .contrast_scores import ContrastLogits, contrast_formulas


def step_scores(
    names: Sequence[Score], logits: Tensor, targets: Tensor, top_p: float, contrast: ContrastLogits | None = None
) -> Tensor:
    """Computes the scores of steps, float32 `[steps, len(names)]`.

    `logits` is `[steps, vocabulary]`; `targets`, `[steps]`, are the chosen tokens; `top_p` is the share of probability
    for `top_p_size`; `contrast` is for the scores that compare two contexts.
    """
    if not names:
        return logits.new_empty(len(targets), 0, dtype=torch.float32)
    logits = logits.float()
    log_probabilities = logits.log_softmax(-1)
    index = targets[:, None]

    def negative_log_probability() -> Tensor:
        return -log_probabilities.gather(-1, index)[:, 0]

    formulas: dict[Score, Callable[[], Tensor]] = {
        "probability": lambda: negative_log_probability().neg().exp(),
        "logit": lambda: logits.gather(-1, index)[:, 0],
        "entropy": lambda: _entropy(log_probabilities),
        "cross_entropy": negative_log_probability,
        # Inseq's perplexity of a very unlikely token is infinite. Here it is float32's largest number.
        "perplexity": lambda: (2 ** negative_log_probability()).clamp(max=torch.finfo(torch.float32).max),
        "top_p_size": lambda: _top_p_size(logits, top_p),
    }
    if contrast is not None:
        formulas |= contrast_formulas(logits, targets, contrast)
    return torch.stack([formulas[name]() for name in names], dim=-1)


def _entropy(log_probabilities: Tensor) -> Tensor:
    """Computes -sum(p log p); a probability of 0 adds nothing."""
    return -(log_probabilities.exp() * log_probabilities.clamp(min=torch.finfo(torch.float32).min)).sum(-1)


def _top_p_size(logits: Tensor, top_p: float) -> Tensor:
    """Counts the tokens that stay when the least likely tokens, which sum to 1 - p, are dropped."""
    ascending = logits.sort(-1).values.softmax(-1).cumsum(-1)
    ascending[..., -1] = 1.0  # the likeliest token always stays
    return (ascending > 1 - top_p).sum(-1).float()
