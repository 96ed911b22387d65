"""Inseq's file format, written without Inseq.

What `inseq.FeatureAttributionOutput.save` of Inseq 0.7.1 writes and its `load` reads: JSON in which objects carry their
class and tensors are safetensors in base64.
"""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from ..results import Attribution, Numbers, Token

# Inseq's names, where they are others than ours.
_SCORE_NAMES = {"cross_entropy": "crossentropy"}


def inseq_json(attributions: Sequence[Attribution]) -> bytes:
    """A FeatureAttributionOutput with one sequence for each attribution. Raises ValueError where one holds nothing."""
    for attribution in attributions:
        if attribution.cross is None and attribution.decoder_self is None:
            raise ValueError("Inseq's format needs cross or decoder_self attention, and none was captured")
    output = _instance(
        "inseq.data.attribution",
        "FeatureAttributionOutput",
        {
            "info": _info(attributions),
            "sequence_attributions": [_sequence(attribution) for attribution in attributions],
            "step_attributions": None,
        },
    )
    return json.dumps(output, indent=4).encode()


def _info(attributions: Sequence[Attribution]) -> dict[str, Any]:
    first = attributions[0].started
    decoder_only = not first.is_encoder_decoder
    return {
        "attr_pos_start": min(len(a.context) + a.first_step for a in attributions),
        "attr_pos_end": max(len(a.decoder_positions) for a in attributions),
        "attribute_target": first.is_encoder_decoder and attributions[0].decoder_self is not None,
        "attributed_fn": "probability_fn",
        "attributed_fn_args": {},
        "attribution_args": {},
        "attribution_method": "attention",
        "constrained_decoding": attributions[0].stop_reason == "given",
        "exec_time": sum(a.usage.total_time for a in attributions),
        "generate_from_target_prefix": False,
        "generated_texts": [a.started.source_text + a.text if decoder_only else a.text for a in attributions],
        "generation_args": {},
        "include_eos_baseline": False,
        "input_texts": [a.started.source_text for a in attributions],
        "model_name": first.model,
        "output_step_attributions": False,
        "step_scores": [_SCORE_NAMES.get(score, score) for score in first.scores],
        "step_scores_args": {},
    }


def _sequence(attribution: Attribution) -> dict[str, Any]:
    """One sequence. Inseq's arrays are `[positions, steps, layers, heads]`, as ours are."""
    started = attribution.started
    scores: dict[str, NDArray[Any]] = {}
    if attribution.encoder_self is not None:
        # Inseq has the positions first and the queries second.
        scores["encoder_self_attentions"] = attribution.encoder_self.swapaxes(0, 1)
    some = attribution.cross if attribution.cross is not None else attribution.decoder_self
    assert some is not None
    attributes: dict[str, Any] = {
        "source": [_token(token) for token in started.source],
        "target": [_token(token) for token in attribution.decoder_positions],
        "attr_pos_start": len(attribution.context) + attribution.first_step,
        "attr_pos_end": len(attribution.decoder_positions),
        "source_attributions": _tensor(attribution.cross),
        "target_attributions": _tensor(attribution.decoder_self),
        "step_scores": {_SCORE_NAMES.get(name, name): _tensor(values) for name, values in attribution.scores.items()},
        "sequence_scores": {name: _tensor(values) for name, values in scores.items()},
        # How many axes there are behind positions and steps: what Inseq takes the mean over by default.
        "_num_dimensions": some.ndim - 2,
    }
    # The class says how Inseq goes on by default: mean by mean, or with nothing, where nothing is left to reduce.
    name = "MultiDimensional" if some.ndim > 2 else "Coarse"
    return _instance("inseq.data.attribution", f"{name}FeatureAttributionSequenceOutput", attributes)


def _token(token: Token) -> dict[str, Any]:
    return _instance("inseq.utils.typing", "TokenWithId", {"token": token.piece, "id": token.id})


def _tensor(values: Numbers | None) -> str | None:
    if values is None:
        return None
    contiguous = np.ascontiguousarray(values, np.float32)
    return base64.b64encode(save_tensors({"attribution": contiguous})).decode("ascii")


def _instance(module: str, name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"__instance_type__": [module, name], "attributes": dict(attributes)}
