"""Elements at their places in the target of a flow: plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..flows import Node
from ..options import Placement
from .runs import Run


@dataclass(slots=True)
class Placed:
    """A node, or a part of a repeated node, at its place in the target of its flow.

    Attributes:
        node: The node.
        begin: Where it begins in the target of the flow.
        end: Where it ends.
        children: The nodes inside, in the order of the target.
    """

    node: Node
    begin: int
    end: int
    children: list[Placed] = field(default_factory=list["Placed"])


@dataclass(slots=True)
class Place:
    """How the place of a node was found."""

    placement: Placement
    score: float


@dataclass(slots=True)
class Child:
    """A node that is being placed: its source units, and the runs that have been found."""

    node: Node
    first: int
    last: int
    runs: list[Run]
    place: Place


def walk(root: Placed) -> Iterator[tuple[Placed, bool]]:
    """Yields each node twice, at its begin and at its end, without recursion."""
    waiting: list[tuple[Placed, bool]] = [(root, True)]
    while waiting:
        part, is_begin = waiting.pop()
        yield part, is_begin
        if is_begin:
            waiting.append((part, False))
            waiting += [(child, True) for child in reversed(part.children)]
