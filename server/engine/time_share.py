"""How much time work beside the decode steps may take: as much as the steps take.

Given targets and the starts of requests that are held back are such work. Knows seconds; knows no requests.
"""

from __future__ import annotations

# Without decode steps: seconds of other work before the engine looks at waiting requests again.
_TURN_SECONDS = 0.02


class TimeShare:
    """The balance between decode steps and other work. For the engine's thread."""

    def __init__(self) -> None:
        self._debt = 0.0  # seconds of other work less seconds of steps: other work may go on while it is at most 0
        self.has_put_off = False  # whether other work was put off since the last step

    @property
    def is_balanced(self) -> bool:
        """Whether other work has had no more time than the steps."""
        return self._debt <= 0

    def may_work(self, *, can_decode: bool) -> bool:
        """Whether other work may go on now; `can_decode` says whether any request can take a decode step."""
        return self._debt <= (0.0 if can_decode else _TURN_SECONDS)

    def add_work(self, seconds: float) -> None:
        """Takes note of other work."""
        self._debt += seconds

    def add_step(self, seconds: float) -> None:
        """Takes note of a decode step."""
        self._debt = max(self._debt - seconds, -seconds)

    def clear(self) -> None:
        """Forgets the balance: there was no step to take."""
        self._debt = 0.0
