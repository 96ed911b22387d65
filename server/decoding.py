"""One job from its source to its last step: reading, choosing tokens, and the attention of each.

The steps of a job are a generator that does at most one forward pass between two events, so that whoever drives it can
stop, wait or turn to another job in between. Decoding is `generate`'s greedy search and sampling, with its logits
processors and its order of operations, so the tokens are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    detokenizer = detokenizer_of(loaded, job)
    context = tuple(detokenizer.add(id_)[1] for id_ in job.context_ids)
    reader = Reader(loaded, job.capture, job.source.ids, job.context_ids)
    encoder_self = reader.read_source()
    yield Started(context, job.target.seed if isinstance(job.target, Decoding) else None)
    if encoder_self is not None:
        yield from parts_of(encoder_self)
    if isinstance(job.target, Given):
        yield from _given(reader, job, job.target)
    else:
        yield from _decode(reader, loaded, job, job.target, detokenizer)


def parts_of(attention: Numbers) -> Iterator[EncoderSelf]:
    """Encoder self-attention in parts of a size that messages can have."""
    count = len(attention.values)
    queries = max(1, _PART_BYTES // max(1, attention.nbytes // count))
    for first in range(0, count, queries):
        yield EncoderSelf(first, attention.of(slice(first, first + queries)))


def detokenizer_of(loaded: LoadedModel, job: Job) -> Detokenizer:
    """A detokenizer that has read what comes before a continuation."""
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
    chooser = Chooser(loaded, decoding, reader.context, reader.source)
    writer = Writer(job, decoding, detokenizer, chooser.end_ids)
    pending = reader.tensor(reader.context)
    while not writer.ended:
        # This pass's last query predicts the token of this step and reads the token of the step before.
        result = reader.read(pending, LAST_QUERY if writer.wants_row else NO_QUERIES, logits=1)
        choice = chooser.choose(result.logits)
        scores = score(job.scores, result.logits, choice.token[0], job.score_top_p)
        fetched = fetch([choice.token, choice.is_number, scores, *result.tensors])
        id_, is_number, step_scores = fetched[0].item(), fetched[1].item(), fetched[2][0].tolist()
        yield from writer.write(id_, is_number, step_scores, result.attention(fetched[3:], job.capture))
        pending = choice.token


class Writer:
    """What a request has written so far, and when it stops. Has no part in what the model computes."""

    def __init__(self, job: Job, decoding: Decoding, detokenizer: Detokenizer, end_ids: frozenset[int]) -> None:
        self._job = job
        self._decoding = decoding
        self._detokenizer = detokenizer
        self._end_ids = end_ids
        self._prefix = len(detokenizer.text)
        self._reads_last = job.capture.row == "reading"
        self._index = 0  # of the step that the next token is
        self._step: Step | None = None  # the last, which a row that reads it comes after
        self._stop: StopReason | None = None
        self.ended = False

    @property
    def wants_row(self) -> bool:
        """Whether the attention of the next pass's last query is sent."""
        row_of = self._index - 1 if self._reads_last else self._index
        return row_of >= self._job.resume_at and self._job.capture.covers(row_of)

    def write(
        self,
        id_: int,
        is_number: bool,
        scores: Sequence[float],
        attention: tuple[Numbers | None, Numbers | None],
    ) -> Iterator[Event]:
        """Takes what a pass gave: the token that was chosen, its scores, and cross and decoder self-attention.

        Raises RequestError where the numbers are none.
        """
        if self._reads_last and self._step is not None:
            yield from self._sent(self._step, attention)
            if self._stop is not None:
                yield self._finished(self._stop)
                return
        if not is_number:
            raise internal("NOT_A_NUMBER", "the model computed numbers that are not finite; a wider dtype may help")
        text, token = self._detokenizer.add(id_)
        self._stop = self._stop_reason(id_)
        if self._stop is not None:
            text += self._detokenizer.flush()
            token = _completed(token, self._detokenizer.text)
        self._step = Step(self._index, token, text, scores)
        self._index += 1
        if not self._reads_last:
            yield from self._sent(self._step, attention)
            if self._stop is not None:
                yield self._finished(self._stop)

    def _sent(self, step: Step, attention: tuple[Numbers | None, Numbers | None]) -> Iterator[Step]:
        cross, own = attention
        if step.index >= self._job.resume_at:
            yield replace(
                step,
                cross=None if cross is None else cross.of(0),
                decoder_self=None if own is None else own.of(0),
            )

    def _finished(self, stop: StopReason) -> Finished:
        self.ended = True
        return Finished(self._detokenizer.text, stop, self._index, self._decoding.seed)

    def _stop_reason(self, id_: int) -> StopReason | None:
        if id_ in self._end_ids and not self._decoding.ignore_eos:
            return "end_token"
        text = self._detokenizer.text[self._prefix :]
        if any(stop in text for stop in self._decoding.stop):
            return "stop_text"
        return "length" if self._index + 1 >= self._decoding.max_new_tokens else None


def _completed(token: Token, text: str) -> Token:
    """A token whose characters may have been held back until the text ended."""
    return replace(token, text=text[token.begin : token.end])


class Choice(NamedTuple):
    """A token that was chosen, on the device."""

    token: Tensor  # [1, 1]
    is_number: Tensor  # whether the scores that it was chosen by were finite, or at least numbers


class Chooser:
    """Chooses tokens as transformers' `generate` does."""

    def __init__(self, loaded: LoadedModel, decoding: Decoding, context: Sequence[int], source: Tensor | None) -> None:
        """`context` is what the decoder reads before step 0; `source` what an encoder has read, `[1, S]`."""
        config = generation_config(loaded, decoding, len(context))
        end: Any = config.eos_token_id
        self.end_ids: frozenset[int] = frozenset(end if isinstance(end, list) else [end] if end is not None else [])
        model: Any = loaded.model
        self._ids = torch.tensor([list(context)], device=model.device)
        if decoding.ignore_eos:
            config.forced_eos_token_id = None
        model._prepare_special_tokens(config, True, device=model.device)
        self._processors: LogitsProcessorList = model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=len(context),
            encoder_input_ids=source if source is not None else self._ids,
            logits_processor=LogitsProcessorList(),
            device=model.device,
            model_kwargs={},
        )
        self._generator: torch.Generator | None = None
        if decoding.do_sample:
            # One generator for each request: neighbours cannot change what it draws.
            self._generator = torch.Generator(model.device).manual_seed(decoding.seed or 0)

    def choose(self, logits: Tensor) -> Choice:
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
        return Choice(chosen, is_number)


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
