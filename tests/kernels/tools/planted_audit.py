"""Audits a good kernel and the same kernel with planted faults, and reports as `sidelight kernels audit` does.

A script for a process of its own: spawned processes import it again, under a name by which they find `planted`. Its
argument is a folder, and its exit status is that of the command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidelight.kernels.common.launch import Launch
    from sidelight.kernels.tools.cases import KernelCase


def planted() -> Iterator[KernelCase]:
    # Imported only after a process has chosen whether kernels are interpreted.
    import torch
    from audit_kernels import product
    from sidelight.kernels.tools.cases import KernelCase

    def failing(_device: str) -> list[Launch]:
        raise ValueError("no [such] tile")

    least = (128 * 256 + 64 * 256) * 2 + 128 * 64 * 4
    good = KernelCase("product", "good", product, least, tensor_cores=True)
    yield good
    yield good._replace(name="too wide", load_bits=1024)
    yield good._replace(name="too few bytes", least_bytes=least // 2)
    yield good._replace(name="too many bytes", least_bytes=least + 1)
    # Two launches: a good one, and one with too few threads for its numbers.
    yield good._replace(
        name="spills", launches=lambda device: product(device) + product(device, warps=1), least_bytes=2 * least
    )
    yield good._replace(
        name="no tensor cores",  # NVIDIA's GPUs have none for float32; AMD's have
        launches=lambda device: product(device, torch.float32, block_k=16, warps=8),
        least_bytes=(128 * 256 + 64 * 256) * 4 + 128 * 64 * 4,
    )
    yield good._replace(name="raises", launches=failing)


def main(folder: Path) -> int:
    from rich.console import Console
    from sidelight.kernels.tools.audit import TARGETS, audit
    from sidelight.kernels.tools.audit_report import report

    audits = audit(planted, TARGETS, folder / "cache", 2)
    console = Console(highlight=False, markup=False, width=200)
    return report(audits, console, 0.0, folder / "audit.json", folder / "audit.md")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
