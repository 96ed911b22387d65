"""One job from its source to its last step: reading, choosing tokens, and the attention of each.

The steps of a job are a generator that does at most one forward pass between two events, so that whoever drives it can
stop, wait or turn to another job in between. Decoding is `generate`'s greedy search and sampling, with its logits
processors and its order of operations, so the tokens are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from .errors import internal
from .jobs import Decoding, EncoderSelf, Event, Finished, Given, Job, Started, Step, StopReason
from .models import LoadedModel
from .numbers import Numbers, fetch
from .reading import LAST_QUERY, NO_QUERIES, Reader
from .scores import score
from .tokenization import Detokenizer, Token

# Encoder self-attention is cut into parts of about this size, well below gRPC's usual limit of 4 MiB a message.
_PART_BYTES = 1024 * 1024


def attribute(loaded: LoadedModel, job: Job) -> Iterator[Event]:
    """The events of a job, in order. Must be driven in torch's inference mode. Raises RequestError."""
    detokenizer = _detokenizer(loaded, job)
    context = tuple(detokenizer.add(id_)[1] for id_ in job.context_ids)
    reader = Reader(loaded, job.capture, job.source.ids, job.context_ids)
    encoder_self = reader.read_source()
    yield Started(context, job.target.seed if isinstance(job.target, Decoding) else None)
    if encoder_self is not None:
        yield from _parts(encoder_self)
    if isinstance(job.target, Given):
        yield from _given(reader, job, job.target)
    else:
        yield from _decode(reader, loaded, job, job.target, detokenizer)


