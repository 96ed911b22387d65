"""The rows of all heads over pairs of texts, from an engine. Files keep them, so that a run may be broken off."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..alignment import WordedText
from ..capture import CapturePlan
from ..engine import Engine, EngineConfig, OutputQueue
from ..models import LoadedModel
from ..request import GivenTarget, Request, Step

# Pairs of one file.
_NUM_TOGETHER = 64

_MAX_BYTES = 2**30


class TextPair(NamedTuple):
    """A source and its translation, with their words."""

    source: WordedText
    target: WordedText


class RowFiles:
    """Files with the rows of the pairs of one run: a folder beside what the run writes. The last step removes it."""

    def __init__(self, folder: Path, loaded: LoadedModel, pairs: Sequence[TextPair]) -> None:
        self._folder = folder
        texts = [(pair.source.text, pair.target.text) for pair in pairs]
        weights = sum(float(parameter.double().abs().sum()) for parameter in loaded.model.parameters())
        run = [loaded.name, weights, texts]
        self._key = hashlib.sha256(json.dumps(run).encode()).hexdigest()[:16]

    def load(self, number: int) -> list[NDArray[np.float16]] | None:
        """Returns the arrays of a file; None if there is no such file of the same model and pairs."""
        try:
            arrays = load_file(self._path(number))
        except (OSError, SafetensorError):
            return None
        return [arrays[str(index)] for index in range(len(arrays))]

    def save(self, number: int, arrays: Sequence[NDArray[np.float16]]) -> None:
        """Writes a file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(number)
        save_file({str(index): array for index, array in enumerate(arrays)}, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._key}-{number:05}.safetensors"


def collect_rows(
    loaded: LoadedModel, pairs: Sequence[TextPair], files: RowFiles, on_pair: Callable[[int], None]
) -> list[NDArray[np.float16]]:
    """Returns the rows of cross-attention that predict each target token.

    Each array is float16 `[target tokens, source tokens, layers, heads]`. `on_pair` is called with numbers of pairs
    that are done.
    """
    rows: list[NDArray[np.float16]] = []
    engine = Engine(loaded, EngineConfig(max_running=8))
    engine.start()
    try:
        for number, first in enumerate(range(0, len(pairs), _NUM_TOGETHER)):
            together = pairs[first : first + _NUM_TOGETHER]
            arrays = files.load(number)
            if arrays is None:
                arrays = asyncio.run(_run_all(engine, together, on_pair))
                files.save(number, arrays)
            else:
                on_pair(len(together))
            rows += arrays
    finally:
        engine.stop()
    return rows


async def _run_all(
    engine: Engine, pairs: Sequence[TextPair], on_pair: Callable[[int], None]
) -> list[NDArray[np.float16]]:
    async def run(pair: TextPair) -> NDArray[np.float16]:
        rows = await _run(engine, pair)
        on_pair(1)
        return rows

    return list(await asyncio.gather(*map(run, pairs)))


async def _run(engine: Engine, pair: TextPair) -> NDArray[np.float16]:
    """Returns the rows of one pair. Raises RequestError."""
    queue = OutputQueue(engine.wake)
    engine.submit(_request(engine.loaded, pair), queue)
    rows: list[NDArray[np.float16]] = []
    while outputs := await queue.get(_MAX_BYTES):
        steps = (output for output in outputs if isinstance(output, Step))
        rows += [step.cross.values.astype(np.float16) for step in steps if step.cross is not None]
    return np.stack(rows)


def _request(loaded: LoadedModel, pair: TextPair) -> Request:
    tokenizer = loaded.tokenizer
    num_layers, num_heads = loaded.attention_layers.num_layers("cross"), loaded.heads("cross")
    plan = CapturePlan(("cross",), {"cross": tuple(range(num_layers))}, {"cross": num_heads})
    prompt = tuple(tokenizer.start_ids(tokenizer.resolve_languages("", "")))
    source, target = tokenizer.encode_source(pair.source.text), tokenizer.encode_target(pair.target.text)
    return Request("calibration", source, prompt, GivenTarget(target), plan)
