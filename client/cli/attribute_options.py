"""The arguments of `sidelight attribute`, and the client's options made from them."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import get_args

from ..alignments import LinkOptions
from ..parameters import (
    AttentionKind,
    Capture,
    Decoding,
    Encoding,
    Grouping,
    Head,
    Method,
    OffsetUnit,
    Padding,
    Reduction,
    Row,
    Score,
    SpecialTokens,
    SpecialTokensInText,
    TextSpan,
    Truncation,
    UnitOptions,
)
from ..request import AttributeOptions
from .connection_options import add_connection_arguments, add_model_arguments
from .contrast_options import add_contrast_arguments, build_contrast_option
from .decoding_options import add_decoding_arguments, build_decoding_option
from .sources import SourceKind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `sidelight attribute` to a parser."""
    parser.set_defaults(fail=parser.error)
    _add_text_arguments(parser)
    _add_capture_arguments(parser)
    _add_score_arguments(parser)
    _add_unit_arguments(parser)
    add_decoding_arguments(parser)
    add_contrast_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--show-links",
        action="store_true",
        help="link the words of both texts; a .npz file holds the links too",
    )
    output.add_argument(
        "--signals",
        action="store_true",
        help="numbers that judge the target as a whole: coverage, repetition and more; a .npz file holds them too",
    )
    output.add_argument("--save", metavar="PATH", help="save in a file: .json for Inseq, .npz for NumPy, .html a page")
    output.add_argument(
        "--offset-unit",
        choices=get_args(OffsetUnit),
        default="code_point",
        help="what SPANS count, and the spans in a .npz file; default code_point",
    )
    output.add_argument("--no-color", action="store_true", help="shades instead of colours")
    output.add_argument("--quiet", action="store_true", help="print only the text: no heatmap, no progress bar")
    add_connection_arguments(parser)


def build_options(args: argparse.Namespace) -> AttributeOptions:
    """Builds the options of `Client.attribute` from parsed arguments.

    Ends the process with a message, as a parser does, if arguments contradict each other.
    """
    options: AttributeOptions = {
        "model": args.model,
        "source_language": args.source_language,
        "target_language": args.target_language,
        "capture": _build_capture(args),
        "scores": args.scores,
        "timeout": args.timeout,
        "request_id": args.request_id,
        "resume": args.resume,
    }
    decoding = build_decoding_option(args)
    if args.target is None:
        options["decoding"] = decoding
    elif decoding == Decoding(stop=[]):
        options["target"] = args.target
    else:
        args.fail("a given target is not decoded: --target goes without decoding options")
    if args.prefix is not None:
        options["prefix"] = args.prefix
    if (contrast := build_contrast_option(args)) is not None:
        options["contrast"] = contrast
    if args.special_tokens_in_text != "text":
        options["special_tokens_in_text"] = args.special_tokens_in_text
    if args.truncate != "none":
        options["truncate"] = args.truncate
    if args.show_links:
        options["link_options"] = LinkOptions()
    if args.signals:
        options["signals"] = True
    if args.offset_unit != "code_point":
        options["offset_unit"] = args.offset_unit
    if args.padding != "refuse":
        options["padding"] = args.padding
    if args.score_top_p is not None:
        options["score_top_p"] = args.score_top_p
    if args.no_special_tokens:
        options["add_special_tokens"] = False
    return options


def capture_all_kinds(options: AttributeOptions, kinds: Sequence[AttentionKind]) -> None:
    """Adds all kinds of a model to the options, for a file. Options that name kinds stay as they are."""
    capture = options.get("capture") or Capture()
    if not capture.kinds:
        options["capture"] = dataclasses.replace(capture, kinds=tuple(kinds))


def parse_layers(text: str) -> list[int]:
    """Parses numbers and ranges: "0,2-4" is 0, 2, 3, 4. Raises ArgumentTypeError."""
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"invalid number or range: {part!r}")
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return layers


