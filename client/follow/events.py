"""The events of a follow stream that other streams do not have. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from ..results import EncoderSelf, Finished, Started, Step


@dataclass(frozen=True)
class StepCount:
    """How many steps of a follow stream are left after `take_back`."""

    num_steps: int


@dataclass(frozen=True)
class AwaitingSource:
    """A follow stream has written what its policy allows, and waits for more source.

    Attributes:
        num_steps: How many steps are written.
        firm_source_tokens: As in `PolicyDecision`.
    """

    num_steps: int
    firm_source_tokens: int


FollowEvent = Started | EncoderSelf | Step | StepCount | AwaitingSource | Finished
"""What a follow stream yields."""
