"""A page for the browser that shows attributions. The page is one file, and needs no network.

The template is `page.html`. The attributions are in it as JSON, with arrays as float16 in base64.
"""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import base64
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..offset_units import Span, Token
from ..parameters import AttentionKind, OffsetUnit
from ..results import Attribution, FloatArray
from .alignment_picture import attention_rows, draw_picture, find_members
from .terminal import escape_controls
from .words import group_by_character, join_text

_DATA_MARKER = "/*ATTRIBUTIONS*/"

_TITLES: dict[AttentionKind, str] = {
    "cross": "Cross-attention",
    "decoder_self": "Decoder self-attention",
    "encoder_self": "Encoder self-attention",
}


def render_page(attributions: Sequence[Attribution]) -> bytes:
    """Renders the page of one or several attributions, as HTML in UTF-8."""
    template = importlib.resources.files("sidelight.client.views").joinpath("page.html").read_text(encoding="utf-8")
    data = json.dumps([_attribution_data(attribution) for attribution in attributions], ensure_ascii=False)
    # Only these characters can end a script element, or open a comment in it. In JSON, their escapes mean the same.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    data = data.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return template.replace(_DATA_MARKER, data).encode()


def _attribution_data(attribution: Attribution) -> dict[str, Any]:
    views: list[dict[str, Any]] = []
    source, steps = attribution.source_positions, attribution.targets
    if attribution.cross is not None:
        views.append(_view_data(attribution, "cross", attribution.cross, source, steps))
    if attribution.decoder_self is not None:
        positions = attribution.decoder_positions
        views.append(_view_data(attribution, "decoder_self", attribution.decoder_self, positions, steps))
    if attribution.encoder_self is not None:
        views.append(_view_data(attribution, "encoder_self", attribution.encoder_self.swapaxes(0, 1), source, source))
    return {
        "source": attribution.started.source_text,
        "title": escape_controls(attribution.started.source_text),
        "target": attribution.text,
        "model": escape_controls(attribution.started.model),
        "row": attribution.started.row,
        "views": views,
        "links": _links_data(attribution),
        # JSON has no infinity; a perplexity can be infinite.
        "scores": {
            name: [float(value) if np.isfinite(value) else None for value in values]
            for name, values in attribution.target_scores.items()
        },
    }


def _links_data(attribution: Attribution) -> dict[str, Any] | None:
    """Returns the picture of word links, and for each target word the lines of the heatmap that it has."""
    alignment = attribution.alignment
    if alignment is None or not alignment.source or not alignment.target:
        return None
    return {
        "picture": draw_picture(alignment, attention_rows(attribution, alignment)),
        "rows": find_members(alignment.target, attribution.targets),
    }


def _view_data(
    attribution: Attribution,
    kind: AttentionKind,
    attention: FloatArray,
    columns: Sequence[Token | Span],
    rows: Sequence[Token | Span],
) -> dict[str, Any]:
    """Returns one kind's attention, `[columns, rows, ...]`, with the labels of its columns and rows."""
    started = attribution.started
    layout = started.layouts[kind]
    unit = started.offset_unit
    boundary = len(started.source_positions) if kind == "decoder_self" and not started.is_encoder_decoder else 0
    return {
        "kind": kind,
        "title": _TITLES[kind],
        "columns": _token_labels(columns, boundary, unit),
        "rows": _token_labels(rows, 0, unit),
        "axes": layout.axes,
        "layers": layout.layers,
        "heads": layout.head_count,
        "pairs": layout.pairs,
        "shape": attention.shape,
        "data": base64.b64encode(np.ascontiguousarray(attention, "<f2").tobytes()).decode("ascii"),
    }


def _token_labels(tokens: Sequence[Token | Span], boundary: int, unit: OffsetUnit) -> list[dict[str, Any]]:
    """Returns what the page shows for each token, in the table and in the text.

    In the text, tokens that share a character are one word. `word` is the index of the word; `joined` says whether the
    word follows the word before it without a space. In the table, tokens that share a character are numbered: "한 1/3"
    is the first token of three.

    Args:
        tokens: The tokens, in order.
        boundary: The index where another text begins. Its spans count from 0 again.
        unit: What the spans count.
    """
    labels: list[dict[str, Any]] = []
    previous: Token | Span | None = None
    for word, group in enumerate(group_by_character(tokens, boundary)):
        members = [tokens[index] for index in group]
        first = members[0]
        joined = previous is not None and not first.special and not previous.special and previous.end == first.begin
        joined = joined and group[0] != boundary
        text = (join_text(members, unit).strip() if len(members) > 1 else "") or first.label
        for number, token in enumerate(members, 1):
            label = f"{text} {number}/{len(members)}" if len(members) > 1 else text
            labels.append(
                {
                    "text": escape_controls(label),
                    "word": word,
                    "shown": escape_controls(text),
                    "special": token.special,
                    "joined": joined,
                }
            )
        previous = members[-1]
    return labels
