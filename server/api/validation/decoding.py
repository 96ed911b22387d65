"""A Decoding message becomes DecodingParams: each field is checked, and defaults come from the model's configuration.

Raises RequestError with the path of the field.
"""

from __future__ import annotations

import secrets
from typing import Any

from sidelight.v1 import text_pb2

from ...errors import invalid
from ...models import ModelInfo
from ...request import DecodingParams
from ...text import Languages
from .beam import validate_beam

# The least and the greatest number that logits may be divided by: these make no infinities of logits.
_MIN_FACTOR, _MAX_FACTOR = 0.001, 1000

# Decoding.stop. Every step looks for each of these texts.
MAX_STOPS, MAX_STOP_BYTES = 64, 1024


def validate_decoding(
    message: text_pb2.Decoding, loaded: ModelInfo, languages: Languages, num_before: int, max_target: int
) -> DecodingParams:
    """Returns how the model generates a target.

    Args:
        message: What the client asks for.
        loaded: The model.
        languages: The languages of the request.
        num_before: How many tokens the decoder reads before the first generated token.
        max_target: How many tokens the model can generate for this request.
    """
    config: Any = loaded.own_generation_config
    strategy = message.WhichOneof("strategy")
    beam = validate_beam(message.beam, loaded) if strategy == "beam" else None
    do_sample = strategy == "sampling" or (strategy is None and bool(config.do_sample))
    generation: dict[str, Any] = {}
    seed: int | None = None
    if do_sample:
        generation |= _validate_sampling(message.sampling)
        seed = message.sampling.seed if message.sampling.HasField("seed") else secrets.randbits(63)
    if (first_id := loaded.tokenizer.forced_first_id(languages)) is not None:
        generation["forced_bos_token_id"] = first_id
    max_new_tokens = _validate_max_new_tokens(message, loaded, num_before, max_target)
    if message.HasField("min_new_tokens"):
        if message.min_new_tokens > max_new_tokens:
            raise invalid("decoding.min_new_tokens", "OUT_OF_RANGE", f"is more than max_new_tokens, {max_new_tokens}")
        generation["min_new_tokens"] = message.min_new_tokens
    if message.HasField("repetition_penalty"):
        generation["repetition_penalty"] = _validate_factor(message, "decoding", "repetition_penalty")
    if message.HasField("no_repeat_ngram_size"):
        generation["no_repeat_ngram_size"] = message.no_repeat_ngram_size
    stops = (*_validate_stops(message), *_configured_stops(config))
    forces_end = not message.ignore_eos and config.forced_eos_token_id is not None
    return DecodingParams(max_new_tokens, do_sample, seed, stops, message.ignore_eos, generation, beam, forces_end)


def _validate_sampling(message: text_pb2.Sampling) -> dict[str, Any]:
    generation: dict[str, Any] = {}
    if message.HasField("temperature"):
        generation["temperature"] = _validate_factor(message, "decoding.sampling", "temperature")
    if message.HasField("top_k"):
        generation["top_k"] = message.top_k
    if message.HasField("top_p"):
        generation["top_p"] = validate_probability(message, "top_p", "decoding.sampling.top_p", 1.0)
    return generation


def _validate_max_new_tokens(message: text_pb2.Decoding, loaded: ModelInfo, num_before: int, max_target: int) -> int:
    field, config = "decoding.max_new_tokens", loaded.own_generation_config
    max_target = min(max_target, loaded.limits.max_new_tokens or max_target)
    if message.HasField("max_new_tokens"):
        if not 1 <= message.max_new_tokens <= max_target:
            raise invalid(field, "OUT_OF_RANGE", f"must be from 1 to {max_target} for this request")
        return message.max_new_tokens
    configured = config.max_new_tokens or (config.max_length - num_before if config.max_length else max_target)
    if configured < 1:
        problem = f"is needed: {num_before:,} tokens stand before the first, and the model's generation config ends at"
        raise invalid(field, "REQUIRED", f"{problem} {config.max_length:,} in all")
    return min(configured, max_target)


def _validate_stops(message: text_pb2.Decoding) -> tuple[str, ...]:
    if len(message.stop) > MAX_STOPS:
        raise invalid("decoding.stop", "TOO_MANY", f"has {len(message.stop):,} texts; at most {MAX_STOPS} may be set")
    for index, text in enumerate(message.stop):
        field = f"decoding.stop[{index}]"
        if not text:
            raise invalid(field, "EMPTY", "must not be empty")
        if (num_bytes := len(text.encode())) > MAX_STOP_BYTES:
            problem = f"is {num_bytes:,} bytes long; at most {MAX_STOP_BYTES:,} are looked for"
            raise invalid(field, "TEXT_TOO_LONG", problem)
    return tuple(message.stop)


def _configured_stops(config: Any) -> tuple[str, ...]:
    stops: Any = getattr(config, "stop_strings", None) or ()
    return (stops,) if isinstance(stops, str) else tuple(stops)


def _validate_factor(message: Any, path: str, name: str) -> float:
    """Returns a number that logits are divided by."""
    value = float(getattr(message, name))
    if not _MIN_FACTOR <= value <= _MAX_FACTOR:
        problem = f"must be above 0: from {_MIN_FACTOR} to {_MAX_FACTOR:,}"
        raise invalid(f"{path}.{name}", "OUT_OF_RANGE", problem)
    return value


def validate_probability(message: Any, name: str, field: str, default: float) -> float:
    """Returns a field that must be above 0 and at most 1; the default if the field is not set."""
    if not message.HasField(name):
        return default
    value = float(getattr(message, name))
    if not 0 < value <= 1:
        raise invalid(field, "OUT_OF_RANGE", "must be above 0 and at most 1")
    return value
