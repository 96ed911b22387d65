"""`sidelight completion`: prints the script with which a shell completes commands, options, choices and file names.

The script is static: the shell starts no Python when Tab is pressed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import cast

SHELLS = ("bash", "zsh", "fish")

# What the values of arguments are, by the names that `--help` gives these values.
_FILES = ("FILE", "FILE.tsv", "FILE.svg", "PATH")
_FOLDERS = ("DIR", "MODEL")

# `sidelight kernels` has a parser of its own, whose import needs torch.
_KERNELS_COMMANDS = ("audit", "bench", "build")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `sidelight completion` to a parser."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")


def print_script(shell: str, parser: argparse.ArgumentParser) -> int:
    """Prints a script that completes what a parser takes. Changes the parser. Returns the exit status."""
    import shtab

    for action in _list_actions(parser):
        if action.dest == "kernels_arguments":
            action.choices = _KERNELS_COMMANDS
        elif action.metavar in _FILES:
            action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # pyright: ignore[reportAttributeAccessIssue]
    print(shtab.complete(parser, shell=shell))
    return 0


def _list_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yields the arguments of a parser and of its commands."""
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        yield action
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            for command in cast("dict[str, argparse.ArgumentParser]", vars(action)["choices"]).values():
                yield from _list_actions(command)
