"""What the server answers, as messages for the page.

Messages without arrays are JSON in text frames. A message with arrays is a binary frame: the length of the JSON that
follows as a little-endian 32-bit number, the JSON, spaces up to an even offset, and then the arrays, one after another,
as little-endian float16 in C order. `arrays` in the JSON has the kind and the shape of each array.
"""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..alignments import Alignment
from ..errors import SidelightError, describe_error
from ..models import Model
from ..offset_units import Span, Token
from ..results import AttentionLayout, Finished, FloatArray, Started, Step, WordAlignment
from ..views import escape_controls, find_words


def encode_json(message: Mapping[str, Any]) -> str:
    """Encodes a message without arrays. JSON has no infinity and no NaN: there must be none."""
    return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode_binary(message: Mapping[str, Any], arrays: Iterable[tuple[str, FloatArray]]) -> bytes:
    """Encodes a message with arrays, each with its kind."""
    named = list(arrays)
    listed = [{"kind": kind, "shape": array.shape} for kind, array in named]
    head = encode_json({**message, "arrays": listed}).encode()
    head += b" " * (len(head) % 2)
    with np.errstate(over="ignore"):  # a norm beyond float16 becomes infinite, and the page draws it as the greatest
        body = b"".join(np.ascontiguousarray(array, "<f2").tobytes() for _, array in named)
    return struct.pack("<I", len(head)) + head + body


def model_message(model: Model) -> dict[str, Any]:
    """Describes a model: what the page offers of it."""
    return {
        "name": model.name,
        "family": model.family,
        "encoderDecoder": model.is_encoder_decoder,
        "attentions": {kind: dataclasses.asdict(size) for kind, size in model.attentions.items()},
        "methods": model.methods,
        "presets": model.presets,
        "languages": model.languages,
        "default": model.default,
        "readsText": not model.feature_shape,
        "dtype": model.dtype,
        "device": model.device,
        "maxSourceTokens": model.max_source_tokens,
        "maxTargetTokens": model.max_target_tokens,
        "maxSourceBytes": model.limits.max_source_bytes if model.limits else None,
    }


def started_message(started: Started) -> dict[str, Any]:
    """Describes what the steps of a stream mean."""
    return {
        "event": "started",
        "requestId": started.request_id,
        "model": started.model,
        "sourceText": started.source_text,
        "source": _list_tokens(started.source_positions),
        "prefix": _list_tokens(started.prefix),
        "layouts": {kind: _layout_message(layout) for kind, layout in started.layouts.items()},
        "row": started.row,
        "method": started.method,
        "specialTokens": started.special_tokens,
        "isShare": started.is_share,
        "encoderDecoder": started.is_encoder_decoder,
    }


def step_message(step: Step, previous: Token | None) -> dict[str, Any]:
    """Describes a step. `previous` is the token of the step before."""
    message: dict[str, Any] = {
        "event": "step",
        "index": step.index,
        "token": _token_message(step.token),
        "joined": previous is not None and _are_joined(previous, step.token),
        "text": step.text,
        "scores": {name: value if np.isfinite(value) else None for name, value in step.scores.items()},
    }
    if step.decision is not None:
        message["decision"] = {"held": step.decision.is_held, "firm": step.decision.firm_source_tokens}
    return message


def step_arrays(step: Step) -> list[tuple[str, FloatArray]]:
    """Returns the rows of a step, each `[positions, layers, heads]` or with fewer axes."""
    rows = (("cross", step.cross), ("decoder_self", step.decoder_self))
    return [(kind, row) for kind, row in rows if row is not None]


def finished_message(finished: Finished) -> dict[str, Any]:
    """Describes the end of a stream."""
    usage = finished.usage
    return {
        "event": "finished",
        "text": finished.text,
        "stopReason": finished.stop_reason,
        "alignment": finished.alignment and _links_message(finished.alignment),
        "usage": {
            "sourceTokens": usage.source_tokens,
            "targetTokens": usage.target_tokens,
            "firstStep": usage.time_to_first_step,
            "total": usage.total_time,
        },
    }


def alignment_message(alignment: Alignment) -> dict[str, Any]:
    """Describes a linked pair, and what became of its markup."""
    return {
        "event": "alignment",
        "model": alignment.model,
        "sourceText": alignment.source_text,
        "targetText": alignment.target_text,
        "marked": alignment.marked_target_text,
        "alignment": _links_message(alignment),
        "report": [
            {
                "markup": report.markup,
                "source": report.source,
                "target": report.target,
                "placement": report.placement,
                "score": report.score,
            }
            for report in alignment.report
        ],
    }


def error_message(error: SidelightError) -> dict[str, Any]:
    """Describes an error, with the field at fault."""
    return {
        "event": "error",
        "message": escape_controls(describe_error(error)),
        "field": error.field,
        "reason": error.reason,
        "status": error.status.name,
    }


def _links_message(alignment: Alignment | WordAlignment) -> dict[str, Any]:
    return {
        "source": [(word.begin, word.end) for word in alignment.source],
        "target": [(word.begin, word.end) for word in alignment.target],
        "links": [(link.source, link.target, link.score) for link in alignment.links],
        "headSource": alignment.head_source,
    }


def _layout_message(layout: AttentionLayout) -> dict[str, Any]:
    return {
        "axes": layout.axes,
        "layers": layout.layers,
        "heads": layout.head_count,
        "pairs": layout.pairs,
        "weights": layout.weights,
    }


def _list_tokens(tokens: Sequence[Token | Span]) -> list[dict[str, Any]]:
    """Lists tokens; `joined` says whether a token belongs to the word of the token before it."""
    starts = {word.positions[0] for word in find_words(tokens, unit="utf16")}
    return [{**_token_message(token), "joined": index not in starts} for index, token in enumerate(tokens)]


def _token_message(token: Token | Span) -> dict[str, Any]:
    return {
        "label": escape_controls(token.label),
        "begin": token.begin,
        "end": token.end,
        "special": token.special,
    }


def _are_joined(previous: Token, token: Token) -> bool:
    return len(find_words((previous, token), unit="utf16")) == 1
