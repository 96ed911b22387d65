"""A page to look at attributions with: one file, no network.

The template is `page.html`; what is looked at is put in as JSON, with arrays as float16 in base64.
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

from ..parameters import Kind
from ..results import Attribution, Numbers, Token
from .spans import group_by_character, joined_text
from .terminal import escape_controls

_PLACE = "/*ATTRIBUTIONS*/"

_TITLES: dict[Kind, str] = {
    "cross": "Cross-attention",
    "decoder_self": "Decoder self-attention",
    "encoder_self": "Encoder self-attention",
}


def page(attributions: Sequence[Attribution]) -> bytes:
    """The page as UTF-8 HTML."""
    template = importlib.resources.files("sidelight.client.views").joinpath("page.html").read_text(encoding="utf-8")
    data = json.dumps([_sentence(attribution) for attribution in attributions], ensure_ascii=False)
    # Inside a script element only these can end it or open a comment; as escapes they mean the same to JSON.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    data = data.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return template.replace(_PLACE, data).encode()


def _sentence(attribution: Attribution) -> dict[str, Any]:
    views: list[dict[str, Any]] = []
    source, steps = attribution.source, attribution.steps
    if attribution.cross is not None:
        views.append(_view(attribution, "cross", attribution.cross, source, steps))
    if attribution.decoder_self is not None:
        positions = attribution.decoder_positions
        views.append(_view(attribution, "decoder_self", attribution.decoder_self, positions, steps))
    if attribution.encoder_self is not None:
        views.append(_view(attribution, "encoder_self", attribution.encoder_self.swapaxes(0, 1), source, source))
    return {
        "source": attribution.started.source_text,
        "title": escape_controls(attribution.started.source_text),
        "target": attribution.text,
        "model": escape_controls(attribution.started.model),
        "row": attribution.started.row,
        "views": views,
        # JSON knows no infinity, which a perplexity can be.
        "scores": {
            name: [float(value) if np.isfinite(value) else None for value in values]
            for name, values in attribution.scores.items()
        },
    }


def _view(
    attribution: Attribution, kind: Kind, numbers: Numbers, columns: Sequence[Token], rows: Sequence[Token]
) -> dict[str, Any]:
    """One kind's numbers `[columns, rows, ...]` and what stands along each side."""
    started = attribution.started
    layout = started.layouts[kind]
    boundary = len(started.source) if kind == "decoder_self" and not started.is_encoder_decoder else 0
    return {
        "kind": kind,
        "title": _TITLES[kind],
        "columns": _labels(columns, boundary),
        "rows": _labels(rows, 0),
        "axes": layout.axes,
        "layers": layout.layers,
        "heads": layout.head_count,
        "pairs": layout.pairs,
        "shape": numbers.shape,
        "data": base64.b64encode(np.ascontiguousarray(numbers, "<f2").tobytes()).decode("ascii"),
    }


def _labels(tokens: Sequence[Token], boundary: int) -> list[dict[str, Any]]:
    """What to write for each token: in the table, and in the text, where tokens that share a character are one word.

    `word` counts these; `joined` says whether one stands against the one before without a space. In the table, tokens
    that share a character are numbered: "한 1/3" is the first of three. At `boundary` another text begins.
    """
    labels: list[dict[str, Any]] = []
    before: Token | None = None
    for word, group in enumerate(group_by_character(tokens, boundary)):
        members = [tokens[index] for index in group]
        first = members[0]
        joined = before is not None and not first.special and not before.special and before.end == first.begin
        joined = joined and group[0] != boundary
        text = (joined_text(members).strip() if len(members) > 1 else "") or first.label
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
        before = members[-1]
    return labels
