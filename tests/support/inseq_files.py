"""Reads files with Inseq."""

from __future__ import annotations

import warnings
from pathlib import Path


def load_with_inseq(path: Path):
    """Loads a FeatureAttributionOutput."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from inseq import FeatureAttributionOutput

        return FeatureAttributionOutput.load(path)
