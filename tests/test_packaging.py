"""What the wheel would hold is what the folders hold."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"sidelight.client": "client", "sidelight.kernels": "kernels", "sidelight.server": "server"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is newer")
def test_every_folder_of_code_is_in_the_wheel():
    import tomllib

    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert set(setup["packages"]) == set(setup["package-dir"])
    mapped = {ROOT / folder for folder in setup["package-dir"].values()}
    holding_code = {path.parent for folder in FOLDERS.values() for path in (ROOT / folder).rglob("*.py")}
    assert holding_code <= mapped
    assert all(folder.is_dir() for folder in mapped)


def test_data_flows_one_way():
    """client -> proto, server -> kernels: nobody imports upwards, and client and server meet only in proto."""
    allowed = {"client": {"client"}, "kernels": {"kernels"}, "server": {"server", "kernels"}}
    for folder, partners in allowed.items():
        for path in (ROOT / folder).rglob("*.py"):
            for match in re.finditer(r"^\s*from \.\.(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
                if (path.name, match[1]) == ("commands.py", "server"):
                    continue  # the one seam: `sidelight serve` and `kernels` hand over to the server's own commands
                assert match[1] in partners, f"{path} imports {match[0].strip()}"


def test_kernels_import_nothing_of_ours():
    for path in (ROOT / "kernels").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(?:from|import) (?:sidelight|\.\.)", text, re.MULTILINE), path


def test_the_readmes_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
