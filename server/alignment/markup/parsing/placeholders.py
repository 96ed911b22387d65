"""Placeholders: the parts of a text that a program replaces, such as %s, {name} and __name__.

The client's own pattern runs with RE2, whose time is linear in the text, so no pattern can keep the server busy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import re2

from ....errors import invalid, quote
from ....text import Span
from ..options import MAX_PATTERN_BYTES, MAX_TAGS

# The most bytes of memory of a client's pattern.
_MAX_PATTERN_MEMORY = 1 << 20

_KNOWN = re.compile(
    r"%\(\w[\w.\-]*\)[-+#0]*\d*(?:\.\d+)?[diouxXeEfFgGcrsa]"  # Python: %(name)s
    r"|%(?:\d+\$)?[-+#0']*(?:\*|\d+)?(?:\.(?:\*|\d+))?(?:hh|h|ll|l|L|q|j|z|t)?"
    r"(?:[dsiuf@]|%|[oxXeEFgGaAcCSpn](?!\w))"  # printf: %s, %1$s, %-5.2f, %%
    r"|\{\{[^{}]*\}\}"  # Mustache, Jinja: {{ name }}
    r"|[$#]?\{[\w.\-:!@\[\]]*\}"  # ICU, Python, shells: {name}, {0}, {}, ${name}, #{name}
    r"|__[^\W_]+(?:_[^\W_]+)*__"  # __name__
)
# The beginning of an ICU message with branches: {count, plural, one {# file} other {# files}}.
_BRANCHES = re.compile(r"\{\s*\w+\s*,\s*\w+")


class PlaceholderFinder:
    """Finds placeholders of all known kinds, and by one more pattern."""

    def __init__(self, pattern: str) -> None:
        """Raises RequestError for a pattern that RE2 does not accept."""
        self._pattern = _compile(pattern) if pattern else None

    def find(self, text: str) -> list[Span]:
        """Returns the placeholders of a text, ascending and without overlaps. The first and longest are chosen."""
        found = [match.span() for match in _KNOWN.finditer(text)]
        found += _find_branches(text)
        if self._pattern is not None:
            found += [match.span() for match in self._pattern.finditer(text)]
        spans: list[Span] = []
        end = 0
        for span in sorted(found, key=lambda span: (span[0], -span[1])):
            if end <= span[0] < span[1]:
                spans.append(span)
                end = span[1]
        if len(spans) > MAX_TAGS:
            raise invalid("source.text", "TOO_MANY_TAGS", f"has more than {MAX_TAGS:,} placeholders")
        return spans


def _compile(pattern: str) -> re2._Regexp:
    if len(pattern.encode()) > MAX_PATTERN_BYTES:
        raise invalid("markup.placeholder_pattern", "PATTERN_TOO_LONG", f"has more than {MAX_PATTERN_BYTES:,} bytes")
    options = re2.Options()
    options.max_mem = _MAX_PATTERN_MEMORY
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error.args[0])
        raise invalid(
            "markup.placeholder_pattern", "INVALID_PATTERN", f"is no pattern of RE2: {quote(reason)}"
        ) from None


def _find_branches(text: str) -> Iterator[Span]:
    """Yields ICU messages with branches. They are kept as a whole."""
    begins = {match.start() for match in _BRANCHES.finditer(text)}
    if not begins:
        return
    open_braces: list[int] = []
    for match in re.finditer(r"[{}]", text):
        if match.group() == "{":
            open_braces.append(match.start())
        elif open_braces and (begin := open_braces.pop()) in begins:
            yield begin, match.end()
