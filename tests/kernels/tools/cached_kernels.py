"""Builds kernels, and looks for them as a server on a GPU would: by launching them.

A script for processes of its own: where TRITON_INTERPRET is set nothing is compiled.

    cached_kernels.py build OPTIONS          as `sidelight kernels build`, for a case of each kernel
    cached_kernels.py launch TARGET CASE     launches on tensors with memory, with TRITON_CACHE_DIR; prints for each
                                             launch whether its kernel was in the cache, as a JSON list
    cached_kernels.py launcher TARGET CACHE  builds Triton's launcher alone
    cached_kernels.py load                   makes Triton build and load its launcher
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from sidelight.kernels.common.launch import Launch
from sidelight.kernels.tools import prebuild_cli
from sidelight.kernels.tools.cases import KernelCase, all_cases
from sidelight.kernels.tools.prebuild import build_launcher
from triton import knobs, runtime
from triton.backends.amd.driver import HIPDriver
from triton.backends.nvidia.driver import CudaDriver, CudaUtils


class Utils:
    """Replaces the drivers' modules in C, which run once a kernel is compiled."""

    def get_device_properties(self, _device: int) -> dict[str, Any]:
        return {"max_shared_mem": 2**20, "arch": "gfx942:sramecc+:xnack-", "warpSize": 64}

    def load_binary(self, *_: Any) -> tuple[Any, ...]:
        return object(), object(), 0, 0, 1024  # module, function, registers, spills, maximum of threads


class Launcher:
    launched = 0

    def __init__(self, *_: Any) -> None: ...

    def __call__(self, *_: Any) -> None:
        Launcher.launched += 1


class Driver:
    """Triton's driver without the parts that need a GPU. Triton's own code still finds out which GPU there is."""

    def __init__(self) -> None:
        self.utils = Utils()
        self.launcher_cls = Launcher
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda _device: 0


class FakeCuda(Driver, CudaDriver):
    def __init__(self, target: str) -> None:
        super().__init__()
        self.get_device_capability = lambda _device: divmod(int(target.removeprefix("sm_")), 10)


class FakeHip(Driver, HIPDriver): ...


def unaligned(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(unaligned, value))
    if isinstance(value, torch.Tensor):
        return torch.empty(value.numel() + 1, dtype=value.dtype)[1:].view(value.shape)
    return value


def first_cases(device: str) -> list[Launch]:
    """Returns the launches of the first case of each kernel: all cases would take minutes."""
    chosen: dict[str, KernelCase] = {}
    for case in all_cases():
        chosen.setdefault(case.kernel, case)
    return [launch for case in chosen.values() for launch in case.launches(device)]


def select_launches(case: str) -> list[Launch]:
    launches = first_cases("cpu")
    if case == "every":
        return launches
    first = launches[0]
    if case == "unaligned":
        arguments = {name: unaligned(value) for name, value in first.arguments.items()}
        return [first._replace(arguments=arguments)]
    assert case == "first"
    return [first]


def launch(target: str, case: str) -> None:
    runtime.driver.set_active(FakeHip() if target == "gfx942" else FakeCuda(target))
    hits: list[bool] = []
    knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    launches = select_launches(case)
    for item in launches:
        item.run()
    assert Launcher.launched == len(launches)
    print(json.dumps(hits))


if __name__ == "__main__":
    action, *rest = sys.argv[1:]
    if action == "build":
        parser = argparse.ArgumentParser()
        prebuild_cli.add_arguments(parser)
        sys.exit(prebuild_cli.run(parser.parse_args(rest), lambda: first_cases("meta")))
    elif action == "launch":
        launch(*rest)
    elif action == "launcher":
        print(build_launcher(rest[0], Path(rest[1])))
    else:
        CudaUtils()
