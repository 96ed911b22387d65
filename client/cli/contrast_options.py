"""The arguments of `sidelight attribute` for a second context, and the Contrast made from them."""

from __future__ import annotations

import argparse
import re

from ..parameters import Contrast


def add_contrast_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments to a parser."""
    contrast = parser.add_argument_group("a second context, for the contrast scores and for differences")
    contrast.add_argument("--contrast-source", metavar="TEXT", help="another source; or another prompt")
    contrast.add_argument("--contrast-prefix", metavar="TEXT", help="another beginning of the target")
    contrast.add_argument("--contrast-target", metavar="TEXT", help="with --target: another target")
    contrast.add_argument(
        "--contrast-alignments",
        type=parse_alignments,
        default=(),
        metavar="I-J,...",
        help="with --contrast-target: step I is compared with step J of that target, such as 0-0,1-3",
    )
    contrast.add_argument(
        "--subtract-attention",
        action="store_true",
        help="with --target: the attention less the attention in the second context",
    )
    contrast.add_argument(
        "--kl-top-p",
        type=float,
        metavar="P",
        help="kl_divergence over the likeliest tokens only, so many that their probabilities sum to P",
    )
    contrast.add_argument(
        "--kl-top-k", type=int, default=0, metavar="K", help="kl_divergence over the K likeliest tokens only"
    )


def build_contrast_option(args: argparse.Namespace) -> Contrast | None:
    """Builds the Contrast of parsed arguments; None without any. Ends the process if the second context is missing."""
    contrast = Contrast(
        source=args.contrast_source,
        prefix=args.contrast_prefix,
        target=args.contrast_target,
        alignments=args.contrast_alignments,
        subtract_attention=args.subtract_attention,
        kl_top_p=args.kl_top_p,
        kl_top_k=args.kl_top_k,
    )
    if contrast == Contrast():
        return None
    if (contrast.source, contrast.prefix, contrast.target) == (None, None, None):
        args.fail("the second context is missing: give --contrast-source, --contrast-prefix or --contrast-target")
    return contrast


def parse_alignments(text: str) -> list[tuple[int, int]]:
    """Parses pairs of steps: "0-0,1-3" is (0, 0), (1, 3). Raises ArgumentTypeError."""
    pairs: list[tuple[int, int]] = []
    for part in text.split(","):
        if (match := re.fullmatch(r"(\d+)-(\d+)", part)) is None:
            raise argparse.ArgumentTypeError(f"invalid pair of steps: {part!r}")
        pairs.append((int(match[1]), int(match[2])))
    return pairs
