"""The commands of `sidelight`, and their parser.

parser        all commands and their arguments
help          how `--help` looks: usage, groups, examples
queries       `sidelight models`, `health` and `cancel`: one call to a server
completion    `sidelight completion`: scripts with which a shell completes commands and options
"""

from .parser import make_parser

__all__ = ["make_parser"]
