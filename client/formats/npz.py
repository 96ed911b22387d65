"""NumPy's npz format: the arrays of attributions, and a JSON text with everything else."""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..results import Attribution, Hypothesis, WordAlignment


def to_npz(attributions: Sequence[Attribution]) -> bytes:
    """Encodes attributions as a compressed npz file. The array NAME of attribution number N has the name "N/NAME"."""
    arrays: dict[str, Any] = {}
    for number, attribution in enumerate(attributions):
        arrays |= {f"{number}/{name}": array for name, array in build_npz_arrays(attribution).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def build_npz_arrays(attribution: Attribution) -> dict[str, Any]:
    """Builds the arrays that an npz file holds of one attribution.

    - `cross`, `decoder_self`, `encoder_self`: the attention that was captured, shaped as `Attribution` says. If `top_k`
      in `info` is above 0, a 0 in these arrays may be a position that was not sent.
    - `special_shares_KIND`: what special tokens took of each row, where the capture renormalizes.
    - `score_NAME`: `[steps]`, for each score.
    - `source_ids`, `source_pieces`, `source_spans` (`[tokens, 2]`), and the same for `prefix` and `steps`.
    - With a grouping: `source_unit_spans`, `prefix_unit_spans`, `unit_spans` (`[units, 2]`), `unit_steps` (the first
      step of each unit, and one past its last), and `unit_score_NAME` (`[units]`). The attention is that of units.
    - `info`: a JSON text with everything else, such as links, signals, and the hypotheses of a beam search. NumPy's
      arrays of texts lose a NUL at the end of a text; `pieces` in `info` holds the pieces of `source`, `prefix` and
      `steps` unchanged.
    """
    arrays: dict[str, Any] = {}
    for kind in ("cross", "decoder_self", "encoder_self"):
        if (array := getattr(attribution, kind)) is not None:
            arrays[kind] = array
    for kind, shares in attribution.special_shares.items():
        arrays[f"special_shares_{kind}"] = shares
    for name, values in attribution.scores.items():
        arrays[f"score_{name}"] = values
    token_lists = {"source": attribution.source, "prefix": attribution.started.prefix, "steps": attribution.steps}
    for name, tokens in token_lists.items():
        arrays[f"{name}_ids"] = np.array([token.id for token in tokens], np.int64)
        arrays[f"{name}_pieces"] = np.array([token.piece for token in tokens], np.str_)
        arrays[f"{name}_spans"] = np.array([(token.begin, token.end) for token in tokens], np.int64).reshape(-1, 2)
    if attribution.started.grouping != "token":
        arrays |= _build_unit_arrays(attribution)
    info = _build_info(attribution)
    info["pieces"] = {name: [token.piece for token in tokens] for name, tokens in token_lists.items()}
    arrays["info"] = np.array(json.dumps(info, ensure_ascii=False))
    return arrays


def _build_alignment(alignment: WordAlignment) -> dict[str, Any]:
    """Returns the spans of the words of both texts, and the links between them."""
    return {
        "source": [(word.begin, word.end) for word in alignment.source],
        "target": [(word.begin, word.end) for word in alignment.target],
        "links": [link._asdict() for link in alignment.links],
        "pharaoh": alignment.pharaoh,
        "head_source": alignment.head_source,
    }


def _build_info(attribution: Attribution) -> dict[str, Any]:
    """Returns what no array holds."""
    started = attribution.started
    return {
        "model": started.model,
        "request_id": started.request_id,
        "source": started.source_text,
        "text": attribution.text,
        "stop_reason": attribution.stop_reason,
        "alignment": None if attribution.alignment is None else _build_alignment(attribution.alignment),
        "signals": None if attribution.signals is None else asdict(attribution.signals),
        "offset_unit": started.offset_unit,
        "row": started.row,
        "top_k": started.top_k,
        "method": started.method,
        "grouping": started.grouping,
        "sent_positions": started.sent_positions,
        "special_tokens": started.special_tokens,
        "is_difference": started.is_difference,
        "seed": started.seed,
        "first_step": attribution.first_step,
        "source_tokens_left_out": started.source_tokens_left_out,
        "target_tokens_left_out": started.target_tokens_left_out,
        "hypotheses": [_describe_hypothesis(hypothesis) for hypothesis in attribution.hypotheses],
        "usage": asdict(attribution.usage),
        "layouts": [asdict(layout) for layout in started.layouts.values()],
    }


def _describe_hypothesis(hypothesis: Hypothesis) -> dict[str, Any]:
    """Returns a hypothesis of a beam search, without the places of its tokens."""
    return {
        "text": hypothesis.text,
        "score": hypothesis.score,
        "stop_reason": hypothesis.stop_reason,
        "ids": [token.id for token in hypothesis.tokens],
        "pieces": [token.piece for token in hypothesis.tokens],
    }


def _build_unit_arrays(attribution: Attribution) -> dict[str, Any]:
    started, units = attribution.started, attribution.units
    spans = {
        "source_unit_spans": started.source_units,
        "prefix_unit_spans": started.prefix_units,
        "unit_spans": [unit.span for unit in units],
    }
    arrays: dict[str, Any] = {
        name: np.array([(span.begin, span.end) for span in listed], np.int64).reshape(-1, 2)
        for name, listed in spans.items()
    }
    arrays["unit_steps"] = np.array([(unit.first_step, unit.end_step) for unit in units], np.int64).reshape(-1, 2)
    return arrays | {f"unit_score_{name}": values for name, values in attribution.unit_scores.items()}
