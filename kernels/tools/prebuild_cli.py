"""`sidelight kernels build`: compiles what a server will launch, on a machine without its GPU.

For images of containers and for machines without a C compiler. Knows the options and what people read; how it is done,
and what a compiled kernel is found by, is in `prebuild`. Imported whatever is installed, so torch and Triton come in
only when the command runs.
"""
# Triton comes without types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..common.launch import Launch
    from .prebuild import Built


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sidelight kernels build`."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="the model that will be served, as `sidelight serve` takes it; without one, the bundled one",
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("float32", "float16", "bfloat16"),
        help="the type that it will be served in; without it, bfloat16",
    )
    parser.add_argument(
        "--target",
        action="append",
        required=True,
        metavar="TARGET",
        help="a kind of GPU, such as sm_90 (H100, H200) or gfx942 (MI300); may be given several times",
    )
    parser.add_argument(
        "--cache", type=Path, required=True, metavar="DIR", help="the folder to fill; use it at this very path"
    )


class UnknownModelError(Exception):
    """There is no such model, or it cannot be served. The message is for the person who builds."""


# From the command's arguments to what is to be built. Asked once for each target, as if on a machine that has it.
Plan = Callable[[argparse.Namespace], Iterable["Launch"]]


def run(args: argparse.Namespace, plan: Plan) -> int:
    """Builds for each target in turn. Returns the exit status."""
    from triton import knobs

    from . import prebuild as build
    from .cross_compile import TARGETS

    targets: list[str] = list(dict.fromkeys(args.target))
    for target in targets:
        if target not in TARGETS:
            print(f"sidelight: --target: must be one of {', '.join(TARGETS)}, not {target!r}", file=sys.stderr)
            return 1
    if knobs.runtime.interpret:
        print("sidelight: TRITON_INTERPRET is set: there is nothing to compile", file=sys.stderr)
        return 1
    try:
        args.cache.mkdir(parents=True, exist_ok=True)
        for target in targets:
            built = build.build(lambda: plan(args), target, args.cache, _tell)
            launcher = _build_launcher(target, args.cache)
            _tell_total(target, [*built, launcher] if launcher else built)
    except (OSError, UnknownModelError) as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1
    print(f"\nServe with them: TRITON_CACHE_DIR={args.cache.resolve()} sidelight serve ...")
    for target in targets:
        print(f"\nWhat {target} finds there is found as long as these are the same:")
        for line in build.requirements(target, args.cache):
            print(f"- {line}")
    print("\nA GPU's driver must be new enough to load them; its version need not be the same.")
    return 0


def _build_launcher(target: str, cache: Path) -> Built | None:
    from .prebuild import build_launcher

    try:
        launcher = build_launcher(target, cache)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"sidelight: {error}", file=sys.stderr)
        launcher = None
    if launcher:
        _tell(launcher)
    else:
        print(f"{target}  not built: Triton's own launcher. Servers need a C compiler and Python's headers", flush=True)
    return launcher


def _tell(built: Built) -> None:
    """A line for what has just been built."""
    how = "was there" if built.was_there else f"{built.seconds:.2f} s"
    print(f"{built.target}  {built.name}  {built.hash[:16]}  {how}  {_kibibytes(built.bytes)}", flush=True)


def _tell_total(target: str, built: list[Built]) -> None:
    compiled = [each for each in built if not each.was_there]
    seconds = sum(each.seconds for each in compiled)
    size = _kibibytes(sum(each.bytes for each in built))
    print(f"{target}  {len(built)} in all, {len(compiled)} of them compiled now in {seconds:.2f} s; {size}", flush=True)


def _kibibytes(size: int) -> str:
    return f"{size / 1024:,.0f} KiB"
