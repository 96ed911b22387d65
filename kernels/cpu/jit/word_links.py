"""Scores of pairs of words, and optimal transport between words, for texts with few words.

A call of NumPy takes longer than all numbers of such texts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types

# What is read may be an array that nobody may write to.
_MATRIX = types.Array(types.float32, 2, "A", readonly=True)
_ROW = types.Array(types.float32, 1, "A", readonly=True)
_NUMBERS = types.Array(types.int32, 1, "A", readonly=True)
_BYTES = types.Array(types.uint8, 1, "A", readonly=True)
_RESULT = types.Array(types.float32, 2, "C")


def _compile(function: Any, *arguments: Any) -> Any:
    """Compiles a function at once. Numba keeps it on disk, if there is a folder that it may write to."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(types.void(*arguments), cache=True, **options)(function)
    except RuntimeError:
        return njit(types.void(*arguments), **options)(function)


def _score(sums, shares, source, target, firsts, targets, table, likeness, parameters, renormalizes, scores):
    """Scores words: see `score_words` of the package. Without a lexicon, `source` is empty."""
    num_tokens, num_target = shares.shape
    num_source = scores.shape[0] - 1
    attention_weight, lexicon_weight, spelling_weight = parameters[0], parameters[1], parameters[2]
    attention_floor, lexicon_floor, smallest = parameters[3], parameters[4], parameters[5]
    is_plain = parameters[6] != 0
    for word in range(num_target):
        total = np.float32(0)
        for token in range(num_tokens):
            total += shares[token, word]
        total = max(total, smallest)
        scores[:, word] = 0
        for token in range(num_tokens):
            factor = shares[token, word] / total
            if factor == 0:
                continue
            if renormalizes:
                factor /= max(sums[token, num_source + 1], smallest)
            for row in range(num_source + 1):
                scores[row, word] += factor * sums[token, row]
        if renormalizes:
            scores[num_source, word] = 0
        if is_plain:
            continue
        highest = np.float32(-np.inf)
        for row in range(num_source + 1):
            logit = attention_weight * math.log(scores[row, word] + attention_floor)
            if row < num_source:
                logit += spelling_weight * likeness[row, word]
                if len(source) and source[row] >= 0 and target[word] >= 0:
                    place, end = firsts[source[row]], firsts[source[row] + 1]
                    while place < end:  # a binary search
                        middle = (place + end) // 2
                        if targets[middle] < target[word]:
                            place = middle + 1
                        else:
                            end = middle
                    if place < firsts[source[row] + 1] and targets[place] == target[word]:
                        logit += lexicon_weight * math.log1p(table[place] / np.float32(255) / lexicon_floor)
            scores[row, word] = logit
            highest = max(highest, scores[row, word])
        total = np.float32(0)
        for row in range(num_source + 1):
            scores[row, word] = math.exp(scores[row, word] - highest)
            total += scores[row, word]
        for row in range(num_source + 1):
            scores[row, word] /= total


def _transport(scores, null, power, num_rounds, tiny, plan):
    """Sinkhorn's algorithm: see `transport` of the package."""
    num_source, num_target = scores.shape
    kernel = np.empty((num_source, num_target), np.float64)
    for column in range(num_target):
        highest = np.float32(0)
        for row in range(num_source):
            highest = max(highest, scores[row, column])
        scale = max(highest + null[column], np.float32(tiny))
        for row in range(num_source):
            kernel[row, column] = (np.float64(scores[row, column] / scale) + tiny) ** power
    rows, columns = np.ones(num_source), np.ones(num_target)
    for _ in range(num_rounds):
        for row in range(num_source):
            total = 0.0
            for column in range(num_target):
                total += kernel[row, column] * columns[column]
            rows[row] = 1 / num_source / total
        columns[:] = 0
        for row in range(num_source):
            for column in range(num_target):
                columns[column] += kernel[row, column] * rows[row]
        for column in range(num_target):
            columns[column] = 1 / num_target / columns[column]
    size = max(num_source, num_target)
    for row in range(num_source):
        for column in range(num_target):
            plan[row, column] = rows[row] * kernel[row, column] * columns[column] * size


_LEXICON = (_NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS, _BYTES)
score = _compile(_score, _MATRIX, _MATRIX, *_LEXICON, _MATRIX, _ROW, types.boolean, _RESULT)
transport = _compile(_transport, _MATRIX, _ROW, types.float64, types.intp, types.float64, _RESULT)
