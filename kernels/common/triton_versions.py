"""What differs between the versions of Triton that the kernels run with. No other module decides by version.

The lowest version that is tested is 3.6, the newest 3.8 (`make test-lowest`, `make test-newest`). Versions differ in
the C modules with which Triton loads and launches kernels:

- 3.6 compiles a module for the arguments of each kernel, on the server, which therefore needs a C compiler;
- 3.7 has one module for all kernels; its key in the cache is its source and the platform;
- 3.8 adds the folders of the libraries that the module is linked with to the key, the driver's among them.
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

# The folders of the driver's library on common systems, as `ldconfig` lists them.
DRIVER_FOLDERS = (
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
)


def has_one_launcher() -> bool:
    """Returns whether one module launches all kernels, so that it can be compiled ahead of time."""
    return not hasattr(nvidia, "make_launcher")


def launcher_depends_on_driver_folder() -> bool:
    """Returns whether Triton finds the launcher only where the folder of the driver's library was known in advance."""
    return hasattr(triton_build, "_get_cache_manager")


def driver_folders() -> Sequence[str]:
    """Returns the folders for which a launcher is built: TRITON_LIBCUDA_PATH alone where it is set."""
    return (knobs.nvidia.libcuda_path,) if knobs.nvidia.libcuda_path else DRIVER_FOLDERS


def launcher_entries(source: str) -> Iterator[Any]:
    """Yields the entries of Triton's cache in which a server looks for the launcher with this C source."""
    # The key has the result of platform.architecture, which is ELF only where the program `file` is installed.
    machine, _ = triton_build.platform_key().rsplit(",", 1)
    for linkage in ("ELF", ""):
        key = f"{source}{machine},{linkage}".encode()
        if not launcher_depends_on_driver_folder():
            yield get_cache_manager(hashlib.sha256(key).hexdigest())
            continue
        for folder in driver_folders():
            digest = hashlib.sha256(key)
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
