"""`sidelight calibrate`: finds the heads of a model that align words, and writes them beside the model.

The command line imports this module in every installation. So torch is imported only when the command runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_EXPLANATION = """
FILE.tsv has a pair of texts in each line: the source, a tab, the target; further columns are left alone.
With --gold, line N of the gold file has the links of line N of FILE.tsv, as "source-target" pairs of word numbers
from 0 (the Pharaoh format); "0?1" and "0p1" are links that are possible and not sure. The gold file may end earlier:
the lines of FILE.tsv behind its end teach the lexicon alone. Without --gold, links of a statistical aligner are the
reference: eflomal if it is installed
(pip install 'sidelight[calibration]'), otherwise a model of Sidelight's own. Words are those of Unicode (UAX 29), and
punctuation marks are words of their own; with --pretokenized, what white space separates. A run that was broken off
goes on where it was.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `sidelight calibrate`."""
    parser.epilog = f"{_EXPLANATION.strip()}\n\n{parser.epilog or ''}"
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="the model's folder, or an id on the Hugging Face hub; without it, the bundled English-German model",
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        required=True,
        metavar="FILE.tsv",
        help="the texts: in each line a source, a tab, and its translation",
    )
    parser.add_argument(
        "--gold", type=Path, metavar="FILE", help="links of the first pairs, made by people (Pharaoh format)"
    )
    parser.add_argument(
        "--lexicon-pairs",
        type=Path,
        metavar="FILE.tsv",
        help="more pairs for the lexicon and the statistical aligner, never with --pretokenized's words",
    )
    parser.add_argument(
        "--pretokenized", action="store_true", help="the words of --pairs and --gold are what white space separates"
    )
    parser.add_argument("--no-lexicon", action="store_true", help="leave out the table of translations of words")
    parser.add_argument(
        "--max-pairs", type=_count, default=1000, metavar="N", help="pairs to measure at most; default 1000"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write; otherwise alignment_heads.json in the model's folder",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bars; they are on standard error, in a terminal only"
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE.svg", help="draw the error rate of each head, layers by heads"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError("must be a whole number from 1 to 100,000")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Calibrates a model. Returns the exit status."""
    from .calibration_run import CalibrationError, calibrate

    try:
        calibrate(args)
    except CalibrationError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # such as a disk that is full
        print(f"sidelight: {error.filename or 'a file'} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sidelight: broken off; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
