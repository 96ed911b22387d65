"""Saves attributions in files. The suffix of the file's name chooses the format.

A file appears complete, or not at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..results import Attribution
from ..validation import check_value
from ..views import render_page
from .inseq import to_inseq_json
from .npz import to_npz

Encoder = Callable[[Sequence[Attribution]], bytes]

_ENCODERS: dict[str, Encoder] = {".json": to_inseq_json, ".npz": to_npz, ".html": render_page}


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
    check_value(attributions, Attribution | Sequence[Attribution], "attributions")
    path = Path(path)
    encode = _find_encoder(path)
    sequence = [attributions] if isinstance(attributions, Attribution) else list(attributions)
    if not sequence:
        raise ValueError("there is nothing to save")
    if path.suffix != ".npz" and any(attribution.started.source_position_count for attribution in sequence):
        raise ValueError(f"{path.name}: {path.suffix} has no place for a source that is a recording; .npz has")
    data = encode(sequence)
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
    path = Path(path)
    _find_encoder(path)
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
