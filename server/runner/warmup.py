"""Kernels compiled before anybody waits for them: what a server launches for common captures.

Triton compiles a kernel when it is first launched with arguments of a kind, which takes about a second. Knows models
and plans; which kernels there are, only the kernels know.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from ...kernels import Launch, record_launches
from ..capture import AttentionKind, CapturePlan
from ..models import LoadedModel
from .single_sequence import LAST_QUERY, SingleSequenceModel

log = logging.getLogger(__name__)

# Triton compiles a variant of a kernel for lengths of 1, of multiples of 16, and of all other lengths.
# `_GIVEN`: lengths of source (or prompt) and given target that reach each variant. `_DECODED`: lengths of source and
# prompt, from which `_STEPS` tokens are decoded.
_GIVEN = ((17, 16), (17, 15), (16, 16), (16, 17), (15, 15))
_DECODED = (1, 16, 17)
_STEPS = 17


def common_captures(loaded: LoadedModel) -> Iterator[CapturePlan]:
    """The captures that are warmed: everything in each encoding, heads reduced, and heads and layers reduced."""
    layers: dict[AttentionKind, tuple[int, ...]] = {
        kind: tuple(range(loaded.attention_layers.num_layers(kind))) for kind in loaded.kinds
    }
    everything = CapturePlan(loaded.kinds, layers, {kind: loaded.heads(kind) for kind in loaded.kinds})
    yield everything
    yield replace(everything, encoding="float16")
    yield replace(everything, encoding="uint8")
    yield replace(everything, over_heads="mean")
    yield replace(everything, over_heads="mean", over_layers="mean")


def warm(loaded: LoadedModel) -> None:
    """Runs common captures once, on a GPU; there is nothing to compile on a CPU."""
    if loaded.model.device.type != "cuda":
        return
    started = time.monotonic()
    _run(loaded)
    torch.cuda.synchronize(loaded.model.device)
    log.info("the kernels of %s are ready after %.1f s", loaded.name, time.monotonic() - started)


def launches(loaded: LoadedModel) -> list[Launch]:
    """What `warm` launches, found without a GPU: for a model on any device."""
    with record_launches() as found:
        _run(loaded)
    return found


@torch.inference_mode()
def _run(loaded: LoadedModel) -> None:
    for plan in common_captures(loaded):
        for source, target in _GIVEN:
            model = _encoded(loaded, plan, source)
            given = [*model.prompt, *_ids(loaded, target - 1)]  # the last token is predicted, not read
            model.forward(model.tensor(given), slice(-target, None), 1, is_last=True)
        for source in _DECODED:
            model = _encoded(loaded, plan, source)
            model.forward(model.tensor(model.prompt), LAST_QUERY, 1)
            for _ in range(_STEPS):
                model.forward(model.tensor(_ids(loaded, 1)), LAST_QUERY, 1)


def _encoded(loaded: LoadedModel, plan: CapturePlan, source: int) -> SingleSequenceModel:
    """A model whose encoder has read a source of so many tokens."""
    context = _ids(loaded, source) if loaded.is_encoder_decoder else ()
    model = SingleSequenceModel(loaded, plan, _ids(loaded, source), context)
    for _ in model.encode(check=False) or ():  # where launches are only recorded, nothing is computed
        pass
    return model


def _ids(loaded: LoadedModel, count: int) -> list[int]:
    # Any token but the padding will do: what is written is not looked at.
    padding = loaded.model.config.get_text_config().pad_token_id
    return [5 if padding == 4 else 4] * count
