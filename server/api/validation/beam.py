"""A Beam message becomes BeamParams: each field is checked, and defaults come from the model's generation config.

Raises RequestError with the path of the field.
"""

from __future__ import annotations

from typing import Any

from sidelight.v1 import text_pb2

from ...errors import invalid
from ...models import ModelInfo
from ...request import BeamParams, EarlyStopping
from ..enums import EARLY_STOPPINGS

# The most hypotheses that a search keeps: each takes a slot, beside the requests of others.
MAX_BEAM_WIDTH = 16

# The score of a hypothesis is divided by its length to this power at most. A length can then have 25 bits before the
# power is infinite in float32.
_MAX_LENGTH_PENALTY = 5

# transformers' values of `early_stopping`.
_CONFIGURED: dict[Any, EarlyStopping] = {True: "first", False: "unlikely", "never": "never"}


def validate_beam(message: text_pb2.Beam, loaded: ModelInfo) -> BeamParams:
    """Returns the beam search that a message asks for."""
    if not 2 <= message.width <= MAX_BEAM_WIDTH:
        raise invalid("decoding.beam.width", "OUT_OF_RANGE", f"must be from 2 to {MAX_BEAM_WIDTH}")
    if message.hypotheses > message.width:
        raise invalid("decoding.beam.hypotheses", "OUT_OF_RANGE", f"is more than width, {message.width}")
    if message.early_stopping and message.early_stopping not in EARLY_STOPPINGS:
        raise invalid("decoding.beam.early_stopping", "UNKNOWN_VALUE", f"{message.early_stopping} has no meaning here")
    config: Any = loaded.generation_config
    length_penalty = 1.0 if config.length_penalty is None else float(config.length_penalty)
    if message.HasField("length_penalty"):
        length_penalty = float(message.length_penalty)
        if not abs(length_penalty) <= _MAX_LENGTH_PENALTY:
            problem = f"must be from -{_MAX_LENGTH_PENALTY} to {_MAX_LENGTH_PENALTY}"
            raise invalid("decoding.beam.length_penalty", "OUT_OF_RANGE", problem)
    early_stopping = EARLY_STOPPINGS.get(message.early_stopping) or _CONFIGURED[config.early_stopping or False]
    return BeamParams(message.width, message.hypotheses or 1, length_penalty, early_stopping)
