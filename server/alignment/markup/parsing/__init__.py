"""Texts with markup, cut into pieces.

pieces         Piece: a tag, a comment, a text; all pieces together are the text again
html_parser    HTML as pieces
html_names     the elements of HTML, by kind
xml_parser     XML and XLIFF as pieces
tags           which tags belong together, which contents are kept, which tags end a segment
placeholders   the parts of a text that a program replaces
"""

from .html_parser import parse_html
from .pieces import Piece, check_count
from .placeholders import PlaceholderFinder
from .tags import (
    check_matches,
    find_blocks,
    is_hidden,
    is_preformatted,
    is_repeatable,
    is_verbatim,
    match_tags,
    pair_name,
)
from .xml_parser import parse_xml

__all__ = [
    "Piece",
    "PlaceholderFinder",
    "check_count",
    "check_matches",
    "find_blocks",
    "is_hidden",
    "is_preformatted",
    "is_repeatable",
    "is_verbatim",
    "match_tags",
    "pair_name",
    "parse_html",
    "parse_xml",
]
