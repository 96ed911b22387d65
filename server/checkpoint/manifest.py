"""The manifest of a model's folder: the SHA-256 of each file, as the program sha256sum prints them.

The manifest says that the files are those of its author. A model without a manifest is served without this check.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from .folder import CheckpointError, check_file, has_file, is_snapshot, read_text

MANIFEST = "SHA256SUMS"

# A line of sha256sum: the sum, a space, a space or a star, and the name. A backslash comes before lines with escapes.
_LINE = re.compile(r"(?P<escape>\\?)(?P<sum>[0-9a-fA-F]{64}) [ *](?P<name>.+)")
_ESCAPES = {r"\\": "\\", r"\n": "\n", r"\r": "\r"}

# How much of a file is in memory while its sum is computed.
_BLOCK_BYTES = 1 << 20

# The kinds of files that may become part of a model.
READ_SUFFIXES = frozenset((".json", ".jinja", ".safetensors", ".model", ".spm", ".txt", ".tiktoken", ".bpe", ".codes"))


def find_read_files(folder: Path) -> list[str]:
    """Returns the names of files that may become part of a model, with templates in a folder of their own."""
    names = [path.relative_to(folder).as_posix() for path in (*folder.iterdir(), *folder.glob("*/*.jinja"))]
    return sorted(name for name in names if Path(name).suffix in READ_SUFFIXES)


def check_manifest(folder: Path) -> None:
    """Raises CheckpointError if a file is not what the manifest says. Without a manifest, nothing is checked.

    Each file that may become part of the model must be listed, and each listed file must be there. Only in a snapshot
    of the Hugging Face hub, files may be missing: the snapshot has those that a model needs.
    """
    if not has_file(folder, MANIFEST):
        return
    sums = _read_manifest(folder)
    for name in find_read_files(folder):
        if name not in sums:
            raise CheckpointError(f"{name} is not listed in {MANIFEST}")
    for name, expected in sums.items():
        if name == MANIFEST or (is_snapshot(folder) and not has_file(folder, name)):
            continue
        found = _sha256(check_file(folder, name))
        if found != expected:
            raise CheckpointError(f"{name} is not the file of {MANIFEST}: its SHA-256 is {found}, not {expected}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file by its name."""
    sums: dict[str, str] = {}
    for number, text in enumerate(read_text(folder, MANIFEST).rstrip("\n").split("\n"), 1):
        line = _LINE.fullmatch(text)
        if line is None:
            raise CheckpointError(f"{MANIFEST}: line {number} is not a line of sha256sum")
        name = line["name"].removeprefix("./")
        if line["escape"]:
            name = re.sub(r"\\[\\nr]", lambda match: _ESCAPES[match[0]], name)
        if sums.setdefault(name, line["sum"].lower()) != line["sum"].lower():
            raise CheckpointError(f"{MANIFEST}: line {number} has another SHA-256 of a file that is listed before")
    return sums
