"""The faces of packages: `__all__` names what they export, and importing them imports neither Triton nor Numba."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from sidelight import kernels

FACES = [kernels, kernels.cpu, kernels.attention_rows, kernels.decode_attention, kernels.message_layout]


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_all_names_what_a_face_exports(face: ModuleType) -> None:
    exported = {
        name for name, value in vars(face).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(face.__all__) == exported


def test_faces_import_neither_triton_nor_numba(tmp_path: Path) -> None:
    program = "\n".join(
        [
            "import sys",
            "from sidelight import kernels",
            "from sidelight.kernels import attention_rows, cpu, decode_attention, message_layout, tools",
            "from sidelight.kernels.cpu import jit",
            "assert not {'triton', 'numba', 'llvmlite'} & sys.modules.keys()",
        ]
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
