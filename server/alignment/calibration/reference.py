"""Reference links of a statistical aligner, for models without gold links."""

from __future__ import annotations

import importlib
import importlib.metadata
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..links import Link
from ..pharaoh import parse_pharaoh
from ..symmetrization import join_links
from .ibm_model import WordTable, learn_word_table
from .lexicon_learning import Words, number_words

GOLD = "gold"


def has_eflomal() -> bool:
    """Whether eflomal is installed."""
    try:
        importlib.import_module("eflomal")
    except ImportError:
        return False
    return True


def align_statistically(sources: Words, targets: Words, num_wanted: int) -> tuple[list[list[Link]], str]:
    """Aligns the folded words of pairs of texts, in both directions, joined by grow-diag-final-and.

    Returns the links of the first `num_wanted` pairs, and the name of the aligner: eflomal where it is installed
    (Östling and Tiedemann 2016), otherwise IBM model 1.
    """
    if has_eflomal():
        return _run_eflomal(sources, targets, num_wanted), f"eflomal {importlib.metadata.version('eflomal')}"
    source_texts, target_texts = number_words(sources)[1], number_words(targets)[1]
    forward = _Viterbi(learn_word_table(source_texts, target_texts))
    backward = _Viterbi(learn_word_table(target_texts, source_texts))
    links: list[list[Link]] = []
    for source, target in zip(source_texts[:num_wanted], target_texts[:num_wanted], strict=True):
        turned = [Link(other, word, score) for word, other, score in backward.align(target, source)]
        links.append(join_links(forward.align(source, target), turned, "grow_diag_final_and"))
    return links, "sidelight ibm1"


def _run_eflomal(sources: Words, targets: Words, num_wanted: int) -> list[list[Link]]:
    eflomal: Any = importlib.import_module("eflomal")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {side: folder / side for side in ("source", "target", "forward", "backward")}
        for side, texts in (("source", sources), ("target", targets)):
            # Words with white space inside would be several words.
            lines = (" ".join("_".join(word.split()) for word in text) + "\n" for text in texts)
            paths[side].write_text("".join(lines), encoding="utf-8")
        with paths["source"].open(encoding="utf-8") as source, paths["target"].open(encoding="utf-8") as target:
            eflomal.Aligner().align(
                source,
                target,
                links_filename_fwd=str(paths["forward"]),
                links_filename_rev=str(paths["backward"]),
            )
        both = [paths[side].read_text("utf-8").split("\n")[:num_wanted] for side in ("forward", "backward")]
    pairs = zip(*both, strict=True)
    return [
        join_links(parse_pharaoh(forward), parse_pharaoh(backward), "grow_diag_final_and")
        for forward, backward in pairs
    ]


class _Viterbi:
    """The best links by a word table: each target word with its likeliest source word, or with none."""

    def __init__(self, table: WordTable) -> None:
        self._keys = table.source << 32 | table.target
        self._probabilities = table.probabilities

    def align(self, source: Sequence[int], target: Sequence[int]) -> list[Link]:
        if not source or not target:
            return []
        keys = np.array([0, *source])[:, None] << 32 | np.array(target)
        probabilities = self._probabilities[np.searchsorted(self._keys, keys)]
        best = probabilities.argmax(0)
        return [
            Link(int(word) - 1, place, float(probabilities[word, place])) for place, word in enumerate(best) if word
        ]
