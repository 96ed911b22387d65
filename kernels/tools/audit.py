"""Compiles every case of every kernel for GPUs that need not be there, counts the bytes it moves, and finds problems.

A kernel must not spill, must load as many bits at once as its shapes allow, must use tensor cores where it multiplies
matrices, and must not move more bytes than necessary. The kernels are in `cases`.

The work runs in separate processes: whether a kernel is compiled or interpreted is decided once for each process.
Processes are spawned and import this module first, so nothing imports Triton before a process has chosen.
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


class CompiledLaunch(NamedTuple):
    """One launch of a case, compiled for one target."""

    name: str  # the name of the kernel's function
    code: Code
    shared: int  # bytes of shared memory of a block
    resident_warps: int
    most_warps: int


class Failure(NamedTuple):
    """Why there are no figures."""

    message: str


class Audit(NamedTuple):
    """The figures of one case."""

    case: KernelCase
    launches: dict[str, list[CompiledLaunch] | Failure]  # by target, in the order of the launches
    traffic: Traffic | Failure


def audit(
    cases: Callable[[], Iterable[KernelCase]],
    targets: Sequence[str],
    cache: Path,
    processes: int,
    on_case: Callable[[str], object] = lambda _: None,
) -> list[Audit]:
    """Compiles and counts all cases. Calls `on_case` with each case that it waits for.

    `cases` is a function of a module, which each process calls. Compiled kernels go into `cache`.
    """
    # Spawned even where forking is the default: a child must import Triton anew.
    context = multiprocessing.get_context("spawn")
    cached = {"TRITON_CACHE_DIR": str(cache)}
    with (
        ProcessPoolExecutor(processes, context, _prepare, ({**cached, "TRITON_INTERPRET": None},)) as compiling,
        ProcessPoolExecutor(1, context, _prepare, ({**cached, "TRITON_INTERPRET": "1"},)) as counting,
    ):
        try:
            submitted: list[
                tuple[KernelCase, dict[str, Future[list[CompiledLaunch] | Failure]], Future[Traffic | Failure]]
            ] = []
            for index, case in enumerate(cases()):
                futures = {target: compiling.submit(_compile_case, cases, index, target) for target in targets}
                submitted.append((case, futures, counting.submit(_count_case, cases, index)))
            audits: list[Audit] = []
            for case, futures, traffic in submitted:
                on_case(f"{case.kernel}, {case.name}")
                launches = {target: _result(future) for target, future in futures.items()}
                audits.append(Audit(case, launches, _result(traffic)))
            return audits
        except BaseException:
            # Otherwise leaving would wait for all that is submitted.
            for pool in (compiling, counting):
                pool.shutdown(wait=False, cancel_futures=True)
            raise


def _result(future: Future[T]) -> T | Failure:
    try:
        return future.result()
    except BrokenExecutor:
        return Failure("its process, or one before it, died")


def _prepare(environment: dict[str, str | None]) -> None:
    """Prepares a new process before it imports Triton."""
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    import torch

    torch.set_num_threads(1)  # there are as many processes as cores


def _case(cases: Callable[[], Iterable[KernelCase]], index: int) -> KernelCase:
    return list(cases())[index]


def _compile_case(cases: Callable[[], Iterable[KernelCase]], index: int, target: str) -> list[CompiledLaunch] | Failure:
    try:
        return compile_case(_case(cases, index), target)
    except Exception as error:  # any error of the compiler concerns this case only; and not all errors can be pickled
        return Failure(_describe(error))


def compile_case(case: KernelCase, target: str) -> list[CompiledLaunch]:
    """Compiles the launches of a case for a target."""
    from .cross_compile import compile_launch, compiling_for

    with compiling_for(target):
        return [_figures(compile_launch(launch), target) for launch in case.launches("meta")]


def _figures(kernel: Any, target: str) -> CompiledLaunch:
    """The figures of a CompiledKernel of Triton."""
    metadata = kernel.metadata
    code = _nvidia_code(kernel.asm["cubin"]) if "cubin" in kernel.asm else read_amd(kernel.asm["amdgcn"])
    warps: int = metadata.num_warps
    shared: int = metadata.shared
    tensor_memory: int = getattr(metadata, "tmem_size", 0)  # in columns; AMD GPUs have none
    resident = resident_warps(target, warps, code.registers, shared, tensor_memory)
    return CompiledLaunch(metadata.name, code, shared, resident, LIMITS[target].warps)


@lru_cache(maxsize=1024)  # cases share kernels
def _nvidia_code(cubin: bytes) -> Code:
    """Disassembles a cubin with cuobjdump, which comes with Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        # cuobjdump finds nvdisasm by PATH.
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


def _count_case(cases: Callable[[], Iterable[KernelCase]], index: int) -> Traffic | Failure:
    try:
        return count_case(_case(cases, index))
    except Exception as error:  # as in _compile_case
        return Failure(_describe(error))


def count_case(case: KernelCase) -> Traffic:
    """Counts the bytes that all launches of a case move. Kernels must be interpreted in this process."""
    from triton.runtime.jit import JITFunction

    from .memory_traffic import count

    launches = case.launches("cpu")
    if any(isinstance(launch.kernel, JITFunction) for launch in launches):
        raise RuntimeError("TRITON_INTERPRET was not set when the kernel's module was imported")
    # The interpreter multiplies bfloat16 by its bits: numbers may overflow, but the bytes moved do not depend on them.
    with np.errstate(all="ignore"):
        return count(lambda: [launch.run() for launch in launches])


def _describe(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


def find_problems(audit: Audit) -> list[str]:
    """Returns what is wrong with a case, one line for each problem.

    Widths and tensor cores are required of the launches of a case together: a launch that only gathers a few partial
    results need not have them.
    """
    case = audit.case
    problems: list[str] = []
    for target, launches in audit.launches.items():
        if isinstance(launches, Failure):
            problems.append(f"{target}: does not compile: {launches.message}")
            continue
        for launch in launches:
            if launch.code.spilled:
                problems.append(f"{target}: {launch.name} spills ({launch.code.spilled})")
            if not launch.resident_warps:
                problems.append(f"{target}: {launch.name} does not fit on a multiprocessor")
        widest = max((bits for launch in launches for bits in launch.code.loads), default=0)
        if widest < case.load_bits:
            problems.append(f"{target}: loads {widest} bits at once, not {case.load_bits}")
        if case.tensor_cores and not any(launch.code.tensor_cores for launch in launches):
            problems.append(f"{target}: uses no tensor cores")
    return [f"{case.kernel}, {case.name}: {problem}" for problem in problems + _traffic_problems(case, audit.traffic)]


def _traffic_problems(case: KernelCase, traffic: Traffic | Failure) -> list[str]:
    if isinstance(traffic, Failure):
        return [f"does not run: {traffic.message}"]
    moved = traffic.loaded + traffic.stored
    if moved > case.moved_at_most * case.least_bytes:
        return [f"moves {moved:,} bytes, more than {case.moved_at_most:g} times the least, {case.least_bytes:,}"]
    if moved < case.least_bytes:  # so it is not the least: the figure of the case is wrong, or not everything ran
        return [f"moves {moved:,} bytes, fewer than what is said to be the least, {case.least_bytes:,}"]
    return []
