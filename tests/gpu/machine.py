"""Says what this machine is: versions, the device, and where Sidelight comes from."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys

import torch
from report import PartReport

PACKAGES = ("torch", "triton", "transformers", "numpy", "numba", "grpcio", "protobuf", "sentencepiece", "tokenizers")


def main() -> int:
    report = PartReport("machine")
    if report.device == "cuda" and not torch.cuda.is_available():
        report.fail("torch finds no GPU")
        return 1
    report.add("device", torch.cuda.get_device_name() if report.device == "cuda" else "cpu")  # first, whatever comes
    import sidelight.server
    from sidelight.kernels.tools.bench import machine

    found = machine(report.device)
    found |= {package: _version(package) for package in PACKAGES}
    found |= {"sidelight": sidelight.server.__file__ or "", "kernel": platform.release(), "cores": str(os.cpu_count())}
    if report.device == "cuda":
        found["memory"] = f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
    report.add("machine", found)
    report.add_note(
        ", ".join(f"{name} {value}" for name, value in found.items() if name not in ("sidelight", "kernel"))
    )
    # What Hugging Face's look-up of `kernels` finds: never a folder of the checkout.
    spec = importlib.util.find_spec("kernels")
    if spec is not None and "site-packages" not in str(spec.origin):
        report.fail(f"`import kernels` finds {list(spec.submodule_search_locations or [])}")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    sys.exit(main())
