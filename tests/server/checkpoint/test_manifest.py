"""A model with a manifest is served only if each of its files is the one that the manifest lists."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from damaged_checkpoints import refusal
from sidelight.server.checkpoint import open_checkpoint


def write_manifest(folder: Path) -> Path:
    """Writes the manifest of a folder as its author does."""
    names = sorted(path.name for path in folder.iterdir())
    sums = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    (folder / "SHA256SUMS").write_bytes(sums)
    return folder / "SHA256SUMS"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="the program sha256sum is not here")
def test_the_output_of_sha256sum_is_a_manifest(copy_model):
    path = copy_model("gpt2")
    (path / "a\nb.md").write_text("no file of the model", encoding="utf-8")
    text = write_manifest(path).read_text()
    assert text.count("\n") > 3
    open_checkpoint(path)
    (path / "SHA256SUMS").write_text(text.replace("  ", " *"))
    open_checkpoint(path)


def damage_weights(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_weights, "model.safetensors is not the file of SHA256SUMS: its SHA-256 is "),
        (
            lambda path: (path / "chat_template.jinja").write_text("x"),
            "chat_template.jinja is not listed in SHA256SUMS",
        ),
        (lambda path: (path / "generation_config.json").unlink(), "generation_config.json is missing"),
        (lambda path: (path / "SHA256SUMS").write_text("x  config.json\n"), "SHA256SUMS: line 1 is not a line"),
        (lambda path: (path / "SHA256SUMS").write_text(f"{'0' * 64}  a\n{'1' * 64}  a\n"), "SHA256SUMS: line 2 has"),
        (lambda path: (path / "SHA256SUMS").write_text(""), "SHA256SUMS is empty"),
        (lambda path: add_line(path, "../outside"), "../outside is outside the model's folder"),
        (lambda path: add_line(path, "/etc/passwd"), "/etc/passwd is outside the model's folder"),
        (lambda path: add_line(path, "a\0b"), r"a\x00b is missing"),
    ],
)
def test_a_file_that_is_not_the_manifests_is_named(copy_model, damage, said):
    path = copy_model("gpt2")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in path.iterdir()]
    (path / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    open_checkpoint(path)
    damage(path)
    assert refusal(path).startswith(said)


def add_line(path: Path, name: str) -> None:
    with (path / "SHA256SUMS").open("a", encoding="utf-8") as file:
        file.write(f"{'0' * 64}  {name}\n")
