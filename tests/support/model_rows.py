"""Compares attributions that came through the client with one eager forward pass of the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peers
from sidelight.client import Attribution


def check_rows(ours: Attribution, path: Path, source: Any = None) -> None:
    """Compares each captured row with the model's own matrices, from a pass with `output_attentions=True`.

    `source` is what the encoder reads, where this is no text.
    """
    context = [token.id for token in ours.context]
    ids = [token.id for token in ours.steps]
    if source is None:
        # The context of a decoder-only model begins with the prompt.
        source = [token.id for token in ours.source] if ours.started.is_encoder_decoder else []
    matrices = peers.eager_attention(path, source, [*context, *ids])
    first = len(context) - (ours.started.row == "predicting")
    for kind in ours.layouts:
        queries, keys = (slice(None),) * 2 if kind == "encoder_self" else (slice(first, first + len(ids)), slice(None))
        expected = getattr(matrices, kind)[:, :, queries, keys].transpose(2, 3, 0, 1)
        rows = getattr(ours, kind)
        if kind == "encoder_self":
            np.testing.assert_allclose(rows, expected, atol=1e-5, rtol=2e-5)
            continue
        for step in range(len(ids)):
            column = rows[:, step]
            seen = ~np.isnan(column).any(axis=(1, 2))
            count = first + step + 1 if kind == "decoder_self" else len(column)
            assert seen.tolist() == [True] * count + [False] * (len(column) - count)
            np.testing.assert_allclose(column[:count], expected[step, :count], atol=1e-5, rtol=2e-5)
            np.testing.assert_allclose(expected[step, count:], 0, atol=1e-7)
