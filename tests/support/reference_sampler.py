"""A sampler beside one reference for each request: transformers' processors and torch's multinomial."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sidelight.server.models.loader import LoadedModel
from sidelight.server.request import DecodingParams
from sidelight.server.sampling import Sampler, logits_ops
from torch import Tensor
from transformers import LogitsProcessorList

SLOTS, LENGTH = 4, 12  # of a batch; the most tokens of a slot, its context included


class ReferenceSampler:
    """One request alone, sampled by transformers' processors and torch's multinomial."""

    def __init__(
        self, loaded: LoadedModel, decoding: DecodingParams, context: list[int], source: list[int] | None
    ) -> None:
        model: Any = loaded.model
        config, _ = model._prepare_generation_config(None)
        for name, value in decoding.generation.items():
            setattr(config, name, value)
        config.do_sample = decoding.do_sample
        config.num_beams = 1
        config.max_length = len(context) + decoding.max_new_tokens
        if decoding.ignore_eos:
            config.forced_eos_token_id = None
        self.ids = torch.tensor([context])
        model._prepare_special_tokens(config, True)
        self.processors = model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=len(context),
            encoder_input_ids=self.ids if source is None else torch.tensor([source]),
            logits_processor=LogitsProcessorList(),
            model_kwargs={},
        )
        self.generator = torch.Generator().manual_seed(decoding.seed or 0) if decoding.do_sample else None

    def step(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the numbers behind the choice, `[1, vocabulary]`, and the token; no token where numbers are NaN."""
        scores = self.processors(self.ids, logits[None].to(torch.float32, copy=True))
        if self.generator is None:
            return scores, None if scores.isnan().any() else scores.argmax(-1)
        probabilities = scores.softmax(-1)
        state = self.generator.get_state()
        token = None if probabilities.isnan().any() else torch.multinomial(probabilities, 1, generator=self.generator)
        self.generator.set_state(state)
        return probabilities / torch.empty_like(probabilities).exponential_(generator=self.generator), token

    def append(self, token: Tensor) -> None:
        self.ids = torch.cat([self.ids, token.view(1, 1)], dim=-1)


@contextmanager
def argmax_inputs() -> Iterator[list[Tensor]]:
    """Keeps the numbers that tokens are chosen by."""
    inputs: list[Tensor] = []
    argmax = logits_ops.argmax

    def keep(numbers: Tensor) -> Tensor:
        inputs.append(numbers.clone())
        return argmax(numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logits_ops, "argmax", keep)
        yield inputs


@dataclass
class Batch:
    """A sampler, and a reference sampler for each of its requests."""

    loaded: LoadedModel

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.loaded, SLOTS, LENGTH)
        self.references: dict[int, ReferenceSampler] = {}
        self.draws: dict[int, bool] = {}

    def add(self, slot: int, decoding: DecodingParams, context: list[int], source: list[int] | None) -> None:
        self.sampler.add(slot, decoding, context, source)
        self.references[slot] = ReferenceSampler(self.loaded, decoding, context, source)
        self.draws[slot] = decoding.do_sample

    def remove(self, slot: int) -> None:
        self.sampler.remove(slot)
        del self.references[slot]

    def step(self, logits: Tensor, active: list[int]) -> None:
        """Samples, and compares each active slot with its reference."""
        before = logits.clone()
        with argmax_inputs() as inputs:
            output = self.sampler.sample(logits, active)
        errors = dict(self.sampler.errors)
        torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
        assert output.tokens.shape == output.is_finite.shape == (len(logits),)
        assert output.tokens.dtype == torch.int64
        # The argmax of greedy slots sees all rows; that of drawing slots sees their rows, in the order of the slots.
        drawn = [slot for slot in sorted(active) if self.draws[slot]]
        for slot in active:
            if (error := errors.pop(slot, None)) is not None:  # some processors do not take NaN
                with pytest.raises(type(error), match=re.escape(str(error))):
                    self.references[slot].step(logits[slot])
                self.remove(slot)
                continue
            expected, token = self.references[slot].step(logits[slot])
            numbers = inputs[-1][drawn.index(slot)] if self.draws[slot] else inputs[0][slot]
            torch.testing.assert_close(numbers.float(), expected[0], rtol=0, atol=0, equal_nan=True)
            assert output.is_finite[slot].item() == (token is not None)
            if token is not None:
                assert output.tokens[slot].item() == token.item()
            self.references[slot].append(output.tokens[slot])
        assert not errors


# Zoo models write at least 6 tokens and may force the last token. These options let a batch leave logits unchanged.
PLAIN = {"min_new_tokens": 0, "forced_eos_token_id": None}


def sample(sampler: Sampler, logits: Tensor, active: list[int]) -> list[int]:
    return sampler.sample(logits, active).tokens[active].tolist()
