"""Sources are read alike, whatever is captured of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request
from mixed_requests import slots_run
from sidelight.server.api.validation import validate_request
from sidelight.server.models import bundled_model, load
from sidelight.server.request import Output, Step
from sidelight.server.runner import prefill


def steps_of(loaded, kinds: list[int]) -> list[Step]:
    message = request("My grandmother is still vigorous at 82 years old.", kinds)
    run = slots_run(loaded, 2)
    (sequence,) = run.add_all([validate_request(message, loaded, "")])
    run.finish()
    outputs: list[Output] = run.outputs[sequence]
    return [output for output in outputs if isinstance(output, Step)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@torch.inference_mode()
def test_a_capture_of_the_encoder_changes_no_bit_of_the_steps(dtype):
    loaded = load(bundled_model(), dtype=dtype)
    without, captured = (
        steps_of(loaded, kinds) for kinds in ([CROSS, DECODER_SELF], [CROSS, DECODER_SELF, ENCODER_SELF])
    )
    assert [step.token for step in captured] == [step.token for step in without]
    for ours, theirs in zip(captured, without, strict=True):
        assert ours.cross is not None
        assert theirs.cross is not None
        np.testing.assert_array_equal(ours.cross.values, theirs.cross.values)


@torch.inference_mode()
def test_a_source_whose_capture_fails_keeps_no_other_out(bundled, monkeypatch):
    """Both sources are read in one pass; the capture of one is a pass of its own."""

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(prefill.Prefill, "source_attention", broken)
    run = slots_run(bundled, 2)
    requests = [validate_request(request("A dog.", [kind]), bundled, "") for kind in (ENCODER_SELF, CROSS)]
    fault, sequence = run.add(requests)
    assert isinstance(fault, RuntimeError)
    assert run.runner.num_free_slots == 1
    run.finish()
    assert not run.faults
    assert any(isinstance(output, Step) for output in run.outputs[sequence])
