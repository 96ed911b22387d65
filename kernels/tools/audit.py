"""Compiles every variant of every kernel for GPUs that need not be there, counts what it moves, says what is wrong.

Knows what is asked of a kernel: no spills, loads as wide as its shapes allow, tensor cores where it multiplies
matrices, and no more bytes moved than it has to. The kernels are in `cases`, the compiler is in `cross_compile`, what
an instruction is called in `disassembly`, the interpreter in `memory_traffic`. Prints nothing.

Work is done by processes of its own: whether a kernel is compiled or interpreted is decided once for each process. They
are spawned and come here first, so nothing of Triton is imported until they have said which.
"""
# Triton comes without types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from .disassembly import Code, read_amd, read_nvidia
from .occupancy import LIMITS, resident_warps

if TYPE_CHECKING:
    from .cases import KernelCase
    from .memory_traffic import Traffic

T = TypeVar("T")

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


class Built(NamedTuple):
    """One launch of a variant, compiled for one target."""

    name: str  # of the kernel's function
    code: Code
    shared: int  # bytes of a block
    resident_warps: int
    most_warps: int


class Failure(NamedTuple):
    """Instead of figures, where there are none."""

    message: str


class Audited(NamedTuple):
    """All that is known of one variant."""

    variant: KernelCase
    built: dict[str, list[Built] | Failure]  # by target, in the order of the launches
    traffic: Traffic | Failure


def audit(
    variants: Callable[[], Iterable[KernelCase]],
    targets: Sequence[str],
    cache: Path,
    processes: int,
    tell: Callable[[str], object] = lambda _: None,
) -> list[Audited]:
    """Compiles and counts all variants, telling what was just done.

    The variants are given by a function of a module, for each process to call. What is compiled goes into `cache`.
    """
    # Spawned even where forking is usual: a child must import Triton anew.
    context = multiprocessing.get_context("spawn")
    cached = {"TRITON_CACHE_DIR": str(cache)}
    with (
        ProcessPoolExecutor(processes, context, _prepare, ({**cached, "TRITON_INTERPRET": None},)) as compiling,
        ProcessPoolExecutor(1, context, _prepare, ({**cached, "TRITON_INTERPRET": "1"},)) as counting,
    ):
        try:
            asked: list[tuple[KernelCase, dict[str, Future[list[Built] | Failure]], Future[Traffic | Failure]]] = []
            for place, variant in enumerate(variants()):
                compiled = {target: compiling.submit(_build, variants, place, target) for target in targets}
                asked.append((variant, compiled, counting.submit(_count, variants, place)))
            found: list[Audited] = []
            for variant, compiled, counted in asked:
                tell(f"{variant.kernel}, {variant.case}")
                built = {target: _answer(future) for target, future in compiled.items()}
                found.append(Audited(variant, built, _answer(counted)))
            return found
        except BaseException:
            # Or else leaving would wait for all that has been asked.
            for pool in (compiling, counting):
                pool.shutdown(wait=False, cancel_futures=True)
            raise


def _answer(future: Future[T]) -> T | Failure:
    try:
        return future.result()
    except BrokenExecutor:
        return Failure("its process, or one before it, died")


def _prepare(environment: dict[str, str | None]) -> None:
    """What a new process does before it imports Triton."""
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    import torch

    torch.set_num_threads(1)  # there are as many processes as cores


def _variant(variants: Callable[[], Iterable[KernelCase]], place: int) -> KernelCase:
    return list(variants())[place]


def _build(variants: Callable[[], Iterable[KernelCase]], place: int, target: str) -> list[Built] | Failure:
    try:
        return build(_variant(variants, place), target)
    except Exception as error:  # whatever the compiler says, it concerns this variant only; and not all can be pickled
        return Failure(_told(error))


def build(variant: KernelCase, target: str) -> list[Built]:
    """Compiles the launches of a variant for a target."""
    from .cross_compile import compiled, compiling_for

    with compiling_for(target):
        return [_built(compiled(launch), target) for launch in variant.launches("meta")]


def _built(kernel: Any, target: str) -> Built:
    """The figures of one of Triton's CompiledKernels."""
    metadata = kernel.metadata
    code = _nvidia_code(kernel.asm["cubin"]) if "cubin" in kernel.asm else read_amd(kernel.asm["amdgcn"])
    warps: int = metadata.num_warps
    shared: int = metadata.shared
    tensor_memory: int = getattr(metadata, "tmem_size", 0)  # in columns; AMD GPUs have none
    resident = resident_warps(target, warps, code.registers, shared, tensor_memory)
    return Built(metadata.name, code, shared, resident, LIMITS[target].warps)


@lru_cache(maxsize=1024)  # variants share kernels
def _nvidia_code(cubin: bytes) -> Code:
    """Disassembled by cuobjdump, which comes with Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        # It finds nvdisasm by PATH.
        environment = {**os.environ, "PATH": os.pathsep.join([str(tools), os.environ.get("PATH", os.defpath)])}
        done = subprocess.run(
            [tools / "cuobjdump", "-sass", "-res-usage", file],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
    return read_nvidia(done.stdout)


def _count(variants: Callable[[], Iterable[KernelCase]], place: int) -> Traffic | Failure:
    try:
        return count(_variant(variants, place))
    except Exception as error:  # as above
        return Failure(_told(error))


def count(variant: KernelCase) -> Traffic:
    """Counts what the launches of a variant move, all of them together. Kernels must be interpreted in this process."""
    from triton.runtime.jit import JITFunction

    from .memory_traffic import count as count_run

    launches = variant.launches("cpu")
    if any(isinstance(launch.kernel, JITFunction) for launch in launches):
        raise RuntimeError("TRITON_INTERPRET was not set when the kernel's module was imported")
    # The interpreter multiplies bfloat16 by its bits: numbers may overflow, but what is moved does not depend on them.
    with np.errstate(all="ignore"):
        return count_run(lambda: [launch.run() for launch in launches])


def _told(error: Exception) -> str:
    """One line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


def problems(audited: Audited) -> list[str]:
    """What is wrong with a variant, one line each; none if it is as it should be.

    Widths and tensor cores are asked of a variant's launches together: one that only gathers a few partial results need
    not have them.
    """
    variant, built, traffic = audited
    said: list[str] = []
    for target, launches in built.items():
        if isinstance(launches, Failure):
            said.append(f"{target}: does not compile: {launches.message}")
            continue
        for launch in launches:
            if launch.code.spilled:
                said.append(f"{target}: {launch.name} spills ({launch.code.spilled})")
            if not launch.resident_warps:
                said.append(f"{target}: {launch.name} does not fit on a multiprocessor")
        widest = max((bits for launch in launches for bits in launch.code.loads), default=0)
        if widest < variant.load_bits:
            said.append(f"{target}: loads {widest} bits at once, not {variant.load_bits}")
        if variant.tensor_cores and not any(launch.code.tensor_cores for launch in launches):
            said.append(f"{target}: uses no tensor cores")
    if isinstance(traffic, Failure):
        said.append(f"does not run: {traffic.message}")
    else:
        moved = traffic.loaded + traffic.stored
        if moved > variant.moved_at_most * variant.least_bytes:
            said.append(
                f"moves {moved:,} bytes, more than {variant.moved_at_most:g} times the least, {variant.least_bytes:,}"
            )
        if moved < variant.least_bytes:  # so it is not the least: what is compared with is wrong, or not all was run
            said.append(f"moves {moved:,} bytes, fewer than what is said to be the least, {variant.least_bytes:,}")
    return [f"{variant.kernel}, {variant.case}: {each}" for each in said]
