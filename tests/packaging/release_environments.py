"""Builds a release, a wheel and an archive of sources, and installs it into environments that have nothing else."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


class Release(NamedTuple):
    """The files of a release.

    Attributes:
        sdist: The archive of sources.
        wheel: The wheel that was built from the archive of sources.
        checkout_wheel: The wheel that was built from the checkout.
    """

    sdist: Path
    wheel: Path
    checkout_wheel: Path


def tracked_files(*folders: str) -> list[str]:
    """The files that Git has or would take, as paths from the root."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted(name for name in names if name and (ROOT / name).exists())


def build_release(folder: Path) -> Release:
    """Builds a release in a folder, from a copy of the checkout. The build leaves files beside the sources."""
    for name in tracked_files():
        copy = folder / "checkout" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    _build(folder / "checkout", folder / "dist")
    _build(folder / "checkout", folder / "direct", "--wheel")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    (checkout_wheel,) = (folder / "direct").glob("*.whl")
    return Release(sdist, wheel, checkout_wheel)


def _build(checkout: Path, output: Path, *options: str) -> None:
    """Builds with the tools of this environment. Without options: the sources, and from the sources the wheel."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), *options, str(checkout)]
    done = subprocess.run(command, cwd=checkout.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    assert "Package would be ignored" not in done.stdout + done.stderr  # which setuptools only warns of


def install_wheel(wheel: Path, folder: Path) -> Path:
    """Makes an environment with nothing in it, not even pip, and installs a wheel. Returns its folder of modules."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, cwd=folder.parent)
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--no-compile"]
    done = subprocess.run([*command, "--no-deps", str(wheel)], cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (packages,) = folder.glob("lib/python*/site-packages")
    return packages


def copy_dependencies(packages: Path) -> None:
    """Adds what the wheel in a folder of modules asks for, from this environment: no network is needed.

    It is what `pip install sidelight` adds: the requirements without extras, and the requirements of those.
    """
    (own,) = importlib.metadata.distributions(name="sidelight", path=[str(packages)])
    wanted, found = [Requirement(text) for text in own.requires or ()], {"sidelight"}
    while wanted:
        requirement = wanted.pop()
        extras = ["", *requirement.extras]
        if requirement.name in found or not (
            requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
        ):
            continue
        found.add(requirement.name)
        distribution = importlib.metadata.distribution(requirement.name)
        assert requirement.specifier.contains(distribution.version), requirement
        wanted += map(Requirement, distribution.requires or ())
        for file in distribution.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), packages / file)


def link_dependencies(packages: Path) -> None:
    """Lets an environment find the modules of this environment too, torch among them, behind its own."""
    # Files that end in .pth have no effect in a folder that is found so: the checkout stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")


def copy_compiled_programs(packages: Path) -> None:
    """Adds what Numba has compiled of the checkout, if it has: compiling takes a quarter of a minute.

    Numba takes what it has compiled for a source of the same time and size.
    """
    for compiled in (ROOT / "kernels").rglob("__pycache__/*.nb[ic]"):
        copy = packages / "sidelight" / compiled.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy2(compiled, copy)
    for source in (ROOT / "kernels").rglob("*.py"):
        shutil.copystat(source, packages / "sidelight" / source.relative_to(ROOT))
