"""The parts of one answer that have arrived: what all streams share, whichever call carries them. Knows no connection.

A stream has a header, parts of encoder self-attention, steps, and an end. This module checks their order, and makes the
request that goes on where a broken stream has ended. `converters` parses the messages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import grpc
import numpy as np
from sidelight.v1 import attribution_service_pb2 as service_pb

from . import converters
from .errors import InternalError, SidelightError
from .offset_units import Token, UnitText
from .parameters import AttentionKind, Score
from .results import Attribution, EncoderSelf, Finished, FloatArray, Started, Step, Unit


class AnswerParts:
    """The parts of one answer. The reader of the stream owns them.

    Attributes:
        header: The header, as soon as it is there.
        steps: The steps that have arrived.
        finished: The end, as soon as it is there.
    """

    def __init__(self, request: service_pb.AttributeRequest) -> None:
        self.header: Started | None = None
        self.steps: list[Step] = []
        self.finished: Finished | None = None
        self._request = request
        self._encoder_self: list[EncoderSelf] = []
        self._num_returned = 0  # how many of the steps `pop_step` has returned
        self._units: list[Unit] = []
        self._num_units_returned = 0

    def add(self, response: service_pb.AttributeResponse) -> None:
        """Stores the parts of one response. Raises InternalError if they do not fit the contract."""
        try:
            self._add(response)
        except (ValueError, KeyError, IndexError) as error:
            message = f"the server's answer does not fit the contract: {error}"
            raise InternalError(message, grpc.StatusCode.INTERNAL) from error

    def _add(self, response: service_pb.AttributeResponse) -> None:
        if response.HasField("started"):
            header = converters.parse_started(response.started)
            if self._request.contrast.subtract_attention:
                header = dataclasses.replace(header, is_difference=True, is_share=False)
            self._set_header(header)
        elif response.HasField("finished"):
            self.finished = converters.parse_finished(response.finished)
        elif self.header is None:
            raise ValueError("the header is missing")
        elif response.HasField("encoder_self"):
            self._encoder_self.append(converters.parse_encoder_self(response.encoder_self, self.header))
        elif response.HasField("units"):
            for message in response.units.units:
                unit = self._name_unit(converters.parse_unit(message, self.header))
                # A resumed stream sends units again whose next step has not arrived.
                if not self._units or unit.index > self._units[-1].index:
                    self._units.append(unit)
        else:
            for message in response.steps.steps:
                step = converters.parse_step(message, self.header)
                if self.steps and step.index != self.steps[-1].index + 1:
                    raise ValueError(f"step {step.index} comes after step {self.steps[-1].index}")
                self.steps.append(step)

    def _name_unit(self, unit: Unit) -> Unit:
        """Gives the unit of a special token the piece of this token, if its step has arrived."""
        index = unit.first_step - self.steps[0].index if self.steps else -1
        if not unit.span.special or not 0 <= index < len(self.steps):
            return unit
        return dataclasses.replace(unit, span=dataclasses.replace(unit.span, piece=self.steps[index].token.piece))

    def _set_header(self, header: Started) -> None:
        """Stores a header. Raises ValueError for a resumed stream that is not of the same source."""
        if self.header is not None and header.source != self.header.source:
            raise ValueError("the server that goes on reads the source in another way")
        self.header = header
        self._encoder_self = []  # it comes again with each header

    def pop_step(self) -> Step | None:
        """Returns the next step that has arrived and was not returned before; None if there is no such step."""
        if self._num_returned == len(self.steps):
            return None
        self._num_returned += 1
        return self.steps[self._num_returned - 1]

    def pop_unit(self) -> Unit | None:
        """Returns the next unit that has arrived and was not returned before; None if there is no such unit."""
        if self._num_units_returned == len(self._units):
            return None
        self._num_units_returned += 1
        return self._units[self._num_units_returned - 1]

    def require_header(self) -> Started:
        """Returns the header. Raises SidelightError if there is none."""
        if self.header is None:
            raise SidelightError("the stream was cut off before its header", grpc.StatusCode.DATA_LOSS)
        return self.header

    def collect(self) -> Attribution:
        """Returns the result. Raises SidelightError if the end is not there."""
        if self.header is None or self.finished is None:
            raise SidelightError("the stream was cut off before its end", grpc.StatusCode.DATA_LOSS)
        return build_attribution(self.header, self._encoder_self, self.steps, self.finished, self._units)

    def next_request(self) -> service_pb.AttributeRequest:
        """Returns the request whose answer begins with the first part that has not arrived.

        A server that draws tokens needs the seed of the broken stream, which the header has.
        """
        request = service_pb.AttributeRequest()
        request.CopyFrom(self._request)
        if self.steps:
            request.resume_at = self.steps[-1].index + 1
        if self.header is not None and self.header.seed is not None:
            request.decoding.sampling.seed = self.header.seed
        return request


def build_attribution(
    started: Started,
    encoder_self: Sequence[EncoderSelf],
    steps: Sequence[Step],
    finished: Finished,
    units: Sequence[Unit] = (),
) -> Attribution:
    """Builds the whole result from the parts of a stream."""
    rows: Sequence[Step | Unit] = steps if started.grouping == "token" else units
    positions = started.first_position + (rows[-1].index + 1 if rows else 0)
    text = UnitText(finished.text, started.offset_unit)
    return Attribution(
        started=started,
        steps=tuple(_complete_token(step.token, text) for step in steps),
        text=finished.text,
        stop_reason=finished.stop_reason,
        usage=finished.usage,
        hypotheses=finished.hypotheses,
        signals=finished.signals,
        alignment=finished.alignment,
        first_step=steps[0].index if steps else 0,
        cross=_stack_rows([row.cross for row in rows], started.source_length),
        decoder_self=_stack_rows([row.decoder_self for row in rows], positions),
        encoder_self=np.concatenate([part.attention for part in encoder_self]) if encoder_self else None,
        special_shares=_join_shares(encoder_self, rows),
        scores=_stack_scores(steps, started.scores),
        units=tuple(dataclasses.replace(unit, cross=None, decoder_self=None) for unit in units),
        unit_scores={} if started.grouping == "token" else _stack_scores(units, started.scores),
    )


def _stack_scores(rows: Sequence[Step | Unit], names: Sequence[Score]) -> dict[Score, FloatArray]:
    return {name: np.array([row.scores[name] for row in rows], np.float32) for name in names}


def _join_shares(encoder_self: Sequence[EncoderSelf], rows: Sequence[Step | Unit]) -> dict[AttentionKind, FloatArray]:
    """Joins the shares of special tokens of all rows, by kind. A step without a row has NaN."""
    joined: dict[AttentionKind, FloatArray] = {}
    kinds: tuple[AttentionKind, ...] = ("cross", "decoder_self")
    for kind in kinds:
        shares = [row.special_shares.get(kind) for row in rows]
        first = next((share for share in shares if share is not None), None)
        if first is not None:
            joined[kind] = np.stack([np.full_like(first, np.nan) if share is None else share for share in shares])
    parts = [part.special_shares for part in encoder_self if part.special_shares is not None]
    if parts:
        joined["encoder_self"] = np.concatenate(parts)
    return joined


def _complete_token(token: Token, text: UnitText) -> Token:
    """Returns a step's token with its whole text.

    The first bytes of a character arrive in steps before the character is known.
    """
    text_of_span = text.slice(token.begin, token.end)
    is_longer = text_of_span != token.text and text_of_span.startswith(token.text)
    return dataclasses.replace(token, text=text_of_span) if is_longer else token


def _stack_rows(rows: Iterable[FloatArray | None], positions: int) -> FloatArray | None:
    """Stacks the rows of steps, each `[positions seen, ...]`, into `[positions, steps, ...]`.

    A position that a step has not seen, and a step without a row, has NaN. None if no step has a row.
    """
    rows = list(rows)
    first_row = next((row for row in rows if row is not None), None)
    if first_row is None:
        return None
    stacked = np.full((positions, len(rows), *first_row.shape[1:]), np.nan, first_row.dtype)
    for index, row in enumerate(rows):
        if row is not None:
            stacked[: row.shape[0], index] = row
    return stacked
