"""Generates Python, its type stubs and README.md from the contract: `python proto/generate.py [OUT]`.

Without OUT it writes into this folder. `make proto` and the tests for staleness both run this script, so that there is
one way to generate. The include path of protoc is this folder, which is the import path too: generated imports need no
patching.
"""

import re
import sys
import tempfile
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc
from reference import render

ROOT = Path(__file__).resolve().parent
WELL_KNOWN = Path(grpc_tools.__file__).with_name("_proto")


def generate(out: Path) -> None:
    """Writes README.md, and `*_pb2.py`, `*_pb2.pyi` and, for a service, `*_pb2_grpc` of each .proto, below `out`."""
    protos = _protos()
    services = [path for path in protos if re.search(r"^service ", path.read_text(encoding="utf-8"), re.MULTILINE)]
    _protoc(protos, f"--python_out={out}", f"--mypy_out={out}")
    _protoc(services, f"--grpc_python_out={out}", f"--mypy_grpc_out={out}")
    (out / "README.md").write_text(render(describe()), encoding="utf-8")


def describe() -> FileDescriptorSet:
    """Returns the descriptors of all files of the contract, with their comments."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "descriptors"
        _protoc(_protos(), "--include_source_info", f"--descriptor_set_out={path}")
        return FileDescriptorSet.FromString(path.read_bytes())


def _protos() -> list[Path]:
    return sorted((ROOT / "sidelight" / "v1").glob("*.proto"))


def _protoc(protos: list[Path], *outputs: str) -> None:
    scripts = Path(sys.executable).parent
    plugins = [f"--plugin={name}={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    command = ["protoc", f"-I{ROOT}", f"-I{WELL_KNOWN}", *plugins, *outputs, *map(str, protos)]
    if status := protoc.main(command):
        sys.exit(status)


if __name__ == "__main__":
    generate(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
