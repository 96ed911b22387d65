"""What differs between the versions of Triton that the kernels run with, decided in this one place.

The lowest version that is tested is 3.6, the newest 3.8 (`make test-lowest`, `make test-newest`). They differ in how
Triton makes the modules in C by which it loads and launches kernels:

- 3.6 compiles another module for the arguments of each kernel, on the server, which so needs a C compiler;
- 3.7 has one for all, found by its source and the platform;
- 3.8 finds it by the folders of the libraries that it is linked with too, the driver's among them.
"""
# Triton comes without types, and has no public way to its cache.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from triton import knobs
from triton.backends.nvidia import driver as nvidia
from triton.runtime import build as triton_build
from triton.runtime.cache import get_cache_manager

# Where `ldconfig` has the driver's library on common systems.
DRIVER_FOLDERS = (
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
)


def has_one_launcher() -> bool:
    """Whether one module launches all kernels, so that it can be compiled ahead."""
    return not hasattr(nvidia, "make_launcher")


def launcher_depends_on_driver_folder() -> bool:
    """Whether the launcher is found only where the driver's library lies in a folder that was known ahead."""
    return hasattr(triton_build, "_get_cache_manager")


def driver_folders() -> Sequence[str]:
    """The folders for which a launcher is made: TRITON_LIBCUDA_PATH alone where it is set."""
    return (knobs.nvidia.libcuda_path,) if knobs.nvidia.libcuda_path else DRIVER_FOLDERS


def launcher_entries(source: str) -> Iterator[Any]:
    """The entries of Triton's cache in which a server looks for its launcher, whose source in C this is."""
    # In the key is what platform.architecture says, which is ELF only where the program `file` is installed.
    machine, _ = triton_build.platform_key().rsplit(",", 1)
    for linkage in ("ELF", ""):
        known = f"{source}{machine},{linkage}".encode()
        if not launcher_depends_on_driver_folder():
            yield get_cache_manager(hashlib.sha256(known).hexdigest())
            continue
        for folder in driver_folders():
            digest = hashlib.sha256(known)
            config = {
                "language": ["c"],
                "library_dirs": [nvidia.libdevice_dir, folder],
                "include_dirs": nvidia.include_dirs,
                "libraries": nvidia.libraries,
            }
            for name, values in config.items():
                digest.update(name.encode())
                digest.update("".join(f"{value}:" for value in values).encode())
            yield get_cache_manager(digest.hexdigest())
