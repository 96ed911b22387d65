"""One run of `sidelight calibrate`: pairs of texts → rows, lexicon and reference links → a preset and its file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import Progress

from ..alignment import (
    PRESET_FILE,
    AlignmentPreset,
    Lexicon,
    Link,
    PharaohError,
    WordedText,
    parse_gold,
    write_preset,
)
from ..alignment.calibration import (
    GOLD,
    NUM_LEXICON_STEPS,
    NUM_STEPS,
    MeasuredPair,
    align_statistically,
    choose_preset,
    learn_lexicon,
)
from ..errors import RequestError
from ..models import LoadedModel, ModelError, bundled_model, load
from .calibration_report import draw_heads, print_report
from .calibration_rows import CollectedPair, RowFiles, TextPair, collect_rows
from .loading import hide_bars
from .progress import open_progress, show_loading

# With fewer pairs a lexicon would hold little but chance.
_MIN_LEXICON_PAIRS = 1000


class CalibrationError(Exception):
    """A calibration that cannot be. The message is for the person who has started it."""


# The sure links of a pair of texts, and its possible links.
_Reference = tuple[Sequence[Link], Sequence[Link]]


class _Pairs(NamedTuple):
    """Pairs of texts of a run.

    Attributes:
        measured: The pairs whose heads are measured.
        gold: Their links by people, sure ones and possible ones; None: there are none.
        others: The folded words of sources and of targets of other pairs, for the lexicon.
    """

    measured: list[TextPair]
    gold: list[_Reference] | None
    others: tuple[list[list[str]], list[list[str]]]


def calibrate(args: argparse.Namespace) -> None:
    """Calibrates a model as the command line says. Raises CalibrationError."""
    lines = _read_pairs(args.pairs)
    more = [] if args.lexicon_pairs is None else _read_pairs(args.lexicon_pairs)
    gold_lines = None if args.gold is None else _read_lines(args.gold)
    output = args.output or (bundled_model() if args.model is None else Path(args.model)) / PRESET_FILE
    _check_writable(output, "--output")
    if args.picture is not None:
        _check_writable(args.picture, "--picture")
    with open_progress(quiet=args.quiet) as progress:
        loaded = _load(args.model, progress)
        pairs = _divide(loaded, lines, more, gold_lines, args)
        files = RowFiles(output.with_name(f".{output.name}.rows"), loaded, pairs.measured)
        preset = _choose(loaded, pairs, files, progress, wants_lexicon=not args.no_lexicon)
    write_preset(preset, output)
    files.remove()
    print_report(preset, output)
    if args.picture is not None:
        args.picture.write_text(draw_heads(preset, loaded.name), encoding="utf-8")


def _check_writable(path: Path, option: str) -> None:
    """Refuses a path that cannot be written, before minutes of work are done for it. Raises CalibrationError."""
    if not path.parent.is_dir():
        raise CalibrationError(f"{path.parent} is no folder: say with {option} where to write")
    if path.is_dir():
        raise CalibrationError(f"{path} is a folder: say with {option} which file to write")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise CalibrationError(f"{path} cannot be written: say with {option} where to write")


def _load(model: str | None, progress: Progress) -> LoadedModel:
    hide_bars(keeps_downloads=not progress.disable)
    try:
        with show_loading(progress, model) as on_stage:
            loaded = load(model, on_stage=on_stage)
    except ModelError as error:
        raise CalibrationError(str(error)) from error
    if not loaded.is_encoder_decoder or loaded.feature_shape is not None:
        raise CalibrationError(f"{loaded.name} does not read and write texts by an encoder and a decoder")
    return loaded


def _choose(
    loaded: LoadedModel, pairs: _Pairs, files: RowFiles, progress: Progress, *, wants_lexicon: bool
) -> AlignmentPreset:
    rows_task = progress.add_task("attention", total=len(pairs.measured))
    collected = _collect(loaded, pairs.measured, files, lambda count: progress.advance(rows_task, count))
    lexicon: Lexicon | None = None
    if wants_lexicon and len(pairs.others[0]) >= _MIN_LEXICON_PAIRS:
        lexicon_task = progress.add_task("lexicon", total=NUM_LEXICON_STEPS)
        lexicon = learn_lexicon(*pairs.others, lambda: progress.advance(lexicon_task))
    links, reference = pairs.gold, GOLD
    if links is None:
        aligner_task = progress.add_task("statistical aligner", total=None)
        sources = [pair.source.folded for pair in pairs.measured] + pairs.others[0]
        targets = [pair.target.folded for pair in pairs.measured] + pairs.others[1]
        found, reference = align_statistically(sources, targets, len(pairs.measured))
        links = [(each, ()) for each in found]
        progress.update(aligner_task, total=1, completed=1)
    task = progress.add_task("heads and features", total=NUM_STEPS)
    measured = [_measure(*each) for each in zip(pairs.measured, collected, links, strict=True)]
    return choose_preset(measured, lexicon, reference, lambda: progress.advance(task))


def _collect(
    loaded: LoadedModel, pairs: Sequence[TextPair], files: RowFiles, on_pair: Callable[[int], None]
) -> list[CollectedPair]:
    try:
        return collect_rows(loaded, pairs, files, on_pair)
    except (RequestError, ModelError) as error:
        raise CalibrationError(f"the model fails: {error}") from error


def _measure(pair: TextPair, collected: CollectedPair, links: _Reference) -> MeasuredPair:
    """Returns a pair to measure. The row that reads a token is the row that predicts the next token."""
    sure, possible = (np.zeros((len(pair.source.words), len(pair.target.words)), np.bool_) for _ in links)
    for matrix, group in zip((sure, possible), links, strict=True):
        for link in group:
            matrix[link.source, link.target] = True
    predicting = collected.rows.astype(np.float32)
    reading = np.concatenate([predicting[1:], predicting[-1:]])
    return MeasuredPair(
        pair.source,
        pair.target,
        {"predicting": predicting, "reading": reading},
        sure,
        collected.encoder_states,
        possible if links[1] else None,
    )


# ---- pairs ----------------------------------------------------------------------------------------------------------


def _divide(
    loaded: LoadedModel,
    lines: Sequence[tuple[str, str]],
    more: Sequence[tuple[str, str]],
    gold_lines: Sequence[str] | None,
    args: argparse.Namespace,
) -> _Pairs:
    """Divides the pairs of the files: those that are measured, and those for the lexicon. Raises CalibrationError."""
    if gold_lines is None:
        # Spread over the file, which may be sorted.
        count = min(args.max_pairs, len(lines))
        chosen = dict.fromkeys(index * len(lines) // count for index in range(count))
    else:
        if len(gold_lines) > len(lines):
            raise CalibrationError(f"{args.gold} has more lines than {args.pairs}")
        chosen = dict.fromkeys(range(len(gold_lines)))
    measured: list[TextPair] = []
    gold: list[_Reference] = []
    for index in list(chosen)[: args.max_pairs]:
        pair = TextPair.of_texts(loaded, *lines[index], is_pretokenized=args.pretokenized)
        if not pair.fits(loaded):
            continue
        measured.append(pair)
        if gold_lines is not None:
            try:
                gold.append(parse_gold(gold_lines[index], len(pair.source.words), len(pair.target.words)))
            except PharaohError as error:
                raise CalibrationError(f"{args.gold}: line {index + 1}: {error}") from error
    if not measured:
        raise CalibrationError(f"{args.pairs} has no pair that the model can read")
    others = [line for index, line in enumerate(lines) if index not in chosen]
    words = [
        [WordedText.of_text(text, (), is_pretokenized=is_pretokenized).folded for text in pair]
        for group, is_pretokenized in ((others, args.pretokenized), (more, False))
        for pair in group
    ]
    whole = [(source, target) for source, target in words if source and target]
    texts = [source for source, _ in whole], [target for _, target in whole]
    return _Pairs(measured, None if gold_lines is None else gold, texts)


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(_read_lines(path), 1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise CalibrationError(f"{path}: line {number} has no tab between a source and a target")
        pairs.append((fields[0], fields[1]))
    return pairs


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8") from error
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines
