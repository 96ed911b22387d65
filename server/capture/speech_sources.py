"""The sources of speech models: features of a recording instead of tokens; short ones for the comparisons at load.

Whisper's encoder reads recordings of one length alone. A comparison of all its rows would take gigabytes: for the
largest Whisper 1,500 × 1,500 numbers of each of 640 heads. So the comparisons run with a shorter encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_FEATURES = "input_features"


def feature_shape(model: Any) -> tuple[int, int] | None:
    """The features of a recording that a model's encoder reads: mel bins and frames. None: the encoder reads tokens."""
    if not model.config.is_encoder_decoder or model.main_input_name != _FEATURES:
        return None
    encoder = model.get_encoder()
    frames_per_position = encoder.conv1.stride[0] * encoder.conv2.stride[0]
    return model.config.num_mel_bins, model.config.max_source_positions * frames_per_position


def source_inputs(sources: Tensor) -> dict[str, Tensor]:
    """Sources under the name by which encoders take them: tokens int64 `[B, S]`, or features `[B, bins, frames]`."""
    return {_FEATURES if sources.dim() == 3 else "input_ids": sources}


def trial_inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Token ids int64 `[1, S]` as a source for a comparison at load; for a speech model features that depend on them.

    The features are for a model within `short_sources`.
    """
    shape = feature_shape(model)
    if shape is None:
        return source_inputs(ids)
    numbers = torch.arange(shape[0] * shape[1], device=model.device) * (0.7 + ids.float().mean()) + ids.sum()
    return source_inputs(numbers.sin().view(1, *shape).to(model.dtype))


@contextmanager
def short_sources(model: Any, num_positions: int) -> Iterator[None]:
    """Makes the encoder of a speech model read recordings of so many positions. Other models stay as they are."""
    if feature_shape(model) is None:
        yield
        return
    encoder, config = model.get_encoder(), model.config
    embedding, length = encoder.embed_positions, config.max_source_positions
    encoder.embed_positions = nn.Embedding.from_pretrained(embedding.weight[:num_positions])
    config.max_source_positions = num_positions
    try:
        yield
    finally:
        encoder.embed_positions, config.max_source_positions = embedding, length
