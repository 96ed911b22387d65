"""Text on its way to people: as it is into a pipe or a file, without control characters onto a terminal.

Texts, labels, names and errors pass here before they are printed, so that none of them is read as rich's markup, and
none reaches a terminal as a command. Knows rich and streams; knows no tokens and no connections.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

_REPLACEMENT = "\ufffd"

# The controls of ASCII have pictures. Other controls, the marks that change the direction of what follows, and those
# that break lines or begin annotations have none.
_PICTURES: Mapping[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20)},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), _REPLACEMENT),
    **dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x2070)), _REPLACEMENT),
    **dict.fromkeys((0x2028, 0x2029, *range(0xFFF9, 0xFFFC)), _REPLACEMENT),
}
_PICTURES_IN_LINES = {code: picture for code, picture in _PICTURES.items() if chr(code) not in "\n\t"}


def escape_controls(text: str, *, keep_lines: bool = False) -> str:
    """A text with a picture, or U+FFFD, for each control character and each mark of direction; of the same length.

    Args:
        text: Any text.
        keep_lines: Leave line feeds and tabs, which move a terminal's cursor onwards only.
    """
    return text.translate(_PICTURES_IN_LINES if keep_lines else _PICTURES)


def make_console(*, no_color: bool = False, stderr: bool = False, force_terminal: bool | None = None) -> Console:
    """A console that takes every string for what it is: no markup, no emoji codes, no highlighting."""
    return Console(
        no_color=True if no_color else None,
        stderr=stderr,
        force_terminal=force_terminal,
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_text(console: Console, text: str, *, style: str = "") -> None:
    """Prints a text and ends its line: verbatim, unless the console is a terminal, where controls are escaped."""
    if console.is_terminal:
        console.print(Text(escape_controls(text, keep_lines=True), style), soft_wrap=True)
    else:
        console.file.write(f"{text}\n")
        console.file.flush()


def print_message(message: str) -> None:
    """Prints a message for people on standard error: one line, controls escaped, line feeds too."""
    print(escape_controls(message), file=sys.stderr)


def print_error(message: str) -> None:
    """Prints what went wrong, in the name of the program."""
    print_message(f"sidelight: {message}")