def _parts(attention: Numbers) -> Iterator[EncoderSelf]:
    """Encoder self-attention in parts of a size that messages can have."""
    count = len(attention.values)
    queries = max(1, _PART_BYTES // max(1, attention.nbytes // count))
    for first in range(0, count, queries):
        yield EncoderSelf(first, attention.of(slice(first, first + queries)))


def _detokenizer(loaded: LoadedModel, job: Job) -> Detokenizer:
    return Detokenizer(loaded.codec, () if loaded.is_encoder_decoder else job.source.ids)


def _given(reader: Reader, job: Job, target: Given) -> Iterator[Event]:
    """All steps of a known target, from one forward pass."""
    tokens, text = target.encoded.tokens, target.encoded.text
    ids = target.encoded.ids
    reads_last = job.capture.row == "reading"
    # The query that predicts a token is the one before it; the query that reads it is its own.
    first_query = len(reader.context) - (0 if reads_last else 1)
    fed = [*reader.context, *ids] if reads_last else [*reader.context, *ids[:-1]]
    queries = slice(first_query, None) if job.capture.kinds else NO_QUERIES
    result = reader.read(reader.tensor(fed), queries, logits=len(ids) + (1 if reads_last else 0), last=True)
    targets = reader.tensor(ids)[0]
    scores, *arrays = fetch([score(job.scores, result.logits[: len(ids)], targets, job.score_top_p), *result.tensors])
    cross, own = result.attention(arrays, job.capture)
    written = 0
    for index, token in enumerate(tokens):
        end = len(text) if index == len(tokens) - 1 else max(written, token.end)
        step = Step(index, token, text[written:end], scores[index].tolist())
        written = end
        if index < job.resume_at:
            continue
        if job.capture.covers(index):
            seen = first_query + index + 1
            step = replace(
                step,
                cross=None if cross is None else cross.of(index),
                decoder_self=None if own is None else own.of(index).up_to(seen),
            )
        yield step
    yield Finished(text, "given", len(tokens))


def _decode(
    reader: Reader, loaded: LoadedModel, job: Job, decoding: Decoding, detokenizer: Detokenizer
) -> Iterator[Event]:
    """The steps of a target that the model writes, each as soon as its token and its row exist.

    What the model needs for its next step stays on its device; what the client gets is fetched together, once a step.
    """
    chooser = _Chooser(loaded, reader, decoding)
    prefix = len(detokenizer.text)
    reads_last = job.capture.row == "reading"
    pending = reader.tensor(reader.context)
    step: Step | None = None
    stop: StopReason | None = None
    for index in itertools.count():
        # This pass's last query predicts the token of this step and reads the token of the step before.
        row_of = index - 1 if reads_last else index
        wanted = row_of >= job.resume_at and job.capture.covers(row_of)
        result = reader.read(pending, LAST_QUERY if wanted else NO_QUERIES, logits=1)
        choice = chooser.choose(result.logits)
        scores = score(job.scores, result.logits, choice.token[0], job.score_top_p)
        fetched = fetch([choice.token, choice.is_number, scores, *result.tensors])
        id_, is_number, step_scores = fetched[0].item(), fetched[1].item(), fetched[2][0].tolist()
        attention = result.attention(fetched[3:], job.capture)
        if reads_last and step is not None:
            if step.index >= job.resume_at:
                yield _with_attention(step, attention)
            if stop is not None:
                break
        if not is_number:
            raise internal("NOT_A_NUMBER", "the model computed numbers that are not finite; a wider dtype may help")
        text, token = detokenizer.add(id_)
        stop = _stop_reason(chooser, decoding, detokenizer.text[prefix:], id_, index)
        if stop is not None:
            text += detokenizer.flush()
            token = _completed(token, detokenizer.text)
        step = Step(index, token, text, step_scores)
        if not reads_last:
            if index >= job.resume_at:
                yield _with_attention(step, attention)
            if stop is not None:
                break
        pending = choice.token
    assert step is not None
    assert stop is not None
    yield Finished(detokenizer.text, stop, step.index + 1, decoding.seed)


def _with_attention(step: Step, attention: tuple[Numbers | None, Numbers | None]) -> Step:
    cross, own = attention
    return replace(
        step,
        cross=None if cross is None else cross.of(0),
        decoder_self=None if own is None else own.of(0),
    )


def _completed(token: Token, text: str) -> Token:
    """A token whose characters may have been held back until the text ended."""
    return replace(token, text=text[token.begin : token.end])


def _stop_reason(chooser: _Chooser, decoding: Decoding, text: str, id_: int, index: int) -> StopReason | None:
    if id_ in chooser.end_ids and not decoding.ignore_eos:
        return "end_token"
    if any(stop in text for stop in decoding.stop):
        return "stop_text"
    return "length" if index + 1 >= decoding.max_new_tokens else None


class _Choice(NamedTuple):
    """A token that was chosen, on the device."""

    token: Tensor  # [1, 1]
    is_number: Tensor  # whether the scores that it was chosen by were finite, or at least numbers


class _Chooser:
    """Chooses tokens as transformers' `generate` does."""

    def __init__(self, loaded: LoadedModel, reader: Reader, decoding: Decoding) -> None:
        config = generation_config(loaded, decoding, len(reader.context))
        end: Any = config.eos_token_id
        self.end_ids: frozenset[int] = frozenset(end if isinstance(end, list) else [end] if end is not None else [])
        self._ids = reader.tensor(reader.context)
        model: Any = loaded.model
        if decoding.ignore_eos:
            config.forced_eos_token_id = None
        model._prepare_special_tokens(config, True, device=model.device)
        self._processors: LogitsProcessorList = model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=len(reader.context),
            encoder_input_ids=reader.source if reader.source is not None else self._ids,
            logits_processor=LogitsProcessorList(),
            device=model.device,
            model_kwargs={},
        )
        self._generator: torch.Generator | None = None
        if decoding.do_sample:
            # One generator for each request: neighbours cannot change what it draws.
            self._generator = torch.Generator(model.device).manual_seed(decoding.seed or 0)

    def choose(self, logits: Tensor) -> _Choice:
        """The next token, from the logits `[1, vocabulary]` of the last one. Nothing here waits for the device."""
        scores = self._processors(self._ids, logits.to(torch.float32, copy=True))
        is_number = ~scores.isnan().any()
        if self._generator is None:
            chosen = scores.argmax(-1, keepdim=True)
        else:
            probabilities = scores.softmax(-1)
            is_number &= ~probabilities.isnan().any()
            # torch.multinomial's own way to draw one, to the number, without its look at the sum, which waits.
            draws = torch.empty_like(probabilities).exponential_(generator=self._generator)
            chosen = (probabilities / draws).argmax(-1, keepdim=True)
        self._ids = torch.cat([self._ids, chosen], dim=-1)
        return _Choice(chosen, is_number)


def generation_config(loaded: LoadedModel, decoding: Decoding, context: int) -> GenerationConfig:
    """The model's generation config with a request's wishes over it, for a context of so many tokens."""
    model: Any = loaded.model
    config, _ = model._prepare_generation_config(None)
    for name, value in decoding.generation.items():
        setattr(config, name, value)
    config.do_sample = decoding.do_sample
    config.num_beams = 1
    config.max_new_tokens = decoding.max_new_tokens
    # What `generate` makes of max_new_tokens; the processors for forced and minimal lengths count from here.
    config.max_length = context + decoding.max_new_tokens
    return config
