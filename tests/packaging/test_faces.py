"""Inside the server, a package imports another package by its face: what the other package's `__init__` exports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

SERVER = Path(__file__).parents[2] / "server"
PACKAGES = {path.parent.name for path in SERVER.glob("*/__init__.py")}

# Packages without a face yet: their modules are imported one by one.
WITHOUT_FACE = {"bundled"}
# The commands import single modules when they need them, so that `--help` and a taken address need no torch.
EXEMPT_IMPORTERS = {"entrypoints"}
FACES = sorted(PACKAGES - WITHOUT_FACE - EXEMPT_IMPORTERS)


def imports_of(path: Path) -> Iterator[tuple[list[str], str]]:
    """The relative imports of a file: the path from the server's folder to where a name comes from, and the name."""
    folder = path.relative_to(SERVER).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(folder) + 1:
            start = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
            for alias in node.names:
                yield [part for part in start if part], alias.name


def exports_of(package: str) -> list[str]:
    tree = ast.parse((SERVER / package / "__init__.py").read_text(encoding="utf-8"))
    lists = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return lists[0] if lists else []


def test_packages_are_imported_by_their_faces():
    wrong: list[str] = []
    for path in sorted(SERVER.rglob("*.py")):
        own = path.relative_to(SERVER).parts[0]
        for place, name in imports_of(path):
            package = place[0] if place else name
            if package not in FACES or own in {package, *EXEMPT_IMPORTERS}:
                continue
            if len(place) != 1 or name not in exports_of(package):
                wrong.append(f"{path.relative_to(SERVER)}: {name} from {'.'.join(place)}")
    assert not wrong


@pytest.mark.parametrize("package", FACES)
def test_a_face_exports_what_it_imports(package):
    exports = exports_of(package)
    imported = [name for place, name in imports_of(SERVER / package / "__init__.py") if place[0] == package]
    assert exports
    assert {*imported} == {*exports}
    module = import_module(f"sidelight.server.{package}")
    assert all(hasattr(module, name) for name in exports)


@pytest.mark.parametrize("package", FACES)
def test_a_packages_docstring_names_each_of_its_files(package):
    docstring = ast.get_docstring(ast.parse((SERVER / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    named = {line.split()[0] for line in docstring.splitlines() if line and line.split()[0].isidentifier()}
    files = {path.stem for path in (SERVER / package).glob("*.py")} - {"__init__"}
    assert files <= named
