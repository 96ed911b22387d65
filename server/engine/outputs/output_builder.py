"""Builds a request's outputs from what the model gave: text, stop reasons, and the row that belongs to each step.

Knows texts and requests; runs no forward pass, and knows no queues.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ...capture import AttentionArrays
from ...errors import invalid, not_a_number
from ...models import LoadedModel
from ...request import (
    DecodingParams,
    EncoderSelf,
    Finished,
    Output,
    Request,
    Started,
    Step,
    StopReason,
    Unit,
    UnitPlan,
)
from ...runner import StepOutput, begin_text
from ...text import Detokenizer, StopTexts
from .observed_target import ObservedTarget, make_observed_target
from .unit_builder import UnitBuilder, group_encoder_self, group_prefix, spans_of

# Encoder self-attention is cut into parts of about this size, a fraction of what is held for a slow reader.
_PART_BYTES = 64 * 1024


def make_started(loaded: LoadedModel, request: Request) -> tuple[Detokenizer, Started]:
    """A detokenizer that has read the tokens before step 0, and the first output."""
    detokenizer, added = begin_text(loaded, request)
    if request.prefix is None:
        # Tokens that are part of a character have its text, where its other tokens are here too.
        context = [token._replace(text=detokenizer.text[token.begin : token.end]) for token in added]
    else:
        start_ids = request.decoder_prompt_ids[: len(request.decoder_prompt_ids) - len(request.prefix.tokens)]
        tokens = loaded.tokenizer.detokenize(start_ids).tokens
        context = [token._replace(begin=0, end=0, text="") for token in tokens]
        context += request.prefix.tokens
    seed = request.target.seed if isinstance(request.target, DecodingParams) else None
    started = Started(tuple(context), seed, detokenizer.text)
    return detokenizer, started if request.units is None else _add_units(started, request)


def _add_units(started: Started, request: Request) -> Started:
    """Adds what the units of the source and of the prefix cover."""
    assert request.units is not None
    source, prefix, text = request.source, started.decoder_prompt, started.prefix_text
    return replace(
        started,
        source_units=spans_of(request.units.source_units, source.tokens, source.text),
        prefix_units=spans_of(group_prefix(request, prefix, text), prefix, text),
    )


def make_unit_builder(loaded: LoadedModel, request: Request, started: Started) -> UnitBuilder | None:
    """What groups and cuts the rows of a request; None where rows are sent as they are."""
    if request.units is None:
        return None
    prefix = started.decoder_prompt
    num_prompt = 0 if loaded.is_encoder_decoder else len(request.source.tokens)
    return UnitBuilder(request, group_prefix(request, prefix, started.prefix_text), len(prefix), num_prompt)


def split_encoder_self(parts: Iterable[AttentionArrays] | None, units: UnitPlan | None) -> Iterator[EncoderSelf | None]:
    """Encoder self-attention in messages of a size that they can have. A waiting message keeps no other in memory.

    None says that the next message takes a computation: of the next of `parts`.
    """
    first_query = 0
    for part in (parts or ()) if units is None else group_encoder_self(parts or (), units):
        num_queries = len(part.values)
        size = max(1, _PART_BYTES // max(1, part.nbytes // max(1, num_queries)))
        for first in range(0, num_queries, size):
            yield EncoderSelf(first_query + first, part.copy_queries(slice(first, first + size)))
        first_query += num_queries
        yield None


class OutputBuilder:
    """What one decoded request has written so far, and when it stops. Does not change what the model computes."""

    def __init__(self, request: Request, detokenizer: Detokenizer, units: UnitBuilder | None = None) -> None:
        """`detokenizer` has read the tokens before step 0: see `make_started`. `units`: see `make_unit_builder`."""
        assert isinstance(request.target, DecodingParams)
        self._request = request
        self._params = request.target
        self._detokenizer = detokenizer
        self._units = units
        self._observed = make_observed_target(request)
        self._stop_texts = StopTexts(self._params.stop, len(detokenizer.text))
        self._reads_last = request.capture.row == "reading"
        self._last_step: Step | None = None  # waits for the row that reads its token
        self._stop_reason: StopReason | None = None
        self._unsent_text = ""  # of the steps that the request leaves out
        self.is_finished = False

    def add_token(self, output: StepOutput) -> list[Output]:
        """Takes what a forward pass gave. Returns the outputs that are complete.

        Raises RequestError where a logit or a score is NaN or infinite, and where no token was left to draw.
        """
        if self._stop_reason is None:  # else the pass has only read the last token, and its own token is not sent
            _check(output)
        if self._observed is not None:
            self._observed.add_pass(output.observed, output.step)
        outputs: list[Output] = []
        if self._last_step is not None:
            step, self._last_step = self._last_step, None
            if self._reads_last:
                step = replace(step, cross=output.cross, decoder_self=output.decoder_self)
            outputs = self._complete(step)
        if self.is_finished:
            return outputs
        step = self._add(output)
        if self._reads_last or self._lacks_row(step):
            self._last_step = step
            return outputs
        return [*outputs, *self._complete(step)]

    def _lacks_row(self, step: Step) -> bool:
        """Whether the last token needs another pass, whose row an observer wants. A special token needs none."""
        if self._stop_reason is None or step.token.special:
            return False
        return any(plan.row == "reading" for plan in self._request.observed.values())

    def _add(self, output: StepOutput) -> Step:
        """Adds a token to the text, and looks whether the text stops there.

        Returns the step, with its attention unless the next pass gives the row.
        """
        num_searched = len(self._detokenizer.text)
        text, token = self._detokenizer.add(output.token_id)
        self._stop_reason = find_stop(self._params, self._stop_texts, output, self._detokenizer.text, num_searched)
        if self._stop_reason is not None:
            rest, token = self._detokenizer.finish(token)
            text += rest
        cross, decoder_self = (None, None) if self._reads_last else (output.cross, output.decoder_self)
        return Step(output.step, token, text, output.scores, cross, decoder_self)

    def _complete(self, step: Step) -> list[Output]:
        """A step with its attention, and the end if it is the last step."""
        if self._observed is not None:
            is_last = self._stop_reason is not None
            if links := self._observed.add_tokens([step.token], self._detokenizer.text, is_last=is_last):
                step = replace(step, links=links)
        rows: list[Step | Unit] = []
        text = self._detokenizer.text
        if self._units is not None:
            rows += self._units.add(step, text)
        elif step.index >= self._request.resume_at:
            rows.append(step)
        if step.index < self._request.resume_at:
            self._unsent_text += step.text
        if self._stop_reason is not None and self._units is not None:
            rows += self._units.finish(text)
        if rows and self._unsent_text:
            rows[0], self._unsent_text = replace(rows[0], unsent_text=self._unsent_text), ""
        if self._stop_reason is None:
            return [*rows]
        self.is_finished = True
        finished = Finished(text, self._stop_reason, step.index + 1, self._params.seed)
        return [*rows, add_observations(finished, self._observed)]


def add_observations(finished: Finished, observed: ObservedTarget | None) -> Finished:
    """Adds what was made of the rows of observers."""
    if observed is None:
        return finished
    return replace(finished, signals=observed.find_signals(), alignment=observed.find_alignment())


def find_stop(
    params: DecodingParams, stop_texts: StopTexts, output: StepOutput, text: str, num_searched: int
) -> StopReason | None:
    """Why a target ends with a token; None where it goes on.

    `text` is the text of the target with the token, of which the first `num_searched` characters have no stop text.
    """
    is_last = output.step + 1 >= params.max_new_tokens
    if output.is_end_token and not params.ignore_eos:
        return "length" if is_last and params.forces_end else "end_token"
    if stop_texts.are_in(text, num_searched):
        return "stop_text"
    return "length" if is_last else None


def make_output_builder(
    loaded: LoadedModel, request: Request, detokenizer: Detokenizer, started: Started
) -> OutputBuilder:
    """Returns the builder of a request from what `make_started` has made."""
    return OutputBuilder(request, detokenizer, make_unit_builder(loaded, request, started))


def _check(output: StepOutput) -> None:
    """Raises RequestError where the token of a step cannot be sent."""
    if not output.has_candidates:
        message = "leaves no token to draw at this step: all of the vocabulary are ruled out"
        raise invalid("decoding", "NO_TOKEN_LEFT", message)
    if not (output.is_finite and all(map(math.isfinite, output.scores))):
        raise not_a_number()
