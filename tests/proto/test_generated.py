"""The Python beside the contract is what the generator makes of it today."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROTO = Path(__file__).parents[2] / "proto"
CONTRACT = PROTO / "sidelight" / "v1"


def generated_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if re.search(r"_pb2(_grpc)?\.pyi?$", path.name)}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("generated")
    made = subprocess.run([sys.executable, PROTO / "generate.py", out], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return generated_in(out / "sidelight" / "v1")


def test_each_proto_has_its_generated_files_and_none_is_left_over(fresh: dict[str, bytes]):
    assert sorted(generated_in(CONTRACT)) == sorted(fresh)
    for path in CONTRACT.glob("*.proto"):
        assert {f"{path.stem}_pb2.py", f"{path.stem}_pb2.pyi"} <= fresh.keys()


def test_committed_code_is_fresh(fresh: dict[str, bytes]):
    committed = generated_in(CONTRACT)
    stale = [name for name in sorted(fresh) if committed.get(name) != fresh[name]]
    assert not stale, "run `make proto`"
