"""One job from its source to its last step: reading, choosing tokens, and the attention of each.

The steps of a job are a generator that does at most one forward pass between two events, so that whoever drives it can
stop, wait or turn to another job in between. Tokens are those of `generate`'s greedy search and sampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from ..capture.arrays import AttentionArrays, are_finite, to_host
from ..errors import invalid, not_a_number
from ..models.loader import LoadedModel
from ..request import (
    DecodingParams,
    EncoderSelf,
    Finished,
    GivenTarget,
    Output,
    Request,
    Started,
    Step,
    StopReason,
)
from ..runner.unbatched_runner import LAST_QUERY, NO_QUERIES, UnbatchedRunner
from ..sampling.sampler import Sampler
from ..sampling.step_scores import step_scores
from ..text.tokenizer import Detokenizer, Token

# Encoder self-attention is cut into parts of about this size, a fraction of what is held for a slow reader.
_PART_BYTES = 64 * 1024


def attribute(loaded: LoadedModel, job: Request) -> Iterator[Output]:
    """The events of a job, in order. Must be driven in torch's inference mode. Raises RequestError."""
    detokenizer, started = begin(loaded, job)
    reader = UnbatchedRunner(loaded, job.capture, job.source.ids, job.context_ids)
    encoder_self = reader.read_source()
    yield started
    if encoder_self is not None:
        yield from parts_of(encoder_self)
        encoder_self = None  # its memory, while steps are made and wait
    if isinstance(job.target, GivenTarget):
        yield from _given(reader, job, job.target)
    else:
        yield from _decode(reader, loaded, job, job.target, detokenizer)


