"""What `layout_into` refuses, which implementation it chooses, and what the launcher asserts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import layout
from sidelight.kernels import layout_into, new_attention_tensors
from sidelight.kernels.message_layout import triton_kernel

X = torch.rand(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([], {}, "layers: at least one"),
        ([X[0]], {}, r"layers: shape must be \[B, H, Q, K\] .* not \[2, 3, 4\]"),
        ([X[:, :0]], {}, r"layers: shape .* no empty axis, not \[1, 0, 3, 4\]"),
        ([X, X[..., :3]], {}, "layers: all must have one shape"),
        ([X, X.half()], {}, "layers: all must have one shape, dtype"),
        ([X, X.to("meta")], {}, "layers: all must have one shape, dtype and device"),
        ([X.double()], {}, "layers: dtype must be float32, float16 or bfloat16, not torch.float64"),
        ([X.int()], {}, "layers: dtype"),
        ([X], {"over_heads": "median"}, "over_heads: must be one of mean, .*, l2, not 'median'"),
        ([X], {"over_heads": ""}, "over_heads: must be one of"),
        ([X], {"over_heads": "mean", "over_layers": "vnorm"}, "over_layers: must be one of"),
        ([X], {"over_layers": "mean"}, "over_layers: needs over_heads"),
        ([X], {"impl": "cuda"}, "impl: must be triton or reference, not 'cuda'"),
    ],
)
def test_refused(layers: list[torch.Tensor], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        layout_into(layers, new_attention_tensors(1, 3, 4, 2), **options)


def test_layers_may_be_a_tuple() -> None:
    for options in ({}, {"over_heads": "mean"}):
        assert torch.equal(layout((X, X), **options), layout([X, X], **options))


def test_the_reference_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "layout_triton", None)
    assert layout([X]).shape == (1, 3, 4, 1, 2)
    with pytest.raises(TypeError):
        layout([X], impl="triton")


@pytest.mark.parametrize(
    ("layers", "out", "over_heads", "over_layers"),
    [
        ([X], torch.zeros(3, 4, 1, 3), None, None),  # too many
        ([X], torch.zeros(1, 3, 4, 2), "mean", None),
        ([X], torch.zeros(1, 3, 2, 4).transpose(2, 3), None, None),  # not contiguous
        ([X, X.half()], torch.zeros(1, 3, 4, 2, 2), None, None),
        ([X, X[..., :3]], torch.zeros(1, 3, 4, 2, 2), None, None),
        ([X], torch.zeros(1, 3, 4, 1, 2, device="meta"), None, None),
        ([X], torch.zeros(1, 3, 4), None, "mean"),
        ([X], torch.zeros(1, 3, 4), "median", None),
    ],
)
def test_the_launcher_asserts(layers: Any, out: torch.Tensor, over_heads: Any, over_layers: Any) -> None:
    with pytest.raises(AssertionError):
        triton_kernel.plan(layers, out, over_heads, over_layers)


@pytest.mark.parametrize(
    ("shape", "strides", "merged"),
    [
        ((2, 3, 4, 5), (60, 20, 5, 1), (1, 20, 0, 1)),  # rows follow one another
        ((2, 3, 4, 5), (96, 32, 8, 1), (4, 5, 8, 1)),  # rows with a gap after each
        ((2, 3, 1, 5), (15, 5, 99, 1), (1, 5, 0, 1)),
        ((2, 3, 4, 1), (12, 4, 7, 99), (1, 4, 0, 7)),
        ((2, 3, 1, 1), (3, 1, 7, 99), (1, 1, 0, 0)),
    ],
)
def test_rows_are_merged(shape: tuple[int, ...], strides: tuple[int, ...], merged: tuple[int, ...]) -> None:
    x = torch.empty_strided(shape, strides)
    out = torch.empty(shape[0], shape[2], shape[3], 1)
    arguments = triton_kernel.plan([x], out, "mean", None).arguments
    assert tuple(arguments[name] for name in ("queries", "keys", "stride_q", "stride_k")) == merged


def test_positions_past_32_bits() -> None:
    """2^33 positions, without their memory: the kernel counts in 64 bits, and the grid still fits."""
    layer = torch.empty(1, 2, 2**16, 2**17, device="meta")
    _, grid, arguments, *_ = triton_kernel.plan([layer], torch.empty(1, 2**16, 2**17, 1, 2, device="meta"), None, None)
    assert str(arguments["INDEX"]) == "int64"
    assert grid[0] * arguments["BLOCK_P"] == 2**33
    assert grid[0] < 2**31


def test_one_launch_whatever_is_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = 0

    class CountingKernel:
        def __getitem__(self, grid: tuple[int]) -> Any:
            nonlocal launches
            launches += 1
            return original[grid]

    original = triton_kernel.layout_kernel
    monkeypatch.setattr(triton_kernel, "layout_kernel", CountingKernel())
    for num_before, options in enumerate(({}, {"over_heads": "mean"}, {"over_heads": "mean", "over_layers": "max"})):
        layout([X] * 5, impl="triton", **options)
        assert launches == num_before + 1


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import importlib.machinery, importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "triton" else find_spec(name, package)
import torch
from sidelight.kernels import layout_into, new_attention_tensors
out = new_attention_tensors(1, 3, 4, 1)
layout_into([torch.ones(1, 2, 3, 4)], out, over_heads="sum")
assert out.values.eq(2).all()
try:
    layout_into([torch.ones(1, 2, 3, 4)], out, over_heads="sum", impl="triton")
except ModuleNotFoundError:
    print("passed")
"""

FROM_OUTSIDE = """
import sys
sys.path.insert(0, sys.argv[1])
import kernels, torch
assert kernels.__file__.startswith(sys.argv[1])
out = kernels.new_attention_tensors(1, 3, 4, 1)
kernels.layout_into([torch.ones(1, 2, 3, 4)], out, over_heads="sum")
assert out.values.eq(2).all()
assert not any(name.split(".")[0] in ("sidelight", "server", "client") for name in sys.modules)
print("passed")
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [WITHOUT_TRITON, FROM_OUTSIDE], ids=["without triton", "from outside"])
def test_unusual_imports(program: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(program)
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, script, root], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "passed\n", done.stderr
