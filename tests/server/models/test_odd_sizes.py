"""Models of odd sizes: CPU programs read and write within their buffers alone, and neighbours change no bit.

`SIDELIGHT_SWEEP=300 pytest tests/server/models/test_odd_sizes.py` runs 300 models; `tests/support/sweep.py` does so
by hand.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from combinations import slow_except
from guard_pages import GuardedMemory
from mixed_requests import mixed_requests, outputs_alone, then_one_by_one, together
from model_zoo import build_model
from odd_models import OddModel, build_odd_model
from sidelight.kernels import AttentionParams, attend_to
from sidelight.kernels.cpu import is_supported
from sidelight.server.api.validation import validate_request
from sidelight.server.capture import attention_function as attention
from sidelight.server.errors import ErrorCode, RequestError
from sidelight.server.models import load
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2
from sweep import assert_equal, sweep

SWEEP = Path(__file__).parents[2] / "support" / "sweep.py"
needs_programs = pytest.mark.skipif(not is_supported(int8=True), reason="no programs on this machine")

# Sizes at which torch ran int8 models, and requests changed one another's numbers.
MARIAN = OddModel(
    family="marian",
    seed=1,
    width=186,
    encoder_heads=3,
    decoder_heads=1,
    encoder_feed_forward=16,
    decoder_feed_forward=65,
    encoder_layers=1,
    decoder_layers=2,
    vocabulary=127,
    positions=150,
    activation="relu",
    precision="int8",
    slots=5,
    threads=1,
)
MBART = replace(MARIAN, family="mbart", width=396, decoder_heads=4, vocabulary=63, slots=2)
PEGASUS = replace(
    MARIAN, family="pegasus", width=90, encoder_heads=1, decoder_heads=3, vocabulary=13, precision="float32", slots=1
)


@needs_programs
@pytest.mark.timeout(60 + 20 * int(os.environ.get("SIDELIGHT_SWEEP", "1")))
def test_random_models_stay_between_guard_pages():
    """In a process of its own, since a guard page ends it."""
    count = os.environ.get("SIDELIGHT_SWEEP", "1")
    command = [sys.executable, str(SWEEP), "--models", count, "--seed", "1000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=SWEEP.parent, env=environment, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert f"{count} of {count} models passed" in run.stdout


@pytest.mark.parametrize("offset", [-1, mmap.PAGESIZE])
def test_guard_pages_end_a_process(offset):
    """Otherwise the sweep would prove nothing."""
    buffer = GuardedMemory(0).empty(mmap.PAGESIZE // 4)  # both of its ends are guard pages
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which the child does not have
        child = os.fork()
    if not child:
        faulthandler.disable()
        ctypes.memset(buffer.data_ptr() + offset, 1, 1)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGSEGV


def test_a_write_beside_a_buffer_is_found():
    memory = GuardedMemory(0)
    for _ in range(5):
        buffer = memory.empty(10)
        is_first = buffer.data_ptr() % mmap.PAGESIZE == 0
        ctypes.memset(buffer.data_ptr() + (40 if is_first else -1), 1, 1)
        del buffer
        assert memory.faults.pop() == "written beside a buffer"


@pytest.mark.slow
@pytest.mark.parametrize(
    "odd", slow_except([MARIAN, MBART, replace(MBART, activation="gelu_new", positions=64)], [MBART])
)
def test_neighbours_change_no_bit_in_int8(odd):
    """Whether CPU programs or layers of torch run the model."""
    has_program = is_supported(int8=True) and odd.activation == "relu"
    assert sweep(odd) == f"int8, {'programs' if has_program else 'layers of torch'}"


# T5 has a bias; Gemma 2 has a cap, windows, and heads that share keys.
@pytest.mark.parametrize("family", ["t5", "gemma2"])
def test_neighbours_change_no_bit_of_other_families_in_int8(family, tmp_path):
    loaded = load(build_model(family, tmp_path), dtype="int8")
    requests = mixed_requests(loaded, family, 8)
    alone = [together(loaded, [request], then_one_by_one([]), slots=request.num_sequences)[0] for request in requests]
    for number, outputs in together(loaded, requests, then_one_by_one([(3, -1, -1), (0, -1, 2), (2, -1, 3)])).items():
        assert len(outputs) == len(alone[number])
        for index, (output, expected) in enumerate(zip(outputs, alone[number], strict=True)):
            assert_equal(output, expected, f"request {number}, output {index}", tolerance=0)


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"softcap": 2.0}, {"window": 3}, {"group": 2}])
def test_attention_row_by_row_is_the_attention_of_the_batch(options, monkeypatch):
    torch.manual_seed(0)
    heads, size, lengths = 4, 37, torch.tensor([1, 37, 16, 20])
    query, key = torch.randn(4, heads, 1, 10), torch.randn(4, heads // options.get("group", 1), 50, 10)[:, :, :size]
    value, places = torch.randn(4, key.shape[1], size, 7), torch.arange(size)
    seen = places < lengths[:, None]
    if "window" in options:
        seen &= places >= lengths[:, None] - options["window"]
    bias = torch.randn(1, heads, 1, size) if "bias" in options else None
    params = AttentionParams(0.3, options.get("softcap"), bias, seen[:, None, None])
    expected = attend_to(query, key, value, params)
    for is_there in (True, False):
        if is_there and not is_supported():
            continue
        with monkeypatch.context() as patch:
            patch.setattr(attention, "is_supported", lambda is_there=is_there: is_there)
            made = attention._attend_by_rows(query, key, value, params, lengths)
        for ours, theirs in zip(made, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_no_token_left_to_draw(tmp_path):
    """Neither the model nor the slot is at fault: the text has all 13 tokens, and no token may come again."""
    loaded = load(build_odd_model(PEGASUS, tmp_path))
    request = pb.AttributeRequest()
    request.source.token_ids.ids.extend([5, 6, 7, 1])
    request.decoding.CopyFrom(text_pb2.Decoding(max_new_tokens=40, no_repeat_ngram_size=1, ignore_eos=True))
    greedy = validate_request(request, loaded, "r")  # goes on with the first token, as `generate` does
    assert len(together(loaded, [greedy], then_one_by_one([]))[0]) == 42
    request.decoding.sampling.seed = 3
    job = validate_request(request, loaded, "r")
    with torch.inference_mode(), pytest.raises(RequestError) as alone:
        outputs_alone(loaded, job)
    assert (alone.value.code, alone.value.field) == (ErrorCode.INVALID_ARGUMENT, "decoding")
    with pytest.raises(AssertionError, match="no token to draw"):
        together(loaded, [job, greedy], then_one_by_one([(2, -1, -1)]))
