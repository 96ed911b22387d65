"""What the wheel would hold is what the folders hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"sidelight.client": "client", "sidelight.kernels": "kernels", "sidelight.server": "server"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is newer")
def test_every_folder_of_code_is_in_the_wheel():
    import tomllib

    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert set(setup["packages"]) == set(setup["package-dir"])
    mapped = {ROOT / folder for folder in setup["package-dir"].values()}
    holding_code = {path.parent for folder in FOLDERS.values() for path in (ROOT / folder).rglob("*.py")}
    holding_code -= {*(ROOT / "client" / "examples").rglob("*")}  # programs, which no package holds
    assert holding_code <= mapped
    assert all(folder.is_dir() for folder in mapped)
