"""Audits a kernel that is as it should be, and the same with faults planted; reports as `sidelight kernels audit` does.

A script, run in a process of its own: spawned processes import it again, under a name by which they find `planted`. It
is given a folder, and exits as the command does.
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
    # Not before a process has said whether kernels are interpreted.
    import torch
    from audit_kernels import product
    from sidelight.kernels.tools.cases import KernelCase

    def uneven(_device: str) -> list[Launch]:
        raise ValueError("no [such] tile")

    least = (128 * 256 + 64 * 256) * 2 + 128 * 64 * 4
    good = KernelCase("product", "good", product, least, tensor_cores=True)
    yield good
    yield good._replace(case="too wide", load_bits=1024)
    yield good._replace(case="too few bytes", least_bytes=least // 2)
    yield good._replace(case="too many bytes", least_bytes=least + 1)
    # Two launches: one is as it should be, and one has too few threads for its numbers.
    yield good._replace(
        case="spills", launches=lambda device: product(device) + product(device, warps=1), least_bytes=2 * least
    )
    yield good._replace(
        case="no tensor cores",  # NVIDIA's have none for float32; AMD's do
        launches=lambda device: product(device, torch.float32, block_k=16, warps=8),
        least_bytes=(128 * 256 + 64 * 256) * 4 + 128 * 64 * 4,
    )
    yield good._replace(case="raises", launches=uneven)


def main(folder: Path) -> int:
    from rich.console import Console
    from sidelight.kernels.tools.audit import TARGETS, audit
    from sidelight.kernels.tools.audit_cli import report

    audited = audit(planted, TARGETS, folder / "cache", 2)
    console = Console(highlight=False, markup=False, width=200)
    return report(audited, console, 0.0, folder / "audit.json", folder / "audit.md")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
