"""The Dockerfile: what it copies exists, what it runs parses, and nothing that builds is in an image."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from deployment import (
    DEPLOY,
    DOCKERFILE,
    ROOT,
    image_context,
    lineage,
    parse_command,
    read_dockerfile,
    repository_files,
    sidelight_commands,
)
from sidelight.kernels.tools.cross_compile import TARGETS

BASES, INSTRUCTIONS = read_dockerfile()
IMAGES = ("client", "cpu", "cuda")


def of_image(image: str, name: str) -> list[str]:
    """The values of an instruction in the stages of an image."""
    return [i.value for stage in lineage(BASES, image) for i in INSTRUCTIONS if (i.stage, i.name) == (stage, name)]


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed: pip install 'sidelight[deploy]'")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_context_has_the_packages_and_nothing_else():
    wanted = {"LICENSE", "README.md", "pyproject.toml", "requirements.lock", "server/deploy/entrypoint.sh"}
    for name in repository_files():
        is_code = name.split("/")[0] in ("client", "kernels", "proto", "server")
        if is_code and not name.startswith(("server/deploy/", "client/pictures/")):
            wanted.add(name)
    assert wanted == image_context()


def test_what_is_copied_exists():
    context, seen = image_context(), set()
    for instruction in INSTRUCTIONS:
        seen.add(instruction.stage)
        if instruction.name != "COPY":
            continue
        *sources, _ = [word for word in instruction.value.split() if not word.startswith("--")]
        if origin := re.search(r"--from=(\S+)", instruction.value):
            assert origin[1] in seen
            assert sources == ["/opt/sidelight"]
        else:
            assert {*sources} <= context | {"."}
    assert {"client", "cpu", "cuda"} <= {*BASES}
    assert {base for base in BASES.values() if base not in BASES} == {"python:${PYTHON}-slim-trixie"}


def test_every_sidelight_command_parses(monkeypatch):
    lines = [i for i in INSTRUCTIONS if i.name in ("RUN", "HEALTHCHECK", "CMD", "ENTRYPOINT")]
    commands = []
    for instruction in lines:
        text = re.sub(r"^(--\S+ )+(CMD )?", "", instruction.value)
        commands += sidelight_commands(text)
        if instruction.name == "CMD" and instruction.value != '["--help"]':
            commands.append(json.loads(instruction.value))
    assert [command[0] for command in commands if command] == ["demo", "kernels", "health", "serve"]
    for command in filter(None, commands):
        args = parse_command(command, monkeypatch)
        if command[0] == "kernels":
            assert {*args.target} <= {*TARGETS}
            assert args.model is None
            config = json.loads((ROOT / "server/bundled/config.json").read_text())
            assert args.dtype == config["dtype"]  # as a server serves the model on a GPU


def test_installs_follow_the_lock_and_the_makefile():
    makefile, lock = (ROOT / "Makefile").read_text(), (ROOT / "requirements.lock").read_text()
    (version,) = re.findall(r"pip install uv==(\S+)", DOCKERFILE.read_text())
    assert f"UV_VERSION := {version}\n" in makefile
    assert len(re.findall(r"^torch==\S+$", lock, re.M)) == 1  # `grep '^torch=='`, as a requirement of its own
    for instruction in INSTRUCTIONS:
        if "uv pip install" in instruction.value and "--no-deps" not in instruction.value:
            assert "--constraint requirements.lock" in instruction.value


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_tools_that_build_and_no_root(image: str):
    runs = " ".join(of_image(image, "RUN"))
    assert not re.search(r"\b(apt-get|pip|uv|gcc)\b", runs)
    assert of_image(image, "USER") == ["65532:65532"]
    assert of_image(image, "ENTRYPOINT") == ['["sidelight"]' if image == "client" else '["sidelight-entrypoint"]']
    assert bool(of_image(image, "HEALTHCHECK")) == (image != "client")


@pytest.mark.parametrize("image", ["cpu", "cuda"])
def test_what_libraries_write_goes_to_the_cache(image: str):
    variables = dict(re.findall(r"(\w+)=(\S+)", " ".join(of_image(image, "ENV"))))
    for name in ("HOME", "HF_HOME", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert variables[name].startswith("/var/cache/sidelight")
    built = " ".join(i.value for i in INSTRUCTIONS if i.stage == f"{image}-builder")
    path = variables["NUMBA_CACHE_DIR" if image == "cpu" else "TRITON_CACHE_DIR"]
    assert re.search(rf"(NUMBA_CACHE_DIR=|--cache ){path}\b", built)  # kernels are found at this path alone
    # A tmpfs takes the permissions of the folder, and is root's: others must be able to write to it.
    assert "--mode 1777 /var/cache/sidelight" in " ".join(of_image(image, "RUN"))


def test_the_entrypoint_copies_kernels_once_and_hands_over(tmp_path):
    """The script runs with other folders in the place of those of an image."""
    script = (DEPLOY / "entrypoint.sh").read_text()
    assert os.access(DEPLOY / "entrypoint.sh", os.X_OK)
    built, cache, bin_folder = tmp_path / "built", tmp_path / "cache", tmp_path / "bin"
    for folder in (built / "triton" / "a", cache, bin_folder):
        folder.mkdir(parents=True)
    (built / "triton" / "a" / "kernel").write_text("built")
    (bin_folder / "sidelight").write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    (bin_folder / "sidelight").chmod(0o755)
    script = script.replace("/opt/sidelight/cache", str(built)).replace("/var/cache/sidelight", str(cache))
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    for content in ("built", "changed"):
        command = ["sh", "-c", script, "entrypoint", "serve", "my model"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr, done.returncode) == ("serve my model\n", "", 3)
        assert (cache / "triton" / "a" / "kernel").read_text() == content
        (cache / "triton" / "a" / "kernel").write_text("changed")
    assert [path.name for path in cache.iterdir()] == ["triton"]
