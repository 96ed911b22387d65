"""The elements of a flow, placed in the target of the flow.

pairs         targets of segments to targets of flows
units         words, cut where elements begin and end
runs          which target units an element covers
points        places beside a neighbour
arrangement   the order of elements in the target
placer        places all elements of a flow
placed        elements at their places: plain data
spacing       white space beside what a target did not have
writer        writes the target with its markup
"""

from .pairs import divide_target, join_sentences
from .placed import Place, Placed
from .placer import FlowPlacer
from .units import LinkedFlow
from .writer import TargetWriter, make_escapes

__all__ = [
    "FlowPlacer",
    "LinkedFlow",
    "Place",
    "Placed",
    "TargetWriter",
    "divide_target",
    "join_sentences",
    "make_escapes",
]
