"""transformers' logits processors of a request, read as SamplingParams, by which many requests decode at once.

transformers makes the processors, from a model's generation config and a request's options. So transformers decides
which processors apply and in which order. This module reads them; the arithmetic is in `logits_ops`. Nothing here
touches the device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers as tf
from transformers import GenerationConfig, LogitsProcessorList

from ..models import LoadedModel
from ..request import DecodingParams
from .params import SamplingParams

# Longer n-grams are left to transformers' own processor: `ban_repeated_ngrams` needs one comparison for each token of
# an n-gram.
_MAX_NGRAM_SIZE = 8


def generation_config(loaded: LoadedModel, decoding: DecodingParams, context: int) -> GenerationConfig:
    """Returns the model's generation config with a request's options over it, for a context of so many tokens."""
    config = copy.copy(loaded.generation_config)  # a shallow copy: its lists are read and never changed
    for name, value in decoding.generation.items():
        setattr(config, name, value)
    config.do_sample = decoding.do_sample
    config.num_beams = 1
    config.max_new_tokens = decoding.max_new_tokens
    # `generate` computes max_length in this way. The processors for forced and minimal lengths use it.
    config.max_length = context + decoding.max_new_tokens
    if decoding.ignore_eos:
        config.forced_eos_token_id = None
    return config


def end_ids(config: GenerationConfig) -> frozenset[int]:
    """Returns the tokens that end a target."""
    ids: Any = config.eos_token_id
    return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


def make_processors(
    loaded: LoadedModel,
    config: GenerationConfig,
    context: Sequence[int],
    source: Sequence[int] | None,
    device: torch.device,
) -> LogitsProcessorList:
    """Makes the processors that `generate` would use, in its order. Raises ValueError for contradictory options."""
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


def read_params(processors: LogitsProcessorList, vocabulary: int) -> SamplingParams | None:
    """Reads processors as SamplingParams; None where the processors do more than SamplingParams can express.

    `vocabulary` is the number of tokens that have logits. Processors must be on the CPU.
    """
    ranks = [_RANKS.get(type(processor)) for processor in processors]
    known = [rank for rank in ranks if rank is not None]
    if len(known) < len(ranks) or known != sorted(set(known)):
        return None
    params: SamplingParams | None = SamplingParams()
    for processor in processors:
        params = _READERS[type(processor)](processor, params, vocabulary)
        if params is None:
            return None
    return params


_Reader = Callable[[Any, SamplingParams, int], SamplingParams | None]


def _repetition_penalty(processor: Any, params: SamplingParams, _: int) -> SamplingParams:
    return replace(params, repetition_penalty=processor.penalty)


def _ngrams(processor: Any, params: SamplingParams, _: int) -> SamplingParams | None:
    return replace(params, ngram_size=processor.ngram_size) if processor.ngram_size <= _MAX_NGRAM_SIZE else None


def _bad_words(processor: Any, params: SamplingParams, vocabulary: int) -> SamplingParams | None:
    """Reads words of one token. A token outside the vocabulary is an error, which the processor itself raises."""
    words = list(processor.sequence_bias)
    if any(len(ids) > 1 or ids[0] >= vocabulary for ids in words):
        return None
    return replace(params, bad_words=tuple(ids[0] for ids in words))


def _min_length(processor: Any, params: SamplingParams, vocabulary: int) -> SamplingParams:
    ids = _within(processor.eos_token_id, vocabulary)
    return replace(params, min_length=max(params.min_length, processor.min_length), end_ids=ids)


def _min_new_tokens(processor: Any, params: SamplingParams, vocabulary: int) -> SamplingParams:
    length = processor.prompt_length_to_skip + processor.min_new_tokens
    ids = _within(processor.eos_token_id, vocabulary)
    return replace(params, min_length=max(params.min_length, length), end_ids=ids)


def _forced_first(processor: Any, params: SamplingParams, vocabulary: int) -> SamplingParams | None:
    return _forced(params, 1, (int(processor.bos_token_id),), vocabulary)


def _forced_last(processor: Any, params: SamplingParams, vocabulary: int) -> SamplingParams | None:
    ids: Any = processor.eos_token_id.reshape(-1).tolist()
    return _forced(params, processor.max_length - 1, tuple(ids), vocabulary)


def _forced(params: SamplingParams, length: int, ids: tuple[int, ...], vocabulary: int) -> SamplingParams | None:
    """Adds tokens that are forced at a length. If two processors force tokens at one length, the later one wins."""
    if any(not 0 <= id_ < vocabulary for id_ in ids):
        return None
    return replace(params, forced=params.forced | {length: ids})


def _suppressed(processor: Any, params: SamplingParams, vocabulary: int) -> SamplingParams:
    return replace(params, suppressed=_within(processor.suppress_tokens, vocabulary))


def _begin_suppressed(processor: Any, params: SamplingParams, vocabulary: int) -> SamplingParams:
    ids = _within(processor.begin_suppress_tokens, vocabulary)
    return replace(params, begin_length=processor.begin_index, begin_suppressed=ids)


def _temperature(processor: Any, params: SamplingParams, _: int) -> SamplingParams:
    return replace(params, temperature=processor.temperature)


def _top_k(processor: Any, params: SamplingParams, vocabulary: int) -> SamplingParams:
    return replace(params, top_k=min(processor.top_k, vocabulary))


def _top_p(processor: Any, params: SamplingParams, _: int) -> SamplingParams:
    return replace(params, top_p=processor.top_p)


def _renormalize(_processor: Any, params: SamplingParams, _: int) -> SamplingParams:
    return replace(params, renormalize=True)


def _within(ids: torch.Tensor, vocabulary: int) -> tuple[int, ...]:
    """Returns the ids that have logits. transformers ignores the others too."""
    return tuple(int(id_) for id_ in ids.reshape(-1).tolist() if 0 <= id_ < vocabulary)


# In the order in which `generate` applies the processors, which is the order of the fields of SamplingParams.
_READERS: dict[type, _Reader] = {
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
_RANKS = {processor_type: rank for rank, processor_type in enumerate(_READERS)}
