"""Flows: the parts of a text that hold sentences, each a plain text with a tree of elements.

What stands between flows, such as block elements and the white space around them, is kept as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Side = Literal["left", "right"]


@dataclass(slots=True)
class Mark:
    """What a report says of one element, comment or placeholder. Offsets are -1 until they are known."""

    markup: str
    begin: int = -1
    end: int = -1


@dataclass(slots=True)
class Node:
    """An element of a flow, a point (an empty element, a comment, a tag without its partner), or a placeholder.

    Attributes:
        mark: The number of the mark.
        begin: Where the element begins in the text of the flow.
        end: Where the element ends. A point ends where it begins.
        start_tag: What stands before the contents. Empty where the element begins before the flow.
        end_tag: What stands behind the contents. Empty where the element ends behind the flow.
        children: The elements inside, in the order of the text.
        content: Of a placeholder and of contents that are not translated: their text in the flow. Otherwise None.
        raw_content: The same with its markup.
        is_repeatable: Whether the element may be repeated where its words come apart.
        side: The neighbour that a tag without a partner stays beside.
        is_visible: Of an element without text: whether it shows something there, such as an image.
        has_space_behind: Of such an element: whether the text of the flow leaves out white space that stands behind it.
        inner_marks: The marks of what is kept inside `raw_content`, or inside a point.
        is_open_left: Whether the element begins before the flow. Then it is the first child of its parent.
        is_open_right: Whether the element ends behind the flow. Then it is the last child of its parent.
    """

    mark: int
    begin: int = 0
    end: int = 0
    start_tag: str = ""
    end_tag: str = ""
    children: list[Node] = field(default_factory=list["Node"])
    content: str | None = None
    raw_content: str = ""
    is_repeatable: bool = False
    side: Side | None = None
    is_visible: bool = False
    has_space_behind: bool = False
    inner_marks: Sequence[int] = ()
    is_open_left: bool = False
    is_open_right: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the element begins before the flow or ends behind it."""
        return self.is_open_left or self.is_open_right


@dataclass(slots=True)
class Kept:
    """A piece between flows, which is kept as it is.

    Attributes:
        raw: The piece.
        begins: The numbers of the marks that begin here.
        ends: The numbers of the marks that end here.
    """

    raw: str
    begins: list[int] = field(default_factory=list[int])
    ends: list[int] = field(default_factory=list[int])


@dataclass(slots=True)
class Flow:
    """A part of the source that is placed as a whole.

    Attributes:
        text: The text without markup.
        root: The node around all nodes of the flow.
        begin: Where the flow begins in the source text.
        protected: The nodes with `content`, in the order of the text.
        sentences: The parts that are translated by themselves, and all that stands between.
    """

    text: str
    root: Node
    begin: int = 0
    protected: list[Node] = field(default_factory=list[Node])
    sentences: list[Sentence] = field(default_factory=list["Sentence"])


class StandIn(NamedTuple):
    """What the model reads in the place of a node's content.

    Attributes:
        node: The node.
        text: A word that models copy.
        begin: Where the word begins in what the model reads.
    """

    node: Node
    text: str
    begin: int


@dataclass(slots=True)
class Sentence:
    """A part of a flow that is translated by itself.

    Attributes:
        begin: Where the sentence begins in the text of the flow.
        end: Where the sentence ends.
        text: What the model reads. Empty: there is nothing to translate, and the target is the same text.
        stand_ins: The words in `text` that stand for contents that are not translated.
    """

    begin: int
    end: int
    text: str
    stand_ins: list[StandIn] = field(default_factory=list[StandIn])
