"""Saves attributions, and pictures of word links, in files. The suffix of the file's name chooses the format.

A file appears complete, or not at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..alignments import Alignment
from ..results import Attribution
from ..validation import check_value
from ..views import render_alignment_page, render_alignment_svg, render_page
from .inseq import to_inseq_json
from .npz import to_npz

Encoder = Callable[[Sequence[Attribution]], bytes]

_ENCODERS: dict[str, Encoder] = {".json": to_inseq_json, ".npz": to_npz, ".html": render_page}

Renderer = Callable[[Alignment], bytes]

_RENDERERS: dict[str, Renderer] = {".svg": render_alignment_svg, ".html": render_alignment_page}


def save(attributions: Attribution | Sequence[Attribution], path: str | Path) -> None:
    """Saves one or several attributions in a file.

    Args:
        attributions: The attributions, in the order in which the file has them.
        path: The file. `.json` is Inseq's own format, for `inseq.FeatureAttributionOutput.load`. `.npz` holds the
            arrays, for `numpy.load` (see `formats.build_npz_arrays`). `.html` is a page that needs no other file.

    Raises:
        ValueError: The suffix is none of these, there is no attribution, or the format has no place for what the
            attributions hold.
        InvalidArgumentError: `attributions` is not of its type, or `path` is not.
        OSError: The file cannot be written.
    """
    check_value(path, str | Path, "path")
    _write(Path(path), encode(attributions, path))


def encode(attributions: Attribution | Sequence[Attribution], path: str | Path) -> bytes:
    """Returns what `save` would write in the file. Raises ValueError and InvalidArgumentError, as `save` does."""
    check_value(path, str | Path, "path")
    check_value(attributions, Attribution | Sequence[Attribution], "attributions")
    path = Path(path)
    encoder = _find_encoder(path)
    sequence = [attributions] if isinstance(attributions, Attribution) else list(attributions)
    if not sequence:
        raise ValueError("there is nothing to save")
    if path.suffix != ".npz" and any(attribution.started.source_position_count for attribution in sequence):
        raise ValueError(f"{path.name}: {path.suffix} has no place for a source that is a recording; .npz has")
    return encoder(sequence)


def save_picture(alignment: Alignment, path: str | Path) -> None:
    """Saves a picture of word links: `.svg`, or `.html`, a page that needs no other file.

    Raises ValueError for another suffix, and OSError where the file cannot be written.
    """
    check_value(path, str | Path, "path")
    check_value(alignment, Alignment, "alignment")
    path = Path(path)
    _write(path, _find_renderer(path)(alignment))


def _write(path: Path, data: bytes) -> None:
    # The temporary file is in the same folder. So replacing the old file is a single step, which cannot fail half-way.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(name, 0o666 & ~_read_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def check_path(path: str | Path) -> None:
    """Checks that `save` can write the file, before there is anything to save. Raises the errors of `save`."""
    _find_encoder(Path(path))
    _check_writable(Path(path))


def check_picture_path(path: str | Path) -> None:
    """Checks that `save_picture` can write the file. Raises the errors of `save_picture`."""
    _find_renderer(Path(path))
    _check_writable(Path(path))


def _check_writable(path: Path) -> None:
    with tempfile.TemporaryFile(dir=path.parent):
        pass
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory")


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _find_encoder(path: Path) -> Encoder:
    if path.suffix not in _ENCODERS:
        raise ValueError(f"{path.name}: the suffix must be one of {', '.join(_ENCODERS)}")
    return _ENCODERS[path.suffix]


def _find_renderer(path: Path) -> Renderer:
    if path.suffix not in _RENDERERS:
        raise ValueError(f"{path.name}: the suffix must be one of {', '.join(_RENDERERS)}")
    return _RENDERERS[path.suffix]
