"""A step waits for its device once: when what the client gets is fetched, in one copy.

There is no GPU here, but what would wait on one can be seen on a CPU: whatever turns a tensor into a Python number,
needs a tensor's numbers to know a shape, or makes a tensor of Python's numbers, which are then copied there.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import CROSS, DECODER_SELF, request
from mixed_requests import Run, slots_run
from model_zoo import FAMILIES, SOURCE
from sidelight.server.api.validation import validate_request
from sidelight.server.layers.lm_head import LMHead
from sidelight.server.models import kv_cache
from sidelight.server.request import Request
from sidelight.server.runner import decode_step, unbatched_runner
from sidelight.server.sampling import logits_ops
from sidelight.server.transfer import pack_bytes, to_host, unpack_bytes
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import text_pb2 as text
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NUMBERS = {"cross": CROSS, "decoder_self": DECODER_SELF}

# Python's ways from a tensor to a number; on the CPU some of them never reach the dispatcher.
ASKING = ["item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__", "nonzero"]
# And from numbers to a tensor: a copy that waits for what the device is doing, unless it comes from pinned memory.
MAKING = {"tensor", "as_tensor", "asarray"}
INDEXING = {"__getitem__", "__setitem__"}
# What waits on a GPU inside torch: the number itself, and shapes that depend on numbers.
WAITING = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero"}
WAITING |= {"aten::masked_select", "aten::unique_dim", "aten::_unique2", "aten::repeat_interleave.Tensor"}


def holds_list(index) -> bool:
    """Whether an index has lists, which torch turns into tensors and copies."""
    return any(isinstance(part, list) for part in (index if isinstance(index, tuple) else (index,)))


class Watch(TorchFunctionMode):
    """Writes down where Python asks a tensor for its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in MAKING or (name in INDEXING and holds_list(args[1])):
            self.seen.append(f"{name} {where()}")
        if name in ASKING and any(func is getattr(torch.Tensor, asking, None) for asking in ASKING):
            self.seen.append(f"{name} {where()}")
        return func(*args, **(kwargs or {}))


class Dispatch(TorchDispatchMode):
    """Writes down which of torch's operations would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        name = func._schema.name
        # An index of booleans needs to count them.
        by_mask = name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITING or by_mask or f"{name}.{func._schema.overload_name}" in WAITING:
            self.seen.append(f"{name} {where()}")
        return func(*args, **(kwargs or {}))


def where() -> str:
    """The code that asked, but for torch's own."""
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-6:-2]))


def count_fetches(monkeypatch, module, dispatch: Dispatch) -> list[int]:
    """Grows with each fetch of a module, by how many tensors; what waits in there, as it may, is not written down."""
    fetches: list[int] = []

    def counted(tensors):
        fetches.append(len(tensors))
        with torch._C.DisableTorchFunction():
            before = len(dispatch.seen)
            arrays = to_host(tensors)
            del dispatch.seen[before:]
        return arrays

    monkeypatch.setattr(module, "to_host", counted)
    return fetches


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """On a CPU, where to look at numbers is not to wait, NumPy counts and finds an argmax, or no logits are written."""
    monkeypatch.setattr(kv_cache, "host_array", lambda tensor: tensor)
    monkeypatch.setattr(logits_ops, "argmax", lambda logits: logits.argmax(-1))
    monkeypatch.setattr(LMHead, "argmax_query", lambda *_: None)


@pytest.fixture(
    scope="module", params=["bundled", *(name for name, family in FAMILIES.items() if family.captures_rows)]
)
def loaded(request, zoo):
    return zoo(request.param)


CAPTURES = {
    "everything": attention.Capture(),
    "reduced": attention.Capture(over_heads=attention.REDUCTION_MEAN, over_layers=attention.REDUCTION_MAX),
    "bytes": attention.Capture(encoding=attention.ENCODING_UINT8, top_k=4, row=attention.ROW_READING),
}


