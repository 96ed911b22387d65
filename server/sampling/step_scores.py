"""Numbers about each step, from the model's own logits.

Formulas as Inseq 0.7.1 has them (inseq/attr/step_functions.py), in float32, natural logarithms. They are taken before
any logits processor: what the model thinks, not what decoding makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..request import Score


def step_scores(names: Sequence[Score], logits: Tensor, targets: Tensor, top_p: float) -> Tensor:
    """The scores of some steps, float32 `[steps, len(names)]`.

    `logits` is `[steps, vocabulary]`, `targets` the tokens written, `[steps]`; `top_p` is the share that `top_p_size`
    asks for.
    """
    if not names:
        return torch.empty(len(targets), 0)
    logits = logits.float()
    log_probabilities = logits.log_softmax(-1)
    index = targets[:, None]

    def surprise() -> Tensor:
        return -log_probabilities.gather(-1, index)[:, 0]

    formulas: dict[Score, Callable[[], Tensor]] = {
        "probability": lambda: surprise().neg().exp(),
        "logit": lambda: logits.gather(-1, index)[:, 0],
        "entropy": lambda: _entropy(log_probabilities),
        "cross_entropy": surprise,
        # Inseq's is infinite for what is most unlikely: float32 holds no more.
        "perplexity": lambda: (2 ** surprise()).clamp(max=torch.finfo(torch.float32).max),
        "top_p_size": lambda: _top_p_size(logits, top_p),
    }
    return torch.stack([formulas[name]() for name in names], dim=-1)


def _entropy(log_probabilities: Tensor) -> Tensor:
    """-sum(p log p), where a probability of 0 adds nothing."""
    return -(log_probabilities.exp() * log_probabilities.clamp(min=torch.finfo(torch.float32).min)).sum(-1)


def _top_p_size(logits: Tensor, top_p: float) -> Tensor:
    """How many of the likeliest tokens stay when those are dropped that, from the least likely up, sum to 1 - p."""
    ascending = logits.sort(-1).values.softmax(-1).cumsum(-1)
    ascending[..., -1] = 1.0  # the likeliest token always stays
    return (ascending > 1 - top_p).sum(-1).float()
