"""The Pharaoh format: links as "source-target" pairs of word numbers from 0, separated by white space."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .links import Link

# Some tools write "source-target-score", and "p" or "?" in the place of "-" where a person was not sure.
_PAIR = re.compile(r"(\d{1,9})([-p?])(\d{1,9})(?:-(\d+(?:\.\d*)?(?:e-\d+)?))?", re.ASCII)

# The most characters of a wrong pair that an error quotes.
_MAX_QUOTED = 40


class PharaohError(ValueError):
    """A text that is not in the Pharaoh format, or that names a word that a text does not have."""


def parse_pharaoh(text: str, num_source: int | None = None, num_target: int | None = None) -> list[Link]:
    """Parses links. A pair that comes twice counts once. Returns the links in the order of the target.

    A pair may have a score, as in "0-1-0.5"; the score of a pair without one is 1.

    Args:
        text: The links of one pair of texts.
        num_source: The number of source words. None: not checked.
        num_target: The number of target words. None: not checked.

    Raises:
        PharaohError: With a message for people.
    """
    sure, possible = parse_gold(text, num_source, num_target)
    return sort_links([*sure, *possible])


def parse_gold(
    text: str, num_source: int | None = None, num_target: int | None = None
) -> tuple[list[Link], list[Link]]:
    """Parses links as `parse_pharaoh` does, and tells the sure links ("0-1") from the possible ones ("0?1", "0p1").

    Returns the sure links, and those that are possible alone. A pair that is both is sure.
    """
    links: dict[tuple[int, int], Link] = {}
    sure: set[tuple[int, int]] = set()
    for number, pair in enumerate(text.split(), 1):
        match = _PAIR.fullmatch(pair)
        if match is None:
            raise PharaohError(f'pair {number} is {_quote(pair)}, not "source-target" with two numbers from 0')
        link = Link(int(match[1]), int(match[3]), 1.0 if match[4] is None else float(match[4]))
        for side, word, count in (("source", link.source, num_source), ("target", link.target, num_target)):
            if count is not None and word >= count:
                raise PharaohError(f"pair {number} is {_quote(pair)}, and the {side} has {_count_words(count)}")
        if not 0 <= link.score <= 1:
            raise PharaohError(f"pair {number} is {_quote(pair)}, and a score must be from 0 to 1")
        links[link.source, link.target] = link
        if match[2] == "-":
            sure.add((link.source, link.target))
    ordered = sort_links(links.values())
    return [link for link in ordered if link[:2] in sure], [link for link in ordered if link[:2] not in sure]


def format_pharaoh(links: Iterable[Link]) -> str:
    """Writes links in their order, without their scores."""
    return " ".join(f"{link.source}-{link.target}" for link in links)


def sort_links(links: Iterable[Link]) -> list[Link]:
    """Returns the links in the order of the target, then of the source."""
    return sorted(links, key=lambda link: (link.target, link.source))


def _quote(pair: str) -> str:
    shown = pair if len(pair) <= _MAX_QUOTED else f"{pair[:_MAX_QUOTED]}…"
    return f'"{shown}"'


def _count_words(count: int) -> str:
    return f"only {count} word{'' if count == 1 else 's'}, which count from 0" if count else "no words"
