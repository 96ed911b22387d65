"""Opens the files of a model's folder: only files in the folder, of a bounded size, and JSON of the right form.

A snapshot of the Hugging Face hub may link into the hub's own cache.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

# How a file begins that Git LFS has not fetched yet.
_LFS_POINTER = b"version https://git-lfs"

# The most bytes of a file of JSON or text: of lists of tokens and tensors, and of other files.
_MAX_LIST_BYTES, _MAX_BYTES = 256 << 20, 16 << 20
_LISTS = re.compile(r"vocab|merges|tokenizer\.json$|index\.json$|\.(model|spm|txt|bpe|codes|tiktoken)$")

# How deep lists and objects may be in one another.
_MAX_DEPTH = 64

# How many characters an error has at most, and how many of a path it quotes.
_MAX_MESSAGE, _MAX_SHOWN = 450, 60

# Numbers that may be infinite, as the time steps of Mamba's layers.
_LIMIT = re.compile(r"limit$")


class CheckpointError(Exception):
    """A file of a model is wrong. The message names the file, in one line for people.

    Names in a message may come from the files. So each character that cannot be printed is escaped.
    """

    def __init__(self, message: str) -> None:
        shown = message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}..."
        escapes = (char.encode("unicode_escape").decode() if not char.isprintable() else char for char in shown)
        super().__init__("".join(escapes))


class Part(NamedTuple):
    """A field of an object, or an element of a list.

    Attributes:
        name: The name of the field, or the number of the element.
        value: The value.
        depth: How many objects and lists are around the value.
        parent: The object or list that has the value.
    """

    name: str
    value: object
    depth: int
    parent: Part | None

    @property
    def path(self) -> str:
        """The names from the file's field to this value, such as `rope.factors.0`."""
        names: list[str] = []
        part: Part | None = self
        while part is not None and part.depth:
            names.append(part.name)
            part = part.parent
        return ".".join(reversed(names))

    @property
    def field(self) -> str:
        """The name of the innermost field: for an element of a list, the field that has the list."""
        part = self
        while part.parent is not None and isinstance(part.parent.value, list):
            part = part.parent
        return part.name


def check_file(folder: Path, name: str) -> Path:
    """Returns the path of a model's file.

    Raises CheckpointError if the file is missing, elsewhere, a Git LFS pointer, or a text that is far too long.
    """
    path = _contained(folder, name)
    size, most = path.stat().st_size, _MAX_LIST_BYTES if _LISTS.search(name) else _MAX_BYTES
    if size > most and not name.endswith(".safetensors"):
        raise CheckpointError(f"{name} has {size:,} bytes, and may have {most:,}")
    try:
        with path.open("rb") as file:
            begin = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror}") from error
    if begin == _LFS_POINTER:
        raise CheckpointError(f"{name} is a pointer of Git LFS, not the file itself: git lfs pull fetches it")
    return path


def read_text(folder: Path, name: str, *, may_be_empty: bool = False) -> str:
    """Returns the text of a model's file, in UTF-8. Raises CheckpointError."""
    data = check_file(folder, name).read_bytes()
    if not data.strip() and not may_be_empty:
        raise CheckpointError(f"{name} is empty")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{name} is not UTF-8 at byte {error.start:,}") from error


def read_object(folder: Path, name: str) -> Mapping[str, Any]:
    """Returns the fields of a model's JSON file. Raises CheckpointError."""
    text = read_text(folder, name)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{name} is not JSON: {error.msg} at line {error.lineno}") from error
    except RecursionError as error:
        raise CheckpointError(f"{name} is not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:  # Python reads whole numbers of at most 4,300 digits
        raise CheckpointError(f"{name} is not JSON that can be read: a number has too many digits") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} must hold an object with fields, not {_kind_of(value)}")
    for part in walk(value):
        number = part.value
        if part.depth > _MAX_DEPTH:
            raise CheckpointError(f"{name} is nested too deeply at {part.path[:_MAX_SHOWN]}...")
        if not isinstance(number, float) or math.isfinite(number):
            continue
        if math.isnan(number) or not _LIMIT.search(part.field):
            raise CheckpointError(f"{name}: {part.path} must be a finite number")
    return cast(Mapping[str, Any], value)


def walk(value: object) -> Iterator[Part]:
    """Yields all parts of a value of JSON that are within others. A part is opened up to the greatest depth."""
    parts = [Part("", value, 0, None)]
    while parts:
        part = parts.pop()
        if part.depth:
            yield part
        if part.depth > _MAX_DEPTH:
            continue
        if isinstance(part.value, dict):
            fields = cast(dict[str, object], part.value)
            parts += [Part(name, fields[name], part.depth + 1, part) for name in reversed(list(fields))]
        elif isinstance(part.value, list):
            elements = cast(list[object], part.value)
            last = len(elements) - 1
            parts += [Part(str(last - i), elements[last - i], part.depth + 1, part) for i in range(last + 1)]


def has_file(folder: Path, name: str) -> bool:
    """Whether a folder has a file of this name, or a broken link."""
    return (folder / name).exists() or (folder / name).is_symlink()


def is_snapshot(folder: Path) -> bool:
    """Whether a folder is a snapshot in the cache of the Hugging Face hub."""
    root = folder.resolve()
    return root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir()


def _kind_of(value: object) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _contained(folder: Path, name: str) -> Path:
    """Returns the path of a file in a folder. Raises CheckpointError if it is elsewhere, or is no file."""
    try:
        root, path = folder.resolve(), (folder / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, or a circle of links
        raise CheckpointError(f"{name} is missing") from error
    # The files of a snapshot are links to the blobs beside the snapshot's folder.
    roots = [root, root.parent.parent / "blobs"] if is_snapshot(root) else [root]
    if not any(path.is_relative_to(parent) for parent in roots):
        raise CheckpointError(f"{name} is outside the model's folder")
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} is missing") from error
    if not stat.S_ISREG(mode):  # reading a pipe would wait for ever
        raise CheckpointError(f"{name} is not a file")
    return path
