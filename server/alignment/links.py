"""Links between the words of a source and of a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..text import Span


class Link(NamedTuple):
    """A link between two words.

    Attributes:
        source: The number of the source word, from 0.
        target: The number of the target word, from 0.
        score: How sure the link is, from 0 to 1.
    """

    source: int
    target: int
    score: float


class Alignment(NamedTuple):
    """The words of a source and of its target, and their links in the order of the target."""

    source: Sequence[Span]
    target: Sequence[Span]
    links: Sequence[Link]
