"""The differences between the versions of transformers that Sidelight runs with, all in one place.

The lowest version that is tested is 5.17, the newest 5.24 (`make test-lowest`, `make test-newest`).

Since 5.24 a model's cache is called `cache`, as an argument and as a result of `forward`. Before, it was called
`past_key_values`, which 5.24 still takes with a warning.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import transformers
from transformers import PreTrainedModel

_VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])


def cache_argument(model: Any) -> str:
    """The name of the argument by which a model's `forward` takes the keys and values of earlier tokens."""
    return _cache_argument(type(model))


@lru_cache(maxsize=64)
def _cache_argument(model: type[Any]) -> str:
    return "past_key_values" if "past_key_values" in inspect.signature(model.forward).parameters else "cache"


def cache_of(output: Any) -> Any:
    """The cache that a forward pass has returned; None if the pass kept none."""
    return output["cache"] if "cache" in output else output.get("past_key_values")


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Make all parts of a model use an attention implementation.

    Before 5.20 transformers leaves out parts whose configuration is another object of the model's own class, such as
    the encoder and the decoder of T5. Families that do not use transformers' attention interface, such as Falcon, keep
    what they were loaded with. They all know "eager", so their configuration is set: with the masks of another
    implementation, their matrices are wrong.
    """
    model.set_attn_implementation(name)
    for part in model.modules():
        if not isinstance(part, PreTrainedModel):
            continue
        if part.config._attn_implementation != model.config._attn_implementation:
            part.set_attn_implementation(name)
        if name == "eager" and part.config._attn_implementation != name:
            part.config._attn_implementation = name


def takes_whole_target(model: Any) -> bool:
    """Whether a decoder with a cache takes all tokens of the target again, and reads only the last of them.

    The decoder of FSMT did so before 5.18.
    """
    return model.config.model_type == "fsmt" and _VERSION < (5, 18)
