"""Makes a folder for PYTHONPATH in which a checkout is the package `sidelight`: without pip, without a network.

`python checkout.py CHECKOUT SITE`. It reads pyproject.toml: each package of `tool.setuptools.package-dir` becomes a
symbolic link, each script a file in SITE/bin. A package that lies in the folder of another package comes with it. The
checkout itself never comes onto sys.path: transformers would take its folder `kernels` for Hugging Face's package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

try:
    import tomllib  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

SCRIPT = """#!{python}
import sys

from {module} import {function}

sys.exit({function}())
"""


def make_site(checkout: Path, site: Path) -> None:
    """Links the checkout's packages, and writes its scripts and its metadata."""
    settings: dict[str, Any] = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    folders: dict[str, str] = settings["tool"]["setuptools"]["package-dir"]
    for package, folder in sorted(folders.items()):
        link = site.joinpath(*package.split("."))
        if link.exists():  # within the folder of a package that is linked already
            if link.resolve() != (checkout / folder).resolve():
                raise SystemExit(f"checkout.py: {package} is {link.resolve()}, not {folder}")
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(checkout / folder, target_is_directory=True)
    (site / "bin").mkdir()
    for name, target in project["scripts"].items():
        module, _, function = target.partition(":")
        script = site / "bin" / name
        script.write_text(SCRIPT.format(python=sys.executable, module=module, function=function), encoding="utf-8")
        script.chmod(0o755)
    metadata = site / f"{project['name']}-{project['version']}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )


if __name__ == "__main__":
    make_site(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
