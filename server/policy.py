"""The policy of a follow stream, and what the policy says of each step: plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AlignAtt:
    """The policy of a follow stream for one source (Papi et al. 2023, arXiv:2305.11408).

    The rows of the observer "policy" say where a step looks. `first_held` is the first source token that is held back.
    """

    first_held: int


@dataclass(frozen=True)
class PolicyDecision:
    """What the policy of a follow stream says of a step.

    `source_token` is the source token that the step looks at most. `num_firm` is the number of source tokens, from the
    first, that the target up to this step is firm up to.
    """

    is_held: bool
    source_token: int
    num_firm: int
