"""Checks that no file, class, function or folder is too large to be read at once. A part of `make lint`.

    python tests/packaging/sizes.py

Prints what is too large, and ends with 1 if there is anything. Kernels that Triton or Numba compiles are one function
each, and are exempt.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
PACKAGES = ("client", "kernels", "server")

MAX_FILE_LINES = 400
MAX_CLASS_LINES = 200
MAX_FUNCTION_LINES = 50
MAX_MODULES = 14  # of a folder of a package, `__init__` not counted

GENERATED = "*_pb2*.py"
COMPILED = ("kernels/*/triton_kernel.py", "kernels/common/triton_*.py", "kernels/cpu/jit/*.py")


def source_files() -> list[str]:
    """The Python files that people write, as paths from the root."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    return sorted(name for name in names if not fnmatch(name, GENERATED) and (ROOT / name).exists())


def problems_of_file(name: str) -> Iterator[str]:
    """What is too large in a file."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if (lines := text.count("\n")) > MAX_FILE_LINES:
        yield f"{name}: {lines} lines; at most {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            kind, limit = "class", MAX_CLASS_LINES
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            kind, limit = "function", MAX_FUNCTION_LINES
        else:
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > limit:
            yield f"{name}:{node.lineno}: {kind} {node.name} has {lines} lines; at most {limit}"


def problems(names: list[str]) -> Iterator[str]:
    """What is too large among some files."""
    for name in names:
        if not any(fnmatch(name, pattern) for pattern in COMPILED):
            yield from problems_of_file(name)
    paths = [PurePosixPath(name) for name in names]
    modules = Counter(path.parent for path in paths if path.parts[0] in PACKAGES and path.name != "__init__.py")
    for folder, count in sorted(modules.items()):
        if count > MAX_MODULES:
            yield f"{folder}: {count} modules; at most {MAX_MODULES}"


def main() -> int:
    """Returns the exit status."""
    found = list(problems(source_files()))
    print("\n".join(found) if found else "Sizes: no file, class, function or folder is too large.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