def parts_of(attention: AttentionArrays) -> Iterator[EncoderSelf]:
    """Encoder self-attention in parts of a size that messages can have. A part that waits keeps no other in memory."""
    count = len(attention.values)
    queries = max(1, _PART_BYTES // max(1, attention.nbytes // count))
    for first in range(0, count, queries):
        yield EncoderSelf(first, attention.copy_of(slice(first, first + queries)))


def check_numbers(*numbers: AttentionArrays | None) -> None:
    """Raises RequestError where any of the numbers is NaN or infinite."""
    if not all(each is None or are_finite(each) for each in numbers):
        raise not_a_number()


def begin(loaded: LoadedModel, job: Request) -> tuple[Detokenizer, Started]:
    """A detokenizer that has read what comes before step 0, and the first event."""
    detokenizer = Detokenizer(loaded.tokenizer, () if loaded.is_encoder_decoder else job.source.ids, job.prefix)
    if job.prefix is None:
        added = [detokenizer.add(id_)[1] for id_ in job.context_ids]
        # Tokens that are part of a character have its text, where its other tokens are here too.
        context = [replace(token, text=detokenizer.text[token.begin : token.end]) for token in added]
    else:
        start = job.context_ids[: len(job.context_ids) - len(job.prefix.tokens)]
        context = [replace(token, begin=0, end=0, text="") for token in loaded.tokenizer.detokenize(start).tokens]
        context += job.prefix.tokens
    return detokenizer, Started(tuple(context), job.target.seed if isinstance(job.target, DecodingParams) else None)


def _given(reader: UnbatchedRunner, job: Request, target: GivenTarget) -> Iterator[Output]:
    """All steps of a known target, from one forward pass."""
    tokens, text = target.encoded.tokens, target.encoded.text
    ids = target.encoded.ids
    reads_last = job.capture.row == "reading"
    # The query that predicts a token is the one before it; the query that reads it is its own.
    first_query = len(reader.context) - (0 if reads_last else 1)
    fed = [*reader.context, *ids] if reads_last else [*reader.context, *ids[:-1]]
    queries = slice(first_query, None) if job.capture.kinds else NO_QUERIES
    result = reader.read(reader.tensor(fed), queries, logits=len(ids) + (1 if reads_last else 0), last=True)
    logits, targets = result.logits[: len(ids)], reader.tensor(ids)[0]
    # The greatest of a row is NaN where any is.
    greatest = logits.amax(-1).float()
    scores, made, *arrays = to_host(
        [step_scores(job.scores, logits, targets, job.score_top_p), greatest, *result.tensors]
    )
    cross, own = result.attention(arrays, job.capture)
    check_numbers(AttentionArrays(made), AttentionArrays(scores), cross, own)
    del result, logits, targets, greatest  # the logits' memory, while steps wait
    for index, (token, added) in enumerate(zip(tokens, _added(text, tokens), strict=True)):
        step = Step(index, token, added, scores[index].tolist())
        if index < job.resume_at:
            continue
        if job.capture.covers(index):
            seen = first_query + index + 1
            step = replace(
                step,
                cross=None if cross is None else cross.copy_of(index),
                decoder_self=None if own is None else own.copy_of(index, seen),
            )
        yield step
    yield Finished(text, "given", len(tokens))


def _added(text: str, tokens: Sequence[Token]) -> Iterator[str]:
    """What each token of a whole text adds to it. A character of several tokens comes with the last of them."""
    limits: list[int] = []  # where the next token begins that is not special
    limit = len(text)
    for token in reversed(tokens):
        limits.append(limit)
        limit = limit if token.special else token.begin
    written = end = 0
    for index, (token, limit) in enumerate(zip(tokens, reversed(limits), strict=True)):
        end = max(end, token.end)
        until = len(text) if index == len(tokens) - 1 else max(written, min(end, limit))
        yield text[written:until]
        written = until


def _decode(
    reader: UnbatchedRunner, loaded: LoadedModel, job: Request, decoding: DecodingParams, detokenizer: Detokenizer
) -> Iterator[Output]:
    """The steps of a target that the model writes, each as soon as its token and its row exist.

    What the model needs for its next step stays on its device; what the client gets is fetched together, once a step.
    """
    sampler = Sampler(loaded, 1, len(reader.context) + decoding.max_new_tokens)
    sampler.add(0, decoding, reader.context, job.source.ids if loaded.is_encoder_decoder else None)
    writer = Writer(job, decoding, detokenizer, sampler.end_ids(0))
    pending = reader.tensor(reader.context)
    while not writer.ended:
        # This pass's last query predicts the token of this step and reads the token of the step before.
        result = reader.read(pending, LAST_QUERY if writer.wants_row else NO_QUERIES, logits=1)
        choice = sampler.sample(result.logits, (0,))
        if sampler.failed:
            raise sampler.failed[0]
        scores = step_scores(job.scores, result.logits, choice.tokens, job.score_top_p)
        is_left = torch.ones_like(choice.is_number) if choice.is_left is None else choice.is_left
        id_, is_number, left, made, *rest = to_host([choice.tokens, choice.is_number, is_left, scores, *result.tensors])
        cross, own = (rows if rows is None else rows.of(0) for rows in result.attention(rest, job.capture))
        check_numbers(cross, own)
        yield from writer.write(id_.item(), is_number.item(), left.item(), made[0].tolist(), (cross, own))
        pending = choice.tokens[:, None]


class Writer:
    """What a request has written so far, and when it stops. Has no part in what the model computes."""

    def __init__(
        self, job: Request, decoding: DecodingParams, detokenizer: Detokenizer, end_ids: frozenset[int]
    ) -> None:
        self._job = job
        self._decoding = decoding
        self._detokenizer = detokenizer
        self._end_ids = end_ids
        # A stop text ends where the text ends: what was looked at before holds its beginning at most.
        self._looked_at = self._prefix = len(detokenizer.text)
        self._stop_overlap = max(map(len, decoding.stop), default=1) - 1
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
        is_left: bool,
        scores: Sequence[float],
        attention: tuple[AttentionArrays | None, AttentionArrays | None],
    ) -> Iterator[Output]:
        """Takes what a pass gave: the token that was chosen, its scores, and its last query's attention.

        The attention is cross and decoder self, each of one query, and finite. Raises RequestError where a score is
        not, where the token was chosen by scores that were not, or where no token was left to choose.
        """
        if not is_left:
            message = "leaves no token to draw at this step: all of the vocabulary are ruled out"
            raise invalid("decoding", "NO_TOKEN_LEFT", message)
        if not (is_number and all(map(math.isfinite, scores))):
            raise not_a_number()
        if self._reads_last and self._step is not None:
            yield from self._sent(self._step, attention)
            if self._stop is not None:
                yield self._finished(self._stop)
                return
        text, token = self._detokenizer.add(id_)
        self._stop = self._stop_reason(id_)
        if self._stop is not None:
            rest, token = self._detokenizer.finish(token)
            text += rest
        self._step = Step(self._index, token, text, scores)
        self._index += 1
        if not self._reads_last:
            yield from self._sent(self._step, attention)
            if self._stop is not None:
                yield self._finished(self._stop)

    def _sent(self, step: Step, attention: tuple[AttentionArrays | None, AttentionArrays | None]) -> Iterator[Step]:
        if step.index >= self._job.resume_at:
            cross, own = attention
            yield replace(step, cross=cross, decoder_self=own)

    def _finished(self, stop: StopReason) -> Finished:
        self.ended = True
        return Finished(self._detokenizer.text, stop, self._index, self._decoding.seed)

    def _stop_reason(self, id_: int) -> StopReason | None:
        if id_ in self._end_ids and not self._decoding.ignore_eos:
            return "end_token"
        if self._decoding.stop and self._has_stop():
            return "stop_text"
        return "length" if self._index + 1 >= self._decoding.max_new_tokens else None

    def _has_stop(self) -> bool:
        """Whether what has come since the last call completes a stop text."""
        text = self._detokenizer.text
        tail = text[max(self._prefix, self._looked_at - self._stop_overlap) :]
        self._looked_at = len(text)
        return any(stop in tail for stop in self._decoding.stop)