@pytest.mark.covering(1)
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampling"])
@pytest.mark.parametrize("capture", CAPTURES.values(), ids=CAPTURES)
def test_a_step_waits_once(loaded, capture, do_sample, monkeypatch):
    message = request(SOURCE, [NUMBERS[kind] for kind in loaded.kinds if kind != "encoder_self"])
    message.capture.MergeFrom(capture)
    message.decoding.CopyFrom(text.Decoding(max_new_tokens=6, ignore_eos=True))
    if do_sample:
        message.decoding.sampling.SetInParent()
    message.scores.extend([1, 2, 3, 4, 5, 6])
    request_ = validate_request(message, loaded, "waiting")
    watch, dispatch = Watch(), Dispatch()
    fetches = count_fetches(monkeypatch, unbatched_runner, dispatch)
    with torch.inference_mode():
        run = Run(loaded, unbatched_runner.UnbatchedRunner(loaded, 1))
        run.add_all([request_])
        for _ in range(2):  # the first steps may look at what they like
            run.step()
        fetches.clear()
        num_steps = 0
        with watch, dispatch:
            while run.live:
                run.step()
                num_steps += 1
    assert not run.faults
    assert num_steps >= 3
    assert dispatch.operations > 100
    assert len(fetches) == num_steps
    assert watch.seen == []
    assert dispatch.seen == []


@pytest.mark.covering(1)
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampling"])
def test_a_step_of_a_batch_waits_once(loaded, do_sample, monkeypatch):
    """Different captures and scores side by side, an idle slot among others, and sequences that finish early."""
    requests: list[Request] = []
    for number, capture in enumerate([*CAPTURES.values(), *CAPTURES.values(), attention.Capture(none=True)]):
        message = request(SOURCE, [] if capture.none else [NUMBERS[k] for k in loaded.kinds if k != "encoder_self"])
        message.capture.MergeFrom(capture)
        message.decoding.CopyFrom(text.Decoding(max_new_tokens=4 + number, ignore_eos=True, repetition_penalty=1.2))
        if do_sample:
            message.decoding.sampling.CopyFrom(text.Sampling(seed=number, top_k=5, temperature=0.7))
        message.scores.extend([1, 2, 3] if number % 2 else [4, 5, 6])
        requests.append(validate_request(message, loaded, str(number)))
    watch, dispatch = Watch(), Dispatch()
    fetches = count_fetches(monkeypatch, decode_step, dispatch)
    with torch.inference_mode():
        run = slots_run(loaded, len(requests))
        run.remove(run.add_all(requests)[1])
        run.step()  # what is asked for again and again is sent once
        fetches.clear()
        num_steps = 0
        with watch, dispatch:
            while run.live:
                run.step()
                num_steps += 1
    assert not run.faults
    assert num_steps > 8
    assert len(fetches) == num_steps
    assert watch.seen == []
    assert dispatch.seen == []


def test_the_watchers_see():
    """What the tests above rely on."""
    watch, dispatch = Watch(), Dispatch()
    x = torch.arange(3.0)
    with watch, dispatch:
        x.tolist()
        x.cpu()
        x.numpy()
        bool(x[0])
        int(x[1])
        x[x > 1]
        x.sum().item()
        torch.multinomial(x, 1)
        torch.tensor([1])
        x[[0, 1]]
    assert len(watch.seen) >= 8
    assert {name.split()[0] for name in watch.seen} >= {"tensor", "__getitem__"}
    dispatched = {name.split()[0] for name in dispatch.seen}
    assert "aten::index" in dispatched
    assert dispatched & {"aten::_local_scalar_dense", "aten::item"}  # the second where dynamo has been imported


def test_what_is_joined_for_the_copy_comes_apart_again():
    tensors = [
        torch.tensor([[7]]),
        torch.tensor(True),
        torch.rand(1, 0),
        torch.rand(3, 5).half(),
        torch.arange(6, dtype=torch.uint8).view(2, 3).T,
        torch.rand(5, 3)[:, 1:],
    ]
    arrays = unpack_bytes(pack_bytes(tensors).numpy(), tensors)
    for tensor, array in zip(tensors, arrays, strict=True):
        assert array.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(array, tensor.numpy())
