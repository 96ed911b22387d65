"""Checks a model's generation config at load: the defaults of decoding must make sense for the model.

Fields have transformers' names.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .fields import wrong_field
from .files import CONFIG, GENERATION_CONFIG, Checkpoint
from .folder import CheckpointError


class _Rule(NamedTuple):
    """Which values a field may have if it is set."""

    holds: Callable[[float], bool]
    words: str
    is_integer: bool = False


_POSITIVE = _Rule(lambda x: x > 0, "a number above 0")
_FRACTION = _Rule(lambda x: 0 < x <= 1, "above 0 and at most 1")
_BELOW_ONE = _Rule(lambda x: 0 <= x < 1, "at least 0 and below 1")
_COUNT = _Rule(lambda x: x >= 0, "a whole number, 0 or above", is_integer=True)
_LENGTH = _Rule(lambda x: x >= 1, "a whole number, 1 or above", is_integer=True)

_RULES: dict[str, _Rule] = {
    "temperature": _POSITIVE,
    "top_k": _COUNT,
    "top_p": _FRACTION,
    "min_p": _Rule(lambda x: 0 <= x <= 1, "from 0 to 1"),
    "typical_p": _FRACTION,
    "epsilon_cutoff": _BELOW_ONE,
    "eta_cutoff": _BELOW_ONE,
    "repetition_penalty": _POSITIVE,
    "encoder_repetition_penalty": _POSITIVE,
    "no_repeat_ngram_size": _COUNT,
    "encoder_no_repeat_ngram_size": _COUNT,
    "min_length": _COUNT,
    "min_new_tokens": _COUNT,
    "max_length": _LENGTH,
    "max_new_tokens": _LENGTH,
    "length_penalty": _Rule(lambda _: True, "a finite number"),
}

# Fields that hold one token, and fields that hold one token or a list of tokens.
_TOKEN = ("bos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")
_TOKENS = (
    *_TOKEN,
    "eos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)


def check_generation_config(
    config: Mapping[str, Any], checkpoint: Checkpoint, vocabulary_size: int = sys.maxsize
) -> None:
    """Raises CheckpointError unless the fields of a generation config make sense for a vocabulary of this size."""
    for name, rule in _RULES.items():
        value: Any = config.get(name)
        if value is None:
            continue
        kinds = int if rule.is_integer else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value) or not rule.holds(value):
            raise _wrong(checkpoint, name, rule.words, value)
    for name in _TOKENS:
        value = config.get(name)
        is_list = isinstance(value, (list, tuple)) and name not in _TOKEN
        for token in value if is_list else [] if value is None else [value]:
            _check_token(token, name, checkpoint, vocabulary_size)
    for name, words in _token_lists(config, checkpoint):
        if not isinstance(words, (list, tuple)) or not words:
            raise _wrong(checkpoint, name, "lists of tokens, none of them empty", words)
        for token in words:
            _check_token(token, name, checkpoint, vocabulary_size)
    early_stopping: Any = config.get("early_stopping")
    if early_stopping not in (None, True, False, "never"):
        raise _wrong(checkpoint, "early_stopping", 'true, false or "never"', early_stopping)
    stops: Any = config.get("stop_strings")
    texts = stops if isinstance(stops, (list, tuple)) else [stops]
    if stops is not None and not all(isinstance(text, str) and text for text in texts):
        raise _wrong(checkpoint, "stop_strings", "texts", stops)


def _token_lists(config: Mapping[str, Any], checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    """Yields the fields that hold words of several tokens, with each word's tokens."""
    banned: Any = config.get("bad_words_ids")
    if banned is not None:
        if not isinstance(banned, (list, tuple)) or not banned:
            raise _wrong(checkpoint, "bad_words_ids", "lists of tokens", banned)
        yield from (("bad_words_ids", word) for word in banned)
    biases: Any = config.get("sequence_bias")
    if biases is not None:
        pairs = list(biases.items()) if isinstance(biases, dict) else biases
        if not isinstance(pairs, (list, tuple)) or not all(_is_bias(pair) for pair in pairs):
            raise _wrong(checkpoint, "sequence_bias", "pairs of tokens and a number", biases)
        yield from (("sequence_bias", pair[0]) for pair in pairs)


def _is_bias(pair: Any) -> bool:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        return False
    bias: Any = pair[1]
    return isinstance(bias, (int, float)) and not isinstance(bias, bool) and not math.isnan(bias)


def _check_token(token: Any, name: str, checkpoint: Checkpoint, vocabulary_size: int) -> None:
    if not isinstance(token, int) or isinstance(token, bool):
        raise _wrong(checkpoint, name, "a token's number", token)
    # Some models have -1 if they have no padding.
    min_id = -1 if name == "pad_token_id" else 0
    if token < min_id:
        raise _wrong(checkpoint, name, f"{min_id} or above", token)
    if token >= vocabulary_size:
        raise CheckpointError(
            f"{_file_of(name, checkpoint)}: {name} {token} is outside the vocabulary of {vocabulary_size:,} tokens"
        )


def _wrong(checkpoint: Checkpoint, name: str, words: str, value: object) -> CheckpointError:
    return wrong_field(_file_of(name, checkpoint), name, value, words)


def _file_of(name: str, checkpoint: Checkpoint) -> str:
    """Returns the file of a model that holds a field."""
    is_own = name in checkpoint.generation_config or name not in checkpoint.config
    return GENERATION_CONFIG if is_own else CONFIG
