"""Fills Triton's cache for GPUs that need not be there, so that a server finds its kernels compiled when it starts.

The caller says which launches a server makes. `cross_compile` compiles their kernels as the JIT does. The key of a
kernel in the cache of Triton 3.7.1 is a hash (`triton.runtime.cache.get_cache_key`) of

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

The versions of the NVIDIA driver and of torch, and the model of a GPU within its architecture, are not in the hash. But
the index that leads to the files of a kernel holds absolute paths: after a move, a cache is empty for Triton.

Besides kernels, Triton needs a module in C that loads and launches them. Triton compiles the module on a server's first
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
from .cross_compile import TARGETS, compile_launch, compiling_for


class CacheEntry(NamedTuple):
    """One entry of the cache."""

    target: str
    name: str
    hash: str  # the key, in hexadecimal digits; Triton names the folder by it in base 32
    seconds: float
    bytes: int  # of all its files
    was_there: bool  # whether nothing was compiled


def build(
    launches: Callable[[], Iterable[Launch]],
    target: str,
    cache: Path,
    on_entry: Callable[[CacheEntry], object] = lambda _: None,
) -> list[CacheEntry]:
    """Puts the kernels of all launches into the cache, each kernel once.

    `launches` is called as if on a machine with the target's GPU. `on_entry` is called as soon as a kernel is in the
    cache. No other thread may launch kernels meanwhile.
    """
    entries: dict[str, CacheEntry] = {}
    seen: set[int] = set()
    hits: list[bool] = []

    def listen(*, cache_hit: bool, **_: Any) -> None:
        hits.append(cache_hit)

    with _caching_in(cache), knobs.compilation.scope(), compiling_for(target):
        knobs.compilation.listener = listen
        for launch in launches():
            if id(launch.kernel) not in seen:
                # A kernel that this process has compiled before would come from memory, and never reach the cache.
                launch.kernel.device_caches.clear()
                seen.add(id(launch.kernel))
            hits.clear()
            start = time.perf_counter()
            kernel = compile_launch(launch)
            seconds = time.perf_counter() - start
            if kernel.hash in entries:
                continue
            folder = _folder(kernel.hash)
            entry = CacheEntry(target, kernel.name, kernel.hash, seconds, _size(folder), all(hits))
            entries[kernel.hash] = entry
            on_entry(entry)
    return list(entries.values())


def build_launcher(target: str, cache: Path) -> CacheEntry | None:
    """Puts the module by which Triton loads and launches kernels into the cache; None where it cannot be built ahead.

    For AMD GPUs the module holds the path of a library that is only on machines with such a GPU. See also
    `triton_versions`.

    Raises:
        RuntimeError: There is no C compiler.
        subprocess.CalledProcessError: The compiler failed, most likely without Python's headers.
    """
    if TARGETS[target].backend != "cuda" or not has_one_launcher():
        return None
    # As CudaUtils in triton/backends/nvidia/driver.py, except that the module is not loaded, and that it is linked with
    # a stub that has the name of the driver's library.
    start = time.perf_counter()
    source = (Path(nvidia.__file__).parent / "driver.c").read_text()
    filename = f"cuda_utils{sysconfig.get_config_var('EXT_SUFFIX')}"
    with _caching_in(cache), tempfile.TemporaryDirectory() as folder:
        entries = list(launcher_entries(source))
        was_there = all(entry.get_file(filename) for entry in entries)
        if not was_there:
            source_path = Path(folder, "cuda_utils.c")
            source_path.write_text(source)
            built = triton_build._build(
                "cuda_utils",
                str(source_path),
                folder,
                [_stub_driver_library(folder)],
                nvidia.include_dirs,
                nvidia.libraries,
                [],
            )
            for entry in entries:
                entry.put(Path(built).read_bytes(), filename)
        size = sum(_size(Path(entry.cache_dir)) for entry in entries)
        return CacheEntry(target, "cuda_utils", entries[0].key, time.perf_counter() - start, size, was_there)


def _stub_driver_library(folder: str) -> str:
    """Makes a folder with a stub of libcuda.so.1 to link with. A server has the real library."""
    name = "libcuda.so.1"
    source = Path(folder, "driver_library.c")
    source.write_text("int cuGetErrorString(void) { return 0; }\n")  # a linker drops libraries that nothing needs
    libraries = Path(folder, "libraries")
    libraries.mkdir()
    built = triton_build._build("driver_library", str(source), folder, [], [], [], [f"-Wl,-soname,{name}"])
    return str(Path(built).rename(libraries / name).parent)


@contextmanager
def _caching_in(cache: Path) -> Generator[None]:
    """Makes a folder Triton's cache. Triton stores absolute paths, so it would not find a relative path again."""
    with knobs.cache.scope():
        knobs.cache.dir = str(cache.resolve())
        yield


def _folder(key: str) -> Path:
    manager: Any = get_cache_manager(key)
    return Path(manager.cache_dir)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def requirements(target: str, cache: Path) -> list[str]:
    """Returns what must be the same where the cache is used, for people."""
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
