"""`sidelight kernels build`: compiles what a server will launch, on a machine without its GPU.

This is for container images, and for machines without a C compiler. The module has the options and the output; the
server's command says what is launched. torch and Triton are imported only when the command runs.
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
    from .prebuild import CacheEntry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say for which GPUs kernels are compiled, and where they are kept."""
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


def run(args: argparse.Namespace, launches: Callable[[], Iterable[Launch]]) -> int:
    """Builds the kernels of `launches` for each target in turn. Returns the exit status.

    `launches` is called once for each target, as if on a machine that has the target's GPU.
    """
    from triton import knobs

    from . import prebuild
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
            entries = prebuild.build(launches, target, args.cache, _print_entry)
            launcher = _build_launcher(target, args.cache)
            _print_total(target, [*entries, launcher] if launcher else entries)
    except OSError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1
    print(f"\nServe with them: TRITON_CACHE_DIR={args.cache.resolve()} sidelight serve ...")
    for target in targets:
        print(f"\nWhat {target} finds there is found as long as these are the same:")
        for line in prebuild.requirements(target, args.cache):
            print(f"- {line}")
    print("\nA GPU's driver must be new enough to load them; its version need not be the same.")
    return 0


def _build_launcher(target: str, cache: Path) -> CacheEntry | None:
    from .prebuild import build_launcher

    try:
        launcher = build_launcher(target, cache)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"sidelight: {error}", file=sys.stderr)
        launcher = None
    if launcher:
        _print_entry(launcher)
    else:
        print(f"{target}  not built: Triton's own launcher. Servers need a C compiler and Python's headers", flush=True)
    return launcher


def _print_entry(entry: CacheEntry) -> None:
    """Prints a line for an entry as soon as it is in the cache."""
    state = "was there" if entry.was_there else f"{entry.seconds:.2f} s"
    print(f"{entry.target}  {entry.name}  {entry.hash[:16]}  {state}  {_kibibytes(entry.bytes)}", flush=True)


def _print_total(target: str, entries: list[CacheEntry]) -> None:
    compiled = [entry for entry in entries if not entry.was_there]
    seconds = sum(entry.seconds for entry in compiled)
    size = _kibibytes(sum(entry.bytes for entry in entries))
    print(
        f"{target}  {len(entries)} in all, {len(compiled)} of them compiled now in {seconds:.2f} s; {size}", flush=True
    )


def _kibibytes(size: int) -> str:
    return f"{size / 1024:,.0f} KiB"
