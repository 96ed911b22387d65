"""The files of server/deploy, read as Docker, kubectl and the command line read them."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from sidelight.client.cli.commands import make_parser
from sidelight.server.entrypoints import kernels
from sidelight.server.settings import Settings, read_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "server" / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"


class Instruction(NamedTuple):
    """An instruction of a Dockerfile."""

    stage: str
    name: str
    value: str


def read_dockerfile() -> tuple[dict[str, str], list[Instruction]]:
    """Returns what each stage is made from, and all instructions."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    bases: dict[str, str] = {}
    instructions: list[Instruction] = []
    stage = ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "FROM":
            base, _, stage = value.partition(" AS ")
            bases[stage] = base
        elif name:
            instructions.append(Instruction(stage, name, value))
    return bases, instructions


def lineage(bases: dict[str, str], stage: str) -> list[str]:
    """The stages that a stage is made from, and the stage itself."""
    return [*lineage(bases, bases[stage]), stage] if stage in bases else []


def repository_files() -> list[str]:
    """The files of this repository, as paths from its root."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    return [name for name in names if name and (ROOT / name).exists()]


def image_context() -> set[str]:
    """The files that Docker sees: those of this repository that Dockerfile.dockerignore lets through."""
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    return {name for name in repository_files() if not _is_ignored(name, patterns)}


def _is_ignored(name: str, patterns: Sequence[str]) -> bool:
    """Whether the last pattern that a file or one of its folders matches excludes the file."""
    parts = name.split("/")
    paths = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    ignored = False
    for pattern in patterns:
        form = pattern.removeprefix("!").replace("**/", "*")
        if any(fnmatch(path, form) and ("*" in form or path.count("/") == form.count("/")) for path in paths):
            ignored = not pattern.startswith("!")
    return ignored


def sidelight_commands(text: str) -> Iterator[list[str]]:
    """Yields the arguments of each `sidelight` command in a line for a shell, or in a list in JSON."""
    words = yaml.safe_load(text) if text.startswith("[") else shlex.split(text.replace("&&", " && "))
    if "sidelight" in words:
        rest = words[words.index("sidelight") + 1 :]
        end = rest.index("&&") if "&&" in rest else len(rest)
        yield [word for word in rest[:end] if not word.startswith("$")]


def parse_command(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Parses a command of `sidelight` as the command line does. Ends the test if there is no such command or option."""
    args = make_parser().parse_args(list(arguments))
    if arguments[0] == "kernels":
        parsed: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "_build", lambda args: parsed.append(args) or 0)
            kernels.main(arguments[1:])
        return parsed[0]
    return args


def server_settings(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a server that is started with some arguments. Raises SettingsError for wrong values."""
    with monkeypatch.context() as patch:
        patch.delenv("SIDELIGHT_ADDRESS", raising=False)
        return read_settings(parse_command(arguments, monkeypatch))


def build_manifests(path: Path) -> list[dict[str, Any]]:
    """The manifests of a file, or of a folder with a kustomization: its files with its namespace and patches."""
    if path.is_file():
        return [manifest for manifest in yaml.safe_load_all(path.read_text()) if manifest]
    plan = yaml.safe_load((path / "kustomization.yaml").read_text())
    assert set(plan) <= {"apiVersion", "kind", "namespace", "resources", "patches"}, "build_manifests knows no more"
    manifests = [manifest for name in plan["resources"] for manifest in build_manifests((path / name).resolve())]
    for manifest in manifests:
        if "namespace" in plan:
            manifest["metadata"]["namespace"] = plan["namespace"]
    for patch in plan.get("patches", []):
        body = yaml.safe_load(patch["patch"])
        target = patch.get("target") or {"kind": body["kind"], "name": body["metadata"]["name"]}
        (chosen,) = (m for m in manifests if (m["kind"], m["metadata"]["name"]) == (target["kind"], target["name"]))
        if isinstance(body, list):
            _apply(body, chosen)
        else:
            assert body["$patch"] == "delete"
            manifests.remove(chosen)
    return manifests


def _apply(operations: list[dict[str, Any]], manifest: dict[str, Any]) -> None:
    """Applies a patch of RFC 6902."""
    for operation in operations:
        *way, last = [re.sub("~1", "/", part) for part in operation["path"].strip("/").split("/")]
        place: Any = manifest
        for part in way:
            place = place[int(part) if isinstance(place, list) else part]
        key: Any = int(last) if isinstance(place, list) else last
        if operation["op"] == "test":
            assert place[key] == operation["value"], operation
        elif operation["op"] == "remove":
            del place[key]
        else:
            is_new = operation["op"] == "add"
            assert is_new or place[key] is not None, operation
            place[key] = copy.deepcopy(operation["value"])
