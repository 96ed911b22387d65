"""Flows: the parts of a text that hold sentences, each a plain text with a tree of elements.

nodes              Flow, Node, and what is kept between flows: plain data
document_builder   pieces to flows
flow_builder       one flow
sentences          what a model reads of a flow
"""

from .document_builder import SEPARATOR, DocumentBuilder
from .nodes import Flow, Kept, Mark, Node, Sentence, Side, StandIn
from .sentences import divide_flow

__all__ = [
    "SEPARATOR",
    "DocumentBuilder",
    "Flow",
    "Kept",
    "Mark",
    "Node",
    "Sentence",
    "Side",
    "StandIn",
    "divide_flow",
]
