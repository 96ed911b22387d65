"""What `layout` refuses, what it picks, and what the launcher asserts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sidelight.kernels as public
import torch
from sidelight.kernels import layout
from sidelight.kernels.common import reductions
from sidelight.kernels.message_layout import triton_kernel as layout_triton

X = torch.rand(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([], {}, "layers: at least one"),
        ([X[0]], {}, r"layers: shape must be \[B, H, Q, K\] .* not \[2, 3, 4\]"),
        ([X[:, :0]], {}, r"layers: shape .* nothing empty, not \[1, 0, 3, 4\]"),
        ([X, X[..., :3]], {}, "layers: all must have one shape"),
        ([X, X.half()], {}, "layers: all must have one shape, dtype"),
        ([X, X.to("meta")], {}, "layers: all must have one shape, dtype and device"),
        ([X.double()], {}, "layers: dtype must be float32, float16 or bfloat16, not torch.float64"),
        ([X.int()], {}, "layers: dtype"),
        ([X], {"out_dtype": torch.bfloat16}, "out_dtype: must be float32 or float16, not torch.bfloat16"),
        ([X], {"over_heads": "median"}, "over_heads: must be one of mean, .*, l2, not 'median'"),
        ([X], {"over_heads": ""}, "over_heads: must be one of"),
        ([X], {"over_heads": "mean", "over_layers": "vnorm"}, "over_layers: must be one of"),
        ([X], {"over_layers": "mean"}, "over_layers: needs over_heads"),
        ([X], {"impl": "cuda"}, "impl: must be triton or reference, not 'cuda'"),
    ],
)
def test_refused(layers: list[torch.Tensor], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout(layers, **options)


def test_a_tuple_is_as_good_as_a_list() -> None:
    for options in ({}, {"over_heads": "mean"}):
        assert torch.equal(layout((X, X), **options), layout([X, X], **options))


def test_the_reference_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_triton, "layout_triton", None)
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
        layout_triton.plan(layers, out, over_heads, over_layers)


@pytest.mark.parametrize(
    ("shape", "strides", "merged"),
    [
        ((2, 3, 4, 5), (60, 20, 5, 1), (1, 20, 0, 1)),  # rows follow one another
        ((2, 3, 4, 5), (96, 32, 8, 1), (4, 5, 8, 1)),  # rows with room behind
        ((2, 3, 1, 5), (15, 5, 99, 1), (1, 5, 0, 1)),
        ((2, 3, 4, 1), (12, 4, 7, 99), (1, 4, 0, 7)),
        ((2, 3, 1, 1), (3, 1, 7, 99), (1, 1, 0, 0)),
    ],
)
def test_rows_are_merged(shape: tuple[int, ...], strides: tuple[int, ...], merged: tuple[int, ...]) -> None:
    x = torch.empty_strided(shape, strides)
    out = torch.empty(shape[0], shape[2], shape[3], 1)
    arguments = layout_triton.plan([x], out, "mean", None).arguments
    assert tuple(arguments[name] for name in ("queries", "keys", "stride_q", "stride_k")) == merged


def test_positions_past_32_bits() -> None:
    """2^33 positions, without the memory for them: the kernel is told to count in 64 bits, the grid still fits."""
    layer = torch.empty(1, 2, 2**16, 2**17, device="meta")
    _, grid, arguments, *_ = layout_triton.plan([layer], torch.empty(1, 2**16, 2**17, 1, 2, device="meta"), None, None)
    assert str(arguments["INDEX"]) == "int64"
    assert grid[0] * arguments["BLOCK_P"] == 2**33
    assert grid[0] < 2**31


def test_one_launch_whatever_is_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = 0

    class Counted:
        def __getitem__(self, grid: tuple[int]) -> Any:
            nonlocal launches
            launches += 1
            return original[grid]

    original = layout_triton.layout_kernel
    monkeypatch.setattr(layout_triton, "layout_kernel", Counted())
    for done, options in enumerate(({}, {"over_heads": "mean"}, {"over_heads": "mean", "over_layers": "max"})):
        layout([X] * 5, impl="triton", **options)
        assert launches == done + 1


PUBLIC = [
    "ENCODINGS",
    "REDUCTIONS",
    "Encoding",
    "Launch",
    "LayerSpec",
    "Reduction",
    "AttentionTensors",
    "AttentionParams",
    "capped_attention",
]
PUBLIC += [
    "attend_to",
    "select_impl",
    "decode",
    "layout",
    "layout_into",
    "new_attention_tensors",
    "recorded",
    "rows",
    "write_probabilities",
]


def test_public_surface() -> None:
    assert sorted(public.__all__) == sorted(PUBLIC)
    assert all(hasattr(public, name) for name in PUBLIC)
    assert public.REDUCTIONS == reductions.REDUCTIONS == ("mean", "max", "min", "sum", "prod", "absmax", "l2")


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import importlib.machinery, importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "triton" else found(name, package)
import torch
from sidelight.kernels import layout
assert layout([torch.ones(1, 2, 3, 4)], over_heads="sum").eq(2).all()
try:
    layout([torch.ones(1, 2, 3, 4)], impl="triton")
except ModuleNotFoundError:
    print("as it should be")
"""

FROM_OUTSIDE = """
import sys
sys.path.insert(0, sys.argv[1])
import kernels, torch
assert kernels.__file__.startswith(sys.argv[1])
assert kernels.layout([torch.ones(1, 2, 3, 4)], over_heads="sum").eq(2).all()
assert not any(name.split(".")[0] in ("sidelight", "server", "client") for name in sys.modules)
print("as it should be")
"""


@pytest.mark.parametrize("program", [WITHOUT_TRITON, FROM_OUTSIDE], ids=["without triton", "from outside"])
def test_imported_strangely(program: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(program)
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, script, root], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "as it should be\n", done.stderr