def parse_heads(text: str) -> list[Head] | str:
    """Parses heads, each with or without a weight: "2.3,0.1:0.5" is (2, 3), (0, 1, 0.5). Raises ArgumentTypeError.

    A text that begins with a letter is the name of a preset.
    """
    if text[:1].isalpha():
        return text
    heads: list[Head] = []
    for part in text.split(","):
        if (match := re.fullmatch(r"(\d+)\.(\d+)(?::(\d+(?:\.\d*)?|\.\d+))?", part)) is None:
            raise argparse.ArgumentTypeError(f"invalid LAYER.HEAD[:WEIGHT]: {part!r}")
        layer, head = int(match[1]), int(match[2])
        heads.append((layer, head) if match[3] is None else (layer, head, float(match[3])))
    return heads


def parse_spans(text: str) -> list[TextSpan]:
    """Parses spans of a text: "0-5,7-9" is (0, 5), (7, 9). Raises ArgumentTypeError."""
    spans: list[TextSpan] = []
    for part in text.split(","):
        if (match := re.fullmatch(r"(\d+)-(\d+)", part)) is None or int(match[2]) <= int(match[1]):
            raise argparse.ArgumentTypeError(f"invalid BEGIN-END: {part!r}")
        spans.append((int(match[1]), int(match[2])))
    return spans


def parse_steps(text: str) -> tuple[int, int | None]:
    """Parses a part of the steps: "0-10" is (0, 10), and "5-" is (5, None). Raises ArgumentTypeError."""
    if (match := re.fullmatch(r"(\d+)-(\d*)", text)) is None:
        raise argparse.ArgumentTypeError(f"invalid BEGIN-[END]: {text!r}")
    return int(match[1]), int(match[2]) if match[2] else None


# ---- arguments ------------------------------------------------------------------------------------------------------


def _add_text_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="?", metavar="TEXT", help="the text to translate or to continue")
    parser.add_argument(
        "--file", metavar="FILE", help="a file with one text on each line; of a .tsv, the first column; - is stdin"
    )
    parser.add_argument(
        "--source-kind",
        choices=get_args(SourceKind),
        default="text",
        help="what TEXT and each line of FILE is: a text, the default; token ids, separated by spaces; the messages of "
        "a chat, in JSON; or a .npy file with the features of a recording",
    )
    parser.add_argument(
        "--padding",
        choices=get_args(Padding),
        default="refuse",
        help="of token ids: refuse padding, the default, or mask it",
    )
    add_model_arguments(parser, "text")
    parser.add_argument("--target", metavar="TEXT", help="attribute this target instead of writing one")
    parser.add_argument("--prefix", metavar="TEXT", help="the beginning of the target")
    parser.add_argument(
        "--special-tokens-in-text",
        choices=get_args(SpecialTokensInText),
        default="text",
        help='read "</s>" and the like in TEXT as text, the default, or as special tokens (parse), for prompts',
    )
    parser.add_argument(
        "--no-special-tokens",
        action="store_true",
        help="add no special tokens around TEXT, because it is a rendered prompt",
    )
    parser.add_argument(
        "--truncate",
        choices=get_args(Truncation),
        default="none",
        help="of a text that is too long: refuse it (none), the default, or leave out tokens at its left or right end",
    )
    parser.add_argument("--request-id", default="", metavar="ID", help="an id to cancel by; of a file, its beginning")
    parser.add_argument(
        "--resume",
        type=int,
        default=0,
        metavar="N",
        help="go on after a broken stream, with at most N tries in a row; default 0: do not",
    )


