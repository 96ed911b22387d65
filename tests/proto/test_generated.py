"""The generated files beside the contract (Python, stubs, README.md) are the files that the generator makes today."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

PROTO = Path(__file__).parents[2] / "proto"
CONTRACT = PROTO / "sidelight" / "v1"
FOLDERS = sorted(path.name for path in (PROTO / "sidelight").iterdir() if any(path.glob("*.proto")))


def generated_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if re.search(r"_pb2(_grpc)?\.pyi?$", path.name)}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    run = subprocess.run([sys.executable, PROTO / "generate.py", out], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return out


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_proto_has_its_generated_files_and_none_is_left_over(out: Path, folder: str):
    fresh = generated_in(out / "sidelight" / folder)
    assert sorted(generated_in(PROTO / "sidelight" / folder)) == sorted(fresh)
    for path in (PROTO / "sidelight" / folder).glob("*.proto"):
        assert {f"{path.stem}_pb2.py", f"{path.stem}_pb2.pyi"} <= fresh.keys()


@pytest.mark.parametrize("folder", FOLDERS)
def test_committed_code_is_fresh(out: Path, folder: str):
    fresh, committed = generated_in(out / "sidelight" / folder), generated_in(PROTO / "sidelight" / folder)
    stale = [name for name in sorted(fresh) if committed.get(name) != fresh[name]]
    assert not stale, "run `make proto`"


def test_the_committed_readme_is_fresh(out: Path):
    assert (PROTO / "README.md").read_text(encoding="utf-8") == (out / "README.md").read_text(encoding="utf-8"), (
        "run `make proto`"
    )


def elements(files: FileDescriptorSet) -> Iterator[tuple[str, str, Any]]:
    """The full name, the comment and the descriptor of each service, method, message, oneof, field, enum and value."""
    for file in files.file:
        comments = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
        for path, name, descriptor in walk(file, (), ""):
            yield f"{file.name}: {name}", comments.get(path, ""), descriptor


def walk(descriptor: Any, path: tuple[int, ...], prefix: str) -> Iterator[tuple[tuple[int, ...], str, Any]]:
    lists = ("message_type", "enum_type", "service", "method", "field", "value", "oneof_decl", "nested_type")
    for field, values in descriptor.ListFields():
        if field.name not in lists:
            continue
        for index, value in enumerate(values):
            name = f"{prefix}{value.name}"
            yield (*path, field.number, index), name, value
            yield from walk(value, (*path, field.number, index), f"{name}.")


def test_everything_in_the_contract_has_a_comment_and_a_place_in_the_readme(tmp_path: Path):
    protos = [str(path) for path in CONTRACT.glob("*.proto")]
    includes = [f"-I{PROTO}", f"-I{Path(protoc.__file__).with_name('_proto')}"]
    path = tmp_path / "descriptors"
    assert protoc.main(["protoc", *includes, "--include_source_info", f"--descriptor_set_out={path}", *protos]) == 0
    # protoc makes a oneof for each optional field, and calls it `_name`.
    files = FileDescriptorSet.FromString(path.read_bytes())
    contract = [element for element in elements(files) if not element[2].name.startswith("_")]
    assert {type(descriptor).__name__ for _, _, descriptor in contract} == {
        f"{kind}DescriptorProto" for kind in ("", "Field", "Oneof", "Enum", "EnumValue", "Service", "Method")
    }
    assert not [name for name, comment, _ in contract if not comment.strip()]

    readme = (PROTO / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#{3,4} (\w+)$", readme, re.MULTILINE)
    assert len(headings) == len(set(headings))  # so that each link has one target
    kinds = ("DescriptorProto", "EnumDescriptorProto", "ServiceDescriptorProto", "MethodDescriptorProto")
    assert sorted(headings) == sorted(element.name for _, _, element in contract if type(element).__name__ in kinds)
    rows = re.findall(r"^\| \d+ \| (?:↳ )?`(\w+)` \|", readme, re.MULTILINE)
    assert sorted(rows) == sorted(
        element.name
        for _, _, element in contract
        if type(element).__name__ in ("FieldDescriptorProto", "EnumValueDescriptorProto")
    )
