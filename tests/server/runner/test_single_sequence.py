"""A model over one sequence gives what is asked for, or says that it cannot."""

from __future__ import annotations

import pytest
import torch
from sidelight.server.capture import CapturePlan
from sidelight.server.runner.single_sequence import LAST_QUERY, SingleSequenceModel


@torch.inference_mode()
def test_a_model_without_rows_gives_the_last_token_or_all_at_the_end(zoo):
    loaded = zoo("fsmt")
    plan = CapturePlan(("cross",), {"cross": (0,)}, {"cross": loaded.heads("cross")})
    target = [2, 7, 9]

    def encoded() -> SingleSequenceModel:
        model = SingleSequenceModel(loaded, plan, [5, 6, 2], target)
        model.encode()
        return model

    for queries, num_logits in ((slice(None), 1), (LAST_QUERY, 2)):
        model = encoded()
        with pytest.raises(ValueError, match=r"^queries, num_logits: "):
            model.forward(model.tensor(target), queries, num_logits)
    model = encoded()
    step_by_step = model.forward(model.tensor(target), LAST_QUERY, 1)
    model = encoded()
    at_once = model.forward(model.tensor(target), slice(None), 3, is_last=True)
    torch.testing.assert_close(step_by_step.logits[-1], at_once.logits[-1], atol=1e-4, rtol=1e-4)
    assert step_by_step.cross is not None
    assert at_once.cross is not None
    torch.testing.assert_close(step_by_step.cross.values[:, -1], at_once.cross.values[:, -1], atol=1e-5, rtol=1e-5)
