"""The texts of one request, and the offsets in them in the unit that the request asks for."""

from __future__ import annotations

from ..request import GivenTarget, Request, Started, Step, Unit
from ..text import OffsetMap


class RequestOffsets:
    """The offsets of one request whose unit is not the server's own. For the task that streams its outputs.

    Attributes:
        source: The source.
        target: The target as far as it has been sent, or the given target.
    """

    def __init__(self, request: Request) -> None:
        self._is_given = isinstance(request.target, GivenTarget)
        self.source = OffsetMap(request.offset_unit, request.source.text)
        text = request.target.text.text if isinstance(request.target, GivenTarget) else ""
        self.target = OffsetMap(request.offset_unit, text)

    def add_started(self, started: Started) -> None:
        """Takes the text of the prefix. Call it once, before the first step."""
        if not self._is_given:
            self.target.append(started.prefix_text)

    def add_step(self, step: Step) -> None:
        """Takes the text that a step adds to the target."""
        if not self._is_given:
            self.target.append(step.unsent_text + step.text)

    def add_unit(self, unit: Unit) -> None:
        """Takes the text of steps that are left out before a unit."""
        if not self._is_given:
            self.target.append(unit.unsent_text)


def offsets_of(request: Request) -> RequestOffsets | None:
    """Returns the offsets of a request; None if its unit is the server's own."""
    return None if request.offset_unit == "code_point" else RequestOffsets(request)