def _add_capture_arguments(parser: argparse.ArgumentParser) -> None:
    capture = parser.add_argument_group("what to capture")
    kinds = ", ".join(get_args(AttentionKind))
    capture.add_argument("--kinds", type=_parse_kinds, metavar="KINDS", help=f"of {kinds}, separated by commas")
    capture.add_argument(
        "--layers", type=parse_layers, metavar="LAYERS", help="layers from 0, such as 0,2-4; default: all layers"
    )
    capture.add_argument(
        "--heads",
        type=parse_heads,
        metavar="L.H[:W],...",
        help="single heads, LAYER.HEAD from 0, such as 2.3,2.0; with weights 2.3:0.8,2.0:0.2; or a preset of the "
        "model: alignment",
    )
    capture.add_argument("--reduce", choices=get_args(Reduction), help="reduce heads to one, then layers to one")
    capture.add_argument("--reduce-heads", choices=get_args(Reduction), help="reduce only heads to one")
    capture.add_argument("--reduce-layers", choices=get_args(Reduction), help="then reduce layers to one")
    capture.add_argument(
        "--row", choices=get_args(Row), help="the query that predicts a token, which is the default, or reads it"
    )
    capture.add_argument(
        "--encoding",
        choices=get_args(Encoding),
        default="float32",
        help="the type of numbers on the wire; default float32",
    )
    capture.add_argument(
        "--method",
        choices=get_args(Method),
        default="weights",
        help="attention weights, the default; norms of the values that they multiply; or a rollout over the layers",
    )
    capture.add_argument(
        "--special-tokens",
        choices=get_args(SpecialTokens),
        help="keep special tokens, which is the default, or leave them out of each row (renormalize)",
    )
    # Its name is not --top-k: that is an option of sampling, and a user may want both.
    capture.add_argument(
        "--top-positions",
        type=int,
        default=0,
        metavar="K",
        help="only the K greatest positions of each row; default: all",
    )
    capture.add_argument(
        "--steps", type=parse_steps, metavar="BEGIN-[END]", help="only these steps carry attention, such as 0-10 or 5-"
    )


def _add_score_arguments(parser: argparse.ArgumentParser) -> None:
    scores = parser.add_argument_group("scores of each step")
    known = ", ".join(get_args(Score))
    scores.add_argument(
        "--scores", type=_parse_scores, default=(), metavar="SCORES", help=f"of {known}, separated by commas"
    )
    scores.add_argument("--score-top-p", type=float, metavar="P", help="the p of the score top_p_size; default 0.9")


def _add_unit_arguments(parser: argparse.ArgumentParser) -> None:
    units = parser.add_argument_group(
        "words and other units", "SPANS are BEGIN-END,...: offsets in characters, or in what --offset-unit says"
    )
    units.add_argument(
        "--grouping",
        choices=get_args(Grouping),
        default="token",
        help="what a row and a column stand for; default token",
    )
    units.add_argument(
        "--over-positions", choices=get_args(Reduction), help="how the positions of a unit become one; default sum"
    )
    units.add_argument(
        "--over-steps", choices=get_args(Reduction), help="how the steps of a unit become one; default mean"
    )
    units.add_argument(
        "--over-scores", choices=get_args(Reduction), help="how the scores of a unit become one; default mean"
    )
    units.add_argument("--source-spans", type=parse_spans, metavar="SPANS", help="units of TEXT, with --grouping span")
    units.add_argument(
        "--target-spans", type=parse_spans, metavar="SPANS", help="units of --target, with --grouping span"
    )
    units.add_argument("--source-slices", type=parse_spans, metavar="SPANS", help="send only these parts of TEXT")
    units.add_argument(
        "--target-slices", type=parse_spans, metavar="SPANS", help="send the attention of these parts of --target only"
    )


def _parse_kinds(text: str) -> list[str]:
    return _parse_words(text, get_args(AttentionKind))


def _parse_scores(text: str) -> list[str]:
    return _parse_words(text, get_args(Score))


def _parse_words(text: str, known: Sequence[str]) -> list[str]:
    words = text.split(",")
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
    return words


# ---- options --------------------------------------------------------------------------------------------------------


def _build_capture(args: argparse.Namespace) -> Capture:
    return Capture(
        kinds=args.kinds or (),
        layers=args.layers,
        heads=args.heads,
        over_heads=args.reduce_heads or args.reduce,
        # A list of heads is one axis: after its reduction, no axis of layers remains.
        over_layers=args.reduce_layers or (None if args.heads or args.reduce_heads else args.reduce),
        row=args.row,
        encoding=args.encoding,
        top_k=args.top_positions,
        method=args.method,
        special_tokens=args.special_tokens,
        steps=args.steps,
        grouping=args.grouping,
        units=_build_units(args),
    )


def _build_units(args: argparse.Namespace) -> UnitOptions | None:
    units = UnitOptions(
        over_positions=args.over_positions,
        over_steps=args.over_steps,
        over_scores=args.over_scores,
        source_spans=args.source_spans or (),
        target_spans=args.target_spans or (),
        source_slices=args.source_slices or (),
        target_slices=args.target_slices or (),
    )
    return None if units == UnitOptions() else units
