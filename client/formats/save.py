"""Attributions in files: Inseq's JSON, NumPy's npz, or a page to look at. The suffix says which.

A file appears whole or not at all.
"""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..results import Attribution
from ..validation import check_value
from ..views.page import page
from .inseq import inseq_json


def save(attributions: Attribution | Sequence[Attribution], path: str | Path) -> None:
    """Saves one or several attributions.

    Args:
        attributions: What to save, in this order.
        path: `.json` is Inseq's own format, for `inseq.FeatureAttributionOutput.load`; `.npz` holds the arrays, for
            `numpy.load` (see `npz_arrays`); `.html` is a page that needs nothing else.

    Raises:
        ValueError: The suffix is none of these, or the attributions hold nothing that the format can.
        InvalidArgumentError: What is to be saved is no attribution, or the path is none.
        OSError: The file cannot be written.
    """
    check_value(path, str | Path, "path")
    check_value(attributions, Attribution | Sequence[Attribution], "attributions")
    path = Path(path)
    content = _format(path)
    kept = [attributions] if isinstance(attributions, Attribution) else list(attributions)
    if not kept:
        raise ValueError("there is nothing to save")
    data = content(kept)
    # Beside its place, so that putting it there is one step that cannot fail half-way.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def check_path(path: str | Path) -> None:
    """Finds out whether `save` could write there, before there is anything to save. Raises as `save` does."""
    path = Path(path)
    _format(path)
    with tempfile.TemporaryFile(dir=path.parent):
        pass
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _format(path: Path) -> Callable[[Sequence[Attribution]], bytes]:
    formats: dict[str, Callable[[Sequence[Attribution]], bytes]] = {
        ".json": inseq_json,
        ".npz": _npz,
        ".html": page,
    }
    if path.suffix not in formats:
        raise ValueError(f"{path.name}: the suffix must be one of {', '.join(formats)}")
    return formats[path.suffix]


def _npz(attributions: Sequence[Attribution]) -> bytes:
    arrays: dict[str, Any] = {}
    for number, attribution in enumerate(attributions):
        arrays |= {f"{number}/{name}": array for name, array in npz_arrays(attribution).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npz_arrays(attribution: Attribution) -> dict[str, Any]:
    """What an npz holds of an attribution; in the file, each name has the attribution's number and a slash before it.

    `cross`, `decoder_self`, `encoder_self` where captured and `score_NAME` for each score, shaped as `Attribution`
    says; `source_ids`, `source_pieces`, `source_spans` `[tokens, 2]`, and the same for `prefix` and `steps`; `info`,
    a JSON text with the rest. Where its `top_k` is above 0, a 0 in the arrays may stand for what was not sent.
    NumPy's arrays of texts lose a NUL at a text's end: `pieces` in `info`, by the same three names, are whole.
    """
    arrays: dict[str, Any] = {}
    for kind in ("cross", "decoder_self", "encoder_self"):
        if (array := getattr(attribution, kind)) is not None:
            arrays[kind] = array
    for name, values in attribution.scores.items():
        arrays[f"score_{name}"] = values
    parts = {"source": attribution.source, "prefix": attribution.started.prefix, "steps": attribution.steps}
    for what, tokens in parts.items():
        arrays[f"{what}_ids"] = np.array([token.id for token in tokens], np.int64)
        arrays[f"{what}_pieces"] = np.array([token.piece for token in tokens], np.str_)
        arrays[f"{what}_spans"] = np.array([(token.begin, token.end) for token in tokens], np.int64).reshape(-1, 2)
    info = {
        "model": attribution.started.model,
        "source": attribution.started.source_text,
        "text": attribution.text,
        "stop_reason": attribution.stop_reason,
        "row": attribution.started.row,
        "top_k": attribution.started.top_k,
        "pieces": {what: [token.piece for token in tokens] for what, tokens in parts.items()},
        "layouts": [asdict(layout) for layout in attribution.started.layouts.values()],
    }
    arrays["info"] = np.array(json.dumps(info, ensure_ascii=False))
    return arrays
