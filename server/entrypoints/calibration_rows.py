"""The rows of all heads, and how alike the encoder's states are, over pairs of texts, from an engine.

Files keep them, so that a run may be broken off.
"""

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

from ..alignment import WordedText, compare_states
from ..capture import CapturePlan
from ..engine import Engine, EngineConfig, OutputQueue
from ..models import LoadedModel
from ..request import EncodedTarget, EncoderStates, GivenTarget, Output, Request, Step
from ..text import TokenizedText, turn_languages

# Pairs of one file.
_NUM_TOGETHER = 64

_MAX_BYTES = 2**30


class TextPair(NamedTuple):
    """A source and its translation, with their words. `read_target` is the target with the tokens of a source."""

    source: WordedText
    target: WordedText
    read_target: WordedText

    @classmethod
    def of_texts(cls, loaded: LoadedModel, source: str, target: str, *, is_pretokenized: bool) -> TextPair:
        """Finds the tokens and the words of two texts."""
        tokenizer = loaded.tokenizer
        turned = turn_languages(tokenizer, tokenizer.resolve_languages("", ""))
        encoded = (
            tokenizer.encode_source(source),
            tokenizer.encode_target(target),
            tokenizer.encode_source(target, turned),
        )
        return cls(*(WordedText.of_text(text.text, text.tokens, is_pretokenized=is_pretokenized) for text in encoded))

    def fits(self, loaded: LoadedModel) -> bool:
        """Whether there are words, and the model can read all of them."""
        num_source, num_target, num_read = (len(text.tokens) for text in self)
        return (
            bool(self.source.words and self.target.words)
            and max(num_source, num_read) <= loaded.max_source_tokens
            and num_target < loaded.max_target_tokens
        )


class CollectedPair(NamedTuple):
    """What a model says of a pair.

    `rows` are those of cross-attention that predict each target token, float16 `[target tokens, source tokens, layers,
    heads]`. `encoder_states` is what `compare_states` says, float16 `[source words, target words]`.
    """

    rows: NDArray[np.float16]
    encoder_states: NDArray[np.float16]


class RowFiles:
    """Files with what was collected of the pairs of one run, in a folder beside what the run writes.

    The last step removes the folder.
    """

    def __init__(self, folder: Path, loaded: LoadedModel, pairs: Sequence[TextPair]) -> None:
        self._folder = folder
        texts = [(text.text, text.words) for pair in pairs for text in (pair.source, pair.target)]
        weights = sum(float(parameter.double().abs().sum()) for parameter in loaded.model.parameters())
        run = [loaded.name, weights, texts]
        self._key = hashlib.sha256(json.dumps(run).encode()).hexdigest()[:16]

    def load(self, number: int) -> list[CollectedPair] | None:
        """Returns the pairs of a file; None if there is no such file of the same model and pairs."""
        try:
            arrays = load_file(self._path(number))
        except (OSError, SafetensorError):
            return None
        names = CollectedPair._fields
        return [CollectedPair(*(arrays[f"{name}.{index}"] for name in names)) for index in range(len(arrays) // 2)]

    def save(self, number: int, pairs: Sequence[CollectedPair]) -> None:
        """Writes a file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(number)
        arrays = {
            f"{name}.{index}": array for index, pair in enumerate(pairs) for name, array in pair._asdict().items()
        }
        save_file(arrays, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._key}-{number:05}.safetensors"


def collect_rows(
    loaded: LoadedModel, pairs: Sequence[TextPair], files: RowFiles, on_pair: Callable[[int], None]
) -> list[CollectedPair]:
    """Returns what a model says of pairs. `on_pair` is called with numbers of pairs that are done."""
    collected: list[CollectedPair] = []
    engine = Engine(loaded, EngineConfig(max_running=8))
    engine.start()
    try:
        for number, first in enumerate(range(0, len(pairs), _NUM_TOGETHER)):
            together = pairs[first : first + _NUM_TOGETHER]
            done = files.load(number)
            if done is None:
                done = asyncio.run(_run_all(engine, together, on_pair))
                files.save(number, done)
            else:
                on_pair(len(together))
            collected += done
    finally:
        engine.stop()
    return collected


async def _run_all(engine: Engine, pairs: Sequence[TextPair], on_pair: Callable[[int], None]) -> list[CollectedPair]:
    async def run(pair: TextPair) -> CollectedPair:
        collected = await _run(engine, pair)
        on_pair(1)
        return collected

    return list(await asyncio.gather(*map(run, pairs)))


async def _run(engine: Engine, pair: TextPair) -> CollectedPair:
    """Returns what the engine says of one pair. Raises RequestError."""
    rows_request, states_request = _requests(engine.loaded, pair)
    steps = [output for output in await _answer(engine, rows_request) if isinstance(output, Step)]
    (states,) = (output for output in await _answer(engine, states_request) if isinstance(output, EncoderStates))
    alike = compare_states(states.source, pair.source.shares, states.target, pair.read_target.shares)
    rows = [step.cross.values.astype(np.float16) for step in steps if step.cross is not None]
    return CollectedPair(np.stack(rows), alike.astype(np.float16))


async def _answer(engine: Engine, request: Request) -> list[Output]:
    queue = OutputQueue(engine.wake)
    engine.submit(request, queue)
    collected: list[Output] = []
    while outputs := await queue.get(_MAX_BYTES):
        collected += outputs
    return collected


def _requests(loaded: LoadedModel, pair: TextPair) -> tuple[Request, Request]:
    """The requests for the rows, and for the encoder's states."""
    tokenizer = loaded.tokenizer
    num_layers, num_heads = loaded.attention_layers.num_layers("cross"), loaded.heads("cross")
    plan = CapturePlan(("cross",), {"cross": tuple(range(num_layers))}, {"cross": num_heads})
    prompt = tuple(tokenizer.start_ids(tokenizer.resolve_languages("", "")))
    source, target, read = (TokenizedText(text.text, tuple(text.tokens)) for text in pair)
    encoded = EncodedTarget(read, loaded.encoder_width)
    return (
        Request("calibration", source, prompt, GivenTarget(target), plan),
        Request("calibration", source, prompt, encoded, CapturePlan((), {}, {})),
    )
