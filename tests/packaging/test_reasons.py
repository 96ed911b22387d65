"""The guide about errors has each reason that a server gives, under its status, and no other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "client" / "guides" / "errors.md"
REASON = re.compile(r"[A-Z]+(_[A-Z]+)*")

# The functions of `server/errors.py` that take a reason: which argument it is, and the status.
TAKE_REASON = {"invalid": (1, "INVALID_ARGUMENT"), "not_found": (1, "NOT_FOUND"), "internal": (0, "INTERNAL")}


def reasons_of_guide() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for section in GUIDE.read_text(encoding="utf-8").split("\n### ")[1:]:
        status, _, rest = section.partition("\n")
        found[status] = set(re.findall(r"^\| ([A-Z_]+) \|", rest, re.MULTILINE))
    return found


def reasons_of_server() -> dict[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "server").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            for status, argument in reason_arguments(call):
                found[status] |= set(words(argument, names))
    found["INTERNAL"].add("INTERNAL")  # a default
    return dict(found)


def reason_arguments(call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """The status of an error that a call makes, and the argument with its reason."""
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if name == "RequestError" and len(call.args) > 1 and isinstance(call.args[0], ast.Attribute):
        yield call.args[0].attr, call.args[1]
    index, status = TAKE_REASON.get(name, (99, ""))
    if len(call.args) > index:
        yield status, call.args[index]


def words(argument: ast.expr, names: dict[str, ast.expr]) -> Iterator[str]:
    """The reasons that an expression may have: a text, one of two texts, or the name of a constant of the module."""
    if isinstance(argument, ast.IfExp):
        yield from words(argument.body, names)
        yield from words(argument.orelse, names)
    elif isinstance(argument, ast.Name) and argument.id in names:
        yield from words(names[argument.id], names)
    elif isinstance(argument, ast.Constant) and isinstance(argument.value, str) and REASON.fullmatch(argument.value):
        yield argument.value
    elif isinstance(argument, ast.Name) and REASON.fullmatch(argument.id):
        yield argument.id  # a constant that has its own name as its value


def test_the_guide_has_each_reason_under_its_status():
    assert reasons_of_guide() == reasons_of_server()
