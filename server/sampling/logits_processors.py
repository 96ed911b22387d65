"""What a request's logits processors do, as numbers that many requests can be decoded by at once.

transformers makes the processors, from a model's generation config and a request's wishes, so that what applies, and in
which order, is its own word. Here they are read; the arithmetic is in `logits_ops`. Nothing here touches the device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers as tf
from transformers import GenerationConfig, LogitsProcessorList

from ..models import LoadedModel
from ..request import DecodingParams

# Longer n-grams are left to transformers' own processor: theirs are found by as many comparisons as they have tokens.
_LONGEST_NGRAM = 8


@dataclass(frozen=True)
class SamplingParams:
    """What is done to the scores of one request, in the order of the fields. Lengths count the context's tokens."""

    repetition_penalty: float = 1.0
    ngram_size: int = 0  # 0: n-grams may come again
    bad_words: tuple[int, ...] = ()
    min_length: int = 0  # `ends` may not come before
    ends: tuple[int, ...] = ()
    forced: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])  # by the length so far
    suppressed: tuple[int, ...] = ()
    begin: int = 0  # the length at which `begin_suppressed` may not come
    begin_suppressed: tuple[int, ...] = ()
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    renormalize: bool = False

    @property
    def needs_history(self) -> bool:
        """Whether the tokens so far matter."""
        return self.repetition_penalty != 1.0 or self.ngram_size > 0

    def changes(self) -> tuple[int, ...]:
        """The lengths at which something begins or ends to apply."""
        forced = [length for at in self.forced for length in (at, at + 1)]
        begin = [self.begin, self.begin + 1] if self.begin_suppressed else []
        return (*forced, *begin, *([self.min_length] if self.ends else []))


def generation_config(loaded: LoadedModel, decoding: DecodingParams, context: int) -> GenerationConfig:
    """The model's generation config with a request's wishes over it, for a context of so many tokens."""
    config = copy.copy(loaded.generation_config)  # its lists are looked at, and never changed
    for name, value in decoding.generation.items():
        setattr(config, name, value)
    config.do_sample = decoding.do_sample
    config.num_beams = 1
    config.max_new_tokens = decoding.max_new_tokens
    # What `generate` makes of max_new_tokens; the processors for forced and minimal lengths count from here.
    config.max_length = context + decoding.max_new_tokens
    if decoding.ignore_eos:
        config.forced_eos_token_id = None
    return config


def end_ids(config: GenerationConfig) -> frozenset[int]:
    """The tokens that end a target."""
    ids: Any = config.eos_token_id
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


def processors_of(
    loaded: LoadedModel,
    config: GenerationConfig,
    context: Sequence[int],
    source: Sequence[int] | None,
    device: torch.device,
) -> LogitsProcessorList:
    """The processors that `generate` would use, in its order. Raises ValueError where the config makes no sense."""
    model: Any = loaded.model
    model._prepare_special_tokens(config, True, device=device)
    return model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=len(context),
        encoder_input_ids=torch.tensor([list(context if source is None else source)], device=device),
        logits_processor=LogitsProcessorList(),
        device=device,
        model_kwargs={},
    )


def read_options(processors: LogitsProcessorList, vocabulary: int) -> SamplingParams | None:
    """The options that do what processors do; None where they do more than options can say.

    `vocabulary` is how many tokens have scores. Processors must be on the CPU.
    """
    places = [_PLACES.get(type(processor)) for processor in processors]
    known = [place for place in places if place is not None]
    if len(known) < len(places) or known != sorted(set(known)):
        return None
    options: SamplingParams | None = SamplingParams()
    for processor in processors:
        options = _READERS[type(processor)](processor, options, vocabulary)
        if options is None:
            return None
    return options


_Read = Callable[[Any, SamplingParams, int], SamplingParams | None]


def _repetition_penalty(processor: Any, options: SamplingParams, _: int) -> SamplingParams:
    return replace(options, repetition_penalty=processor.penalty)


def _ngrams(processor: Any, options: SamplingParams, _: int) -> SamplingParams | None:
    return replace(options, ngram_size=processor.ngram_size) if processor.ngram_size <= _LONGEST_NGRAM else None


