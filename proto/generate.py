"""Generates Python and its type stubs from the contract: `python proto/generate.py [OUT]`, by default into this folder.

The one place that knows how the code beside the contract is made: `make proto` and the test for staleness both run it.
protoc's include path is this folder, as it is the import path, so that generated imports need no patching.
"""

import re
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
WELL_KNOWN = Path(grpc_tools.__file__).with_name("_proto")


def generate(out: Path) -> None:
    """Writes `*_pb2.py` and `*_pb2.pyi` of every .proto below `out`, and `*_pb2_grpc` of those with a service."""
    protos = sorted((ROOT / "sidelight" / "v1").glob("*.proto"))
    services = [path for path in protos if re.search(r"^service ", path.read_text(encoding="utf-8"), re.MULTILINE)]
    _protoc(protos, f"--python_out={out}", f"--mypy_out={out}")
    _protoc(services, f"--grpc_python_out={out}", f"--mypy_grpc_out={out}")


def _protoc(protos: list[Path], *outputs: str) -> None:
    scripts = Path(sys.executable).parent
    plugins = [f"--plugin={name}={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    command = ["protoc", f"-I{ROOT}", f"-I{WELL_KNOWN}", *plugins, *outputs, *map(str, protos)]
    if status := protoc.main(command):
        sys.exit(status)


if __name__ == "__main__":
    generate(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
