"""The arguments of `sidelight attribute` for decoding, and the Decoding made from them."""

from __future__ import annotations

import argparse
from typing import get_args

from ..parameters import Beam, Decoding, EarlyStopping, Sampling


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments to a parser."""
    decoding = parser.add_argument_group("how to decode")
    decoding.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="the most tokens to write; default: as many as the model and the server allow",
    )
    decoding.add_argument("--min-new-tokens", type=int, metavar="N", help="so many tokens before the target may end")
    decoding.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end behind this text; may be given several times"
    )
    decoding.add_argument("--ignore-eos", action="store_true", help="do not end at the end token")
    decoding.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="P",
        help="above 1: make tokens that the text has already less likely; default: the model's own, mostly 1",
    )
    decoding.add_argument("--sample", action="store_true", help="draw tokens instead of taking the most likely")
    decoding.add_argument(
        "--temperature", type=float, metavar="T", help="with --sample: above 1 is more varied, below 1 is less"
    )
    decoding.add_argument("--top-k", type=int, metavar="K", help="with --sample: only the K likeliest tokens")
    decoding.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="with --sample: only the likeliest tokens that together have the probability P",
    )
    decoding.add_argument("--seed", type=int, metavar="N", help="with --sample: the same N draws the same tokens")
    decoding.add_argument("--beam", type=int, metavar="WIDTH", help="beam search that keeps WIDTH hypotheses")
    decoding.add_argument(
        "--hypotheses", type=int, metavar="N", help="with --beam: show the N best hypotheses of a TEXT"
    )
    decoding.add_argument(
        "--length-penalty", type=float, metavar="P", help="with --beam: scores are divided by length to the power of P"
    )
    decoding.add_argument(
        "--early-stopping",
        choices=get_args(EarlyStopping),
        help="with --beam: end at WIDTH hypotheses, or when a better one is unlikely, or can never come",
    )
    decoding.add_argument("--no-repeat-ngram-size", type=int, metavar="N", help="write no N tokens in a row twice")


def build_decoding_option(args: argparse.Namespace) -> Decoding:
    """Builds the Decoding of parsed arguments. Ends the process with a message if they contradict each other."""
    return Decoding(
        _build_strategy(args),
        args.max_new_tokens,
        min_new_tokens=args.min_new_tokens,
        stop=args.stop,
        ignore_eos=args.ignore_eos,
        repetition_penalty=args.repetition_penalty,
        no_repeat_ngram_size=args.no_repeat_ngram_size,
    )


def _build_strategy(args: argparse.Namespace) -> Sampling | Beam | None:
    sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed}
    beam = {"hypotheses": args.hypotheses, "length_penalty": args.length_penalty, "early_stopping": args.early_stopping}
    beam = {name: value for name, value in beam.items() if value is not None}
    if args.sample and args.beam is not None:
        args.fail("--sample and --beam exclude each other")
    if not args.sample and any(value is not None for value in sampling.values()):
        args.fail("--temperature, --top-k, --top-p and --seed need --sample")
    if args.beam is None and beam:
        args.fail("--hypotheses, --length-penalty and --early-stopping need --beam")
    if args.sample:
        return Sampling(**sampling)
    return None if args.beam is None else Beam(args.beam, **beam)
