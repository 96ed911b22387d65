"""The check of sizes finds what is too large, and the code is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import sizes


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sizes, "ROOT", tmp_path)
    return tmp_path


def write(root: Path, name: str, text: str) -> str:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return name


LONG_FUNCTION = "def long():\n" + "    pass\n" * sizes.MAX_FUNCTION_LINES
LONG_CLASS = "class Long:\n" + "    def short(self):\n        pass\n" * (sizes.MAX_CLASS_LINES // 2)
LONG_FILE = "x = 1\n" * (sizes.MAX_FILE_LINES + 1)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (LONG_FUNCTION, "function long"),
        (f"async {LONG_FUNCTION}", "function long"),
        (LONG_CLASS, "class Long"),
        (LONG_FILE, "401 lines"),
    ],
)
def test_large_code_is_found(root, text, what):
    (problem,) = sizes.problems([write(root, "server/module.py", text)])
    assert what in problem


def test_code_at_the_limits_is_fine(root):
    function = LONG_FUNCTION.removesuffix("    pass\n")
    assert not list(
        sizes.problems([write(root, "server/module.py", function), write(root, "server/file.py", LONG_FILE[6:])])
    )


def test_compiled_kernels_may_be_long(root):
    names = ["kernels/attention_rows/triton_kernel.py", "kernels/common/triton_reduce.py", "kernels/cpu/jit/matmul.py"]
    assert not list(sizes.problems([write(root, name, LONG_FUNCTION) for name in names]))


def test_folders_with_many_modules_are_found(root):
    names = [write(root, f"server/api/module{number}.py", "") for number in range(sizes.MAX_MODULES)]
    names.append(write(root, "server/api/__init__.py", ""))
    assert not list(sizes.problems(names))
    (problem,) = sizes.problems([*names, write(root, "server/api/more.py", "")])
    assert problem.startswith("server/api: 15 modules")
