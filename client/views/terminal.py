"""Prints text for people: unchanged into a pipe or a file, without control characters onto a terminal.

All texts, labels, names and errors are printed through this module. So rich reads none of them as markup, and a
terminal gets none of them as a command. This module knows rich and streams; it knows no tokens and no connections.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

_REPLACEMENT = "\ufffd"

# Unicode has pictures for the control characters of ASCII. It has none for other control characters, for marks that
# change the direction of text, and for marks that break lines or begin annotations.
_PICTURES: Mapping[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20)},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), _REPLACEMENT),
    **dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x2070)), _REPLACEMENT),
    **dict.fromkeys((0x2028, 0x2029, *range(0xFFF9, 0xFFFC)), _REPLACEMENT),
}
_PICTURES_WITHOUT_LINES = {code: picture for code, picture in _PICTURES.items() if chr(code) not in "\n\t"}


def escape_controls(text: str, *, keep_lines: bool = False) -> str:
    """Replaces each control character and each mark of direction by a picture of it, or by U+FFFD.

    Args:
        text: Any text.
        keep_lines: Keep line feeds and tabs, which only move a terminal's cursor forward.

    Returns:
        A text of the same length.
    """
    return text.translate(_PICTURES_WITHOUT_LINES if keep_lines else _PICTURES)


def make_console(*, no_color: bool = False, stderr: bool = False, force_terminal: bool | None = None) -> Console:
    """Makes a console that prints strings unchanged: no markup, no emoji codes, no highlighting."""
    return Console(
        no_color=True if no_color else None,
        stderr=stderr,
        force_terminal=force_terminal,
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_text(console: Console, text: str, *, style: str = "") -> None:
    """Prints a text and a line feed. On a terminal, control characters are escaped; otherwise the text is unchanged."""
    if console.is_terminal:
        console.print(Text(escape_controls(text, keep_lines=True), style), soft_wrap=True)
    else:
        console.file.write(f"{text}\n")
        console.file.flush()


def print_message(message: str) -> None:
    """Prints a message on standard error, in one line. Control characters are escaped, line feeds too."""
    print(escape_controls(message), file=sys.stderr)


def print_error(message: str) -> None:
    """Prints an error message, with the program's name before it."""
    print_message(f"sidelight: {message}")
