"""Fills Triton's cache for GPUs that are not there, so that a server finds its kernels compiled when it starts.

Knows Triton's cache; which launches a server makes, the caller says. Kernels are compiled by `cross_compile`, in the
JIT's own way. What Triton 3.7.1 looks a kernel up by is a hash (`triton.runtime.cache.get_cache_key`) of

- Triton itself: its version and every byte of its compiler, libtriton.so among them. So wheels for another Python or
  another processor have other keys;
- the kernel (`ASTSource.hash`): its source, the line on which it starts and the functions that it calls, but not the
  path; the types of its arguments, which of them are 1 or multiples of 16, and the values of its constexprs;
- the target: `CUDABackend.hash` is the number of the architecture and what `ptxas --version` prints (from sm_100 on
  that of Triton's second one, ptxas-blackwell). TRITON_PTXAS_PATH and TRITON_PTXAS_BLACKWELL_PATH choose others;
- the options (`CUDAOptions.hash`): warps, stages and the like; the bytes of libdevice (TRITON_LIBDEVICE_PATH); and what
  PTXAS_OPTIONS, TRITON_DEBUG, TRITON_DEFAULT_FP_FUSION, TRITON_INSTRUMENTATION_MODE and TRITON_OVERRIDE_ARCH say. For
  AMD GPUs paths of libraries instead of their bytes: Triton must be installed at the same place;
- some thirty environment variables (`get_cache_invalidating_env_vars`), such as DISABLE_PTXAS_OPT or
  TRITON_F32_DEFAULT, as far as they are set to something true.

Neither the NVIDIA driver's version, nor torch's, nor the model of a GPU within its architecture is in it. But the index
that leads to the files of a kernel holds their whole paths: a cache that is moved is found empty.

Besides kernels, Triton needs a module of its own, in C, to load and launch them. It compiles that on a server's first
launch, with a C compiler and Python's headers, and keeps it in the same cache. `build_launcher` puts it there.
"""
# Triton comes without types, and has no public way to its cache.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

from __future__ import annotations

import sysconfig
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton import knobs
from triton.backends.nvidia import driver as nvidia
from triton.runtime import build as triton_build
from triton.runtime.cache import get_cache_manager

from ..common.launch import Launch
from ..common.triton_versions import (
    driver_folders,
    has_one_launcher,
    launcher_depends_on_driver_folder,
    launcher_entries,
)
from .cross_compile import TARGETS, compiled, compiling_for


class Built(NamedTuple):
    """One entry of the cache."""

    target: str
    name: str
    hash: str  # the key, in hexadecimal digits; Triton names the folder by it in base 32
    seconds: float
    bytes: int  # of all its files
    was_there: bool  # whether nothing had to be compiled


def build(
    launches: Callable[[], Iterable[Launch]], target: str, cache: Path, tell: Callable[[Built], object] = lambda _: None
) -> list[Built]:
    """Puts the kernels of all launches into the cache, each once however many launches share it.

    `launches` is asked as if on a machine with the target's GPU. Tells of each kernel as soon as it is there. Not for
    threads that launch meanwhile.
    """
    built: dict[str, Built] = {}
    seen: set[int] = set()
    hits: list[bool] = []

    def listen(*, cache_hit: bool, **_: Any) -> None:
        hits.append(cache_hit)

    with _caching_in(cache), knobs.compilation.scope(), compiling_for(target):
        knobs.compilation.listener = listen
        for launch in launches():
            if id(launch.kernel) not in seen:
                # What this process has compiled before would be taken from its memory, and never reach the cache.
                launch.kernel.device_caches.clear()
                seen.add(id(launch.kernel))
            hits.clear()
            start = time.perf_counter()
            kernel = compiled(launch)
            seconds = time.perf_counter() - start
            if kernel.hash in built:
                continue
            folder = _folder(kernel.hash)
            entry = Built(target, kernel.name, kernel.hash, seconds, _size(folder), all(hits))
            built[kernel.hash] = entry
            tell(entry)
    return list(built.values())


def build_launcher(target: str, cache: Path) -> Built | None:
    """Puts the module by which Triton loads and launches kernels into the cache; None where that cannot be done ahead.

    For AMD GPUs it has the path of a library in it that is only on machines with such a GPU; and see `triton_versions`.

    Raises:
        RuntimeError: There is no C compiler.
        subprocess.CalledProcessError: It failed, most likely for want of Python's headers.
    """
    if TARGETS[target].backend != "cuda" or not has_one_launcher():
        return None
    # As CudaUtils in triton/backends/nvidia/driver.py does it, except that the module is not loaded, and that it is
    # linked with a library that only bears the name of the driver's.
    start = time.perf_counter()
    source = (Path(nvidia.__file__).parent / "driver.c").read_text()
    filename = f"cuda_utils{sysconfig.get_config_var('EXT_SUFFIX')}"
    with _caching_in(cache), tempfile.TemporaryDirectory() as folder:
        entries = list(launcher_entries(source))
        was_there = all(entry.get_file(filename) for entry in entries)
        if not was_there:
            source_path = Path(folder, "cuda_utils.c")
            source_path.write_text(source)
            made = triton_build._build(
                "cuda_utils",
                str(source_path),
                folder,
                [_driver_library(folder)],
                nvidia.include_dirs,
                nvidia.libraries,
                [],
            )
            for entry in entries:
                entry.put(Path(made).read_bytes(), filename)
        size = sum(_size(Path(entry.cache_dir)) for entry in entries)
        return Built(target, "cuda_utils", entries[0].key, time.perf_counter() - start, size, was_there)


def _driver_library(folder: str) -> str:
    """A folder with a libcuda.so.1 to link with. Where it is loaded, the real one takes its place."""
    name = "libcuda.so.1"
    source = Path(folder, "driver_library.c")
    source.write_text("int cuGetErrorString(void) { return 0; }\n")  # a linker leaves out libraries that nothing needs
    libraries = Path(folder, "libraries")
    libraries.mkdir()
    made = triton_build._build("driver_library", str(source), folder, [], [], [], [f"-Wl,-soname,{name}"])
    return str(Path(made).rename(libraries / name).parent)


@contextmanager
def _caching_in(cache: Path) -> Generator[None]:
    """Makes a folder Triton's cache. Its whole path goes into the cache, so that a relative one would not be found."""
    with knobs.cache.scope():
        knobs.cache.dir = str(cache.resolve())
        yield


def _folder(key: str) -> Path:
    manager: Any = get_cache_manager(key)
    return Path(manager.cache_dir)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def requirements(target: str, cache: Path) -> list[str]:
    """What must be the same where the cache is used, in words."""
    lines = [
        f"the path {cache.resolve()}, since Triton notes down whole paths",
        f"Sidelight, and Triton {triton.__version__} from the same wheel",
    ]
    gpu: Any = TARGETS[target]
    if gpu.backend == "cuda":
        tool = knobs.nvidia.ptxas_blackwell if gpu.arch >= 100 else knobs.nvidia.ptxas
        lines.append(f"ptxas {tool.version}, Triton's own unless a variable such as TRITON_PTXAS_PATH names another")
        if has_one_launcher() and launcher_depends_on_driver_folder():
            folders = " or ".join(driver_folders())
            lines.append(
                f"for Triton's own launcher, where the driver's libcuda.so.1 is: {folders}; TRITON_LIBCUDA_PATH"
            )
    else:
        lines.append(f"where Triton is installed: {Path(triton.__file__).parent}")
    lines.append("Triton's environment variables that change what is compiled, such as TRITON_DEBUG or PTXAS_OPTIONS")
    return lines
