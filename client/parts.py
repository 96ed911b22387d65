"""The parts of one answer that have arrived: what all streams share, whichever call carries them. Knows no connection.

A stream has a header, parts of encoder self-attention, steps, and an end. This module checks their order, and makes the
request that goes on where a broken stream has ended. `converters` parses the messages.
"""

from __future__ import annotations

import grpc
from sidelight.v1 import attribution_service_pb2 as service_pb

from . import converters
from .errors import InternalError, SidelightError
from .results import Attribution, EncoderSelf, Finished, Started, Step, Unit, build_attribution


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
            self._set_header(converters.parse_started(response.started))
        elif response.HasField("finished"):
            self.finished = converters.parse_finished(response.finished)
        elif self.header is None:
            raise ValueError("the header is missing")
        elif response.HasField("encoder_self"):
            self._encoder_self.append(converters.parse_encoder_self(response.encoder_self, self.header))
        elif response.HasField("units"):
            for message in response.units.units:
                unit = converters.parse_unit(message, self.header)
                # A resumed stream sends units again whose next step has not arrived.
                if not self._units or unit.index > self._units[-1].index:
                    self._units.append(unit)
        else:
            for message in response.steps.steps:
                step = converters.parse_step(message, self.header)
                if self.steps and step.index != self.steps[-1].index + 1:
                    raise ValueError(f"step {step.index} comes after step {self.steps[-1].index}")
                self.steps.append(step)

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
