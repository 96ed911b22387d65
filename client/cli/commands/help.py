"""How `--help` looks: a short usage, what a command does, its options in groups, and examples at the end."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias

from ...views import escape_controls

_EXAMPLES = "examples:\n"


class _Formatter(argparse.HelpFormatter):
    """Wraps each paragraph, and leaves the lines of examples as they are."""

    def add_argument(self, action: argparse.Action) -> None:
        """Adds the lines of an argument."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            self._action_max_length += self._indent_increment  # by which commands are indented; argparse leaves it out

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        fill = super()._fill_text
        return "\n\n".join(
            textwrap.indent(each, indent) if each.startswith(_EXAMPLES) else fill(each, width, indent)
            for each in paragraphs
        )


class CommandParser(argparse.ArgumentParser):
    """A parser of a command. Its error messages quote arguments with their control characters escaped."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, formatter_class=_Formatter, **options)

    def error(self, message: str) -> NoReturn:
        """Ends the process with a message."""
        super().error(escape_controls(message, keep_lines=True))


Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"  # pyright: ignore[reportPrivateUsage]
"""To what a parser adds its commands."""


def add_command(
    commands: Commands, name: str, summary: str, details: str = "", *, usage: str = "", examples: Sequence[str] = ()
) -> CommandParser:
    """Adds a command.

    Args:
        commands: To which it is added.
        name: The word that calls the command.
        summary: What the command does, in a line for the list of commands, without a full stop.
        details: Sentences that only the help of the command shows.
        usage: The arguments in the first line of the help. Without it: all options, which may be many lines.
        examples: What users may type; a comment may stand behind two spaces and a #.

    Returns:
        The parser of the command, which has no arguments yet.
    """
    first = summary[0].upper() + summary[1:] + "."
    return commands.add_parser(
        name,
        help=summary,
        description=f"{first} {details}",
        epilog=format_examples(examples),
        usage=f"sidelight {name} {usage}" if usage else None,
    )


def format_examples(examples: Sequence[str]) -> str | None:
    """Returns examples as the end of a help."""
    return _EXAMPLES + textwrap.indent("\n".join(examples), "  ") if examples else None