def _bad_words(processor: Any, options: SamplingParams, vocabulary: int) -> SamplingParams | None:
    """Words of one token; a word that the vocabulary lacks is an error, which is the processor's to raise."""
    words = list(processor.sequence_bias)
    if any(len(ids) > 1 or ids[0] >= vocabulary for ids in words):
        return None
    return replace(options, bad_words=tuple(ids[0] for ids in words))


def _min_length(processor: Any, options: SamplingParams, vocabulary: int) -> SamplingParams:
    ends = _within(processor.eos_token_id, vocabulary)
    return replace(options, min_length=max(options.min_length, processor.min_length), ends=ends)


def _min_new_tokens(processor: Any, options: SamplingParams, vocabulary: int) -> SamplingParams:
    length = processor.prompt_length_to_skip + processor.min_new_tokens
    ends = _within(processor.eos_token_id, vocabulary)
    return replace(options, min_length=max(options.min_length, length), ends=ends)


def _forced_first(processor: Any, options: SamplingParams, vocabulary: int) -> SamplingParams | None:
    return _forced(options, 1, (int(processor.bos_token_id),), vocabulary)


def _forced_last(processor: Any, options: SamplingParams, vocabulary: int) -> SamplingParams | None:
    ids: Any = processor.eos_token_id.reshape(-1).tolist()
    return _forced(options, processor.max_length - 1, tuple(ids), vocabulary)


def _forced(options: SamplingParams, length: int, ids: tuple[int, ...], vocabulary: int) -> SamplingParams | None:
    """Where two tokens are forced at one length the later processor wins."""
    if any(not 0 <= id_ < vocabulary for id_ in ids):
        return None
    return replace(options, forced=options.forced | {length: ids})


def _suppressed(processor: Any, options: SamplingParams, vocabulary: int) -> SamplingParams:
    return replace(options, suppressed=_within(processor.suppress_tokens, vocabulary))


def _begin_suppressed(processor: Any, options: SamplingParams, vocabulary: int) -> SamplingParams:
    ids = _within(processor.begin_suppress_tokens, vocabulary)
    return replace(options, begin=processor.begin_index, begin_suppressed=ids)


def _temperature(processor: Any, options: SamplingParams, _: int) -> SamplingParams:
    return replace(options, temperature=processor.temperature)


def _top_k(processor: Any, options: SamplingParams, vocabulary: int) -> SamplingParams:
    return replace(options, top_k=min(processor.top_k, vocabulary))


def _top_p(processor: Any, options: SamplingParams, _: int) -> SamplingParams:
    return replace(options, top_p=processor.top_p)


def _renormalize(_processor: Any, options: SamplingParams, _: int) -> SamplingParams:
    return replace(options, renormalize=True)


def _within(ids: torch.Tensor, vocabulary: int) -> tuple[int, ...]:
    """Those of some ids that have scores; the others are left alone by transformers too."""
    return tuple(int(id_) for id_ in ids.reshape(-1).tolist() if 0 <= id_ < vocabulary)


# In the order in which `generate` applies them, which is the order of the fields of Options.
_READERS: dict[type, _Read] = {
    tf.RepetitionPenaltyLogitsProcessor: _repetition_penalty,
    tf.NoRepeatNGramLogitsProcessor: _ngrams,
    tf.NoBadWordsLogitsProcessor: _bad_words,
    tf.MinLengthLogitsProcessor: _min_length,
    tf.MinNewTokensLengthLogitsProcessor: _min_new_tokens,
    tf.ForcedBOSTokenLogitsProcessor: _forced_first,
    tf.ForcedEOSTokenLogitsProcessor: _forced_last,
    tf.SuppressTokensLogitsProcessor: _suppressed,
    tf.SuppressTokensAtBeginLogitsProcessor: _begin_suppressed,
    tf.TemperatureLogitsWarper: _temperature,
    tf.TopKLogitsWarper: _top_k,
    tf.TopPLogitsWarper: _top_p,
    tf.LogitNormalization: _renormalize,
}
_PLACES = {kind: place for place, kind in enumerate(_READERS)}
