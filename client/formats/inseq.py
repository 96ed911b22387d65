"""Inseq's file format, written without Inseq.

The format is what `inseq.FeatureAttributionOutput.save` of Inseq 0.7.1 writes and `load` reads: JSON in which each
object carries its class, and tensors are safetensors in base64.
"""

# NumPy's stubs leave attention members partly unknown.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from ..offset_units import Span, Token
from ..results import Attribution, FloatArray, Started
from .tensors import encode_tensor

# Scores that have another name in Inseq.
SCORE_NAMES = {"cross_entropy": "crossentropy"}


def to_inseq_json(attributions: Sequence[Attribution]) -> bytes:
    """Encodes a FeatureAttributionOutput with one sequence for each attribution.

    Raises ValueError if an attribution has neither cross-attention nor decoder self-attention.
    """
    for attribution in attributions:
        if attribution.cross is None and attribution.decoder_self is None:
            raise ValueError("Inseq's format needs cross or decoder_self attention, and none was captured")
    output = _build_instance(
        "inseq.data.attribution",
        "FeatureAttributionOutput",
        {
            "info": _build_info(attributions),
            "sequence_attributions": [_build_sequence(attribution) for attribution in attributions],
            "step_attributions": None,
        },
    )
    return json.dumps(output, indent=4).encode()


def _build_info(attributions: Sequence[Attribution]) -> dict[str, Any]:
    first = attributions[0].started
    decoder_only = not first.is_encoder_decoder
    return {
        "attr_pos_start": min(_first_target(a) for a in attributions),
        "attr_pos_end": max(len(a.decoder_positions) for a in attributions),
        "attribute_target": first.is_encoder_decoder and attributions[0].decoder_self is not None,
        "attributed_fn": "probability_fn",
        "attributed_fn_args": {},
        "attribution_args": _build_arguments(first),
        # Inseq has one method of these; the others have the names of the contract.
        "attribution_method": "attention" if first.method == "weights" else first.method,
        "constrained_decoding": attributions[0].stop_reason == "given",
        "exec_time": sum(a.usage.total_time for a in attributions),
        "generate_from_target_prefix": False,
        "generated_texts": [a.started.source_text + a.text if decoder_only else a.text for a in attributions],
        "generation_args": {},
        "include_eos_baseline": False,
        "input_texts": [a.started.source_text for a in attributions],
        "model_name": first.model,
        "output_step_attributions": False,
        "step_scores": [SCORE_NAMES.get(score, score) for score in first.scores],
        "step_scores_args": {},
    }


def _build_arguments(started: Started) -> dict[str, Any]:
    """Returns what else the numbers depend on, where it is not the default."""
    arguments: dict[str, Any] = {}
    if started.special_tokens != "keep":
        arguments["special_tokens"] = started.special_tokens
    if started.is_difference:
        arguments["subtract_attention"] = True
    return arguments


def _build_sequence(attribution: Attribution) -> dict[str, Any]:
    """Builds one sequence. Inseq's arrays are `[positions, steps, layers, heads]`, as the arrays of Attribution are."""
    scores: dict[str, NDArray[Any]] = {}
    if attribution.encoder_self is not None:
        # In Inseq, the first axis is positions and the second axis is queries.
        scores["encoder_self_attentions"] = attribution.encoder_self.swapaxes(0, 1)
    attention = attribution.cross if attribution.cross is not None else attribution.decoder_self
    assert attention is not None
    attributes: dict[str, Any] = {
        "source": [_build_token(token) for token in attribution.source_positions],
        "target": [_build_token(token) for token in attribution.decoder_positions],
        "attr_pos_start": _first_target(attribution),
        "attr_pos_end": len(attribution.decoder_positions),
        "source_attributions": _encode_tensor(attribution.cross),
        "target_attributions": _encode_tensor(attribution.decoder_self),
        "step_scores": {
            SCORE_NAMES.get(name, name): _encode_tensor(values) for name, values in attribution.target_scores.items()
        },
        "sequence_scores": {name: _encode_tensor(values) for name, values in scores.items()},
        # The number of axes behind positions and steps. By default, Inseq takes the mean over these axes.
        "_num_dimensions": attention.ndim - 2,
    }
    # The class decides what Inseq's default aggregation does: means over the remaining axes, or nothing if none remain.
    name = "MultiDimensional" if attention.ndim > 2 else "Coarse"
    return _build_instance("inseq.data.attribution", f"{name}FeatureAttributionSequenceOutput", attributes)


def _first_target(attribution: Attribution) -> int:
    """Returns the position of the first step, or unit, among the positions of the decoder."""
    return len(attribution.decoder_positions) - len(attribution.targets)


def _build_token(token: Token | Span) -> dict[str, Any]:
    # Inseq gives what it has aggregated from several tokens the id -1.
    piece, id_ = (token.text or token.piece, -1) if isinstance(token, Span) else (token.piece, token.id)
    return _build_instance("inseq.utils.typing", "TokenWithId", {"token": piece, "id": id_})


def _encode_tensor(values: FloatArray | None) -> str | None:
    if values is None:
        return None
    return base64.b64encode(encode_tensor(values)).decode("ascii")


def _build_instance(module: str, name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"__instance_type__": [module, name], "attributes": dict(attributes)}
