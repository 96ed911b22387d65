"""The output tensors: their names, types and shapes, and how they are made of what Attribute answers.

N is the number of texts. A tensor of several texts has the length of the longest. What is beyond a text is empty in
tensors of BYTES, 0 in attention and scores, and -1 in ids, offsets and links.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sidelight.v1 import attribution_service_pb2 as service_pb

from ...capture import AttentionKind
from ...models import ModelInfo
from ...request import Score
from ..enums import STOP_REASONS
from .tensors import Elements, OutputTensor, TensorType

# When a stream has what an output is made of: with the first step of a text, with each step, or at the end.
Part = Literal["source", "step", "end"]

# The scores that need no second context.
_SCORES: tuple[Score, ...] = ("probability", "logit", "entropy", "cross_entropy", "perplexity", "top_p_size")

# What a request to the engine must ask for, so that there is the output.
Need = Literal["", "links", "cross", "decoder_self", "encoder_self"]


@dataclass
class TextOutputs:
    """What there is of one text: all of it, or the part that a response of a stream has.

    Attributes:
        text: The text that the model has written, or that was given.
        scores: Which scores each step has, in their order.
        started: The source. None in the later responses of a stream.
        encoder_self: Parts of the encoder's attention.
        steps: The steps.
        finished: The end. None before the end.
    """

    text: str = ""
    scores: tuple[Score, ...] = ()
    started: service_pb.Started | None = None
    encoder_self: list[service_pb.EncoderSelf] = field(default_factory=list[service_pb.EncoderSelf])
    steps: list[service_pb.Step] = field(default_factory=list[service_pb.Step])
    finished: service_pb.Finished | None = None

    def add(self, response: service_pb.AttributeResponse) -> None:
        """Adds an event."""
        event = response.WhichOneof("event")
        if event == "steps":
            self.steps += response.steps.steps
        elif event == "started":
            self.started = response.started
        elif event == "encoder_self":
            self.encoder_self.append(response.encoder_self)
        elif event == "finished":
            self.finished = response.finished
            self.text = response.finished.text

    @property
    def end(self) -> service_pb.Finished:
        """The end, for outputs that the end has."""
        assert self.finished is not None
        return self.finished


# Makes the shape and the elements of an output.
Make = Callable[[Sequence[TextOutputs]], tuple[tuple[int, ...], Elements]]


@dataclass(frozen=True)
class Output:
    """An output.

    Attributes:
        type: Its name, datatype and shape.
        make: Makes its shape and its elements of the outputs of some texts.
        part: When a stream has it.
        need: What it needs of the engine.
        is_default: Whether a request that names no outputs gets it.
        score: The score that it has; None: it is no score.
    """

    type: TensorType
    make: Make
    part: Part
    need: Need = ""
    is_default: bool = True
    score: Score | None = None


def build_outputs(outputs: Iterable[Output], texts: Sequence[TextOutputs]) -> list[OutputTensor]:
    """Returns the tensors of some texts."""
    return [OutputTensor(output.type, *output.make(texts)) for output in outputs]


def outputs_of(loaded: ModelInfo) -> dict[str, Output]:
    """Returns what a model can give, by name."""
    kinds = ("links", "", *loaded.kinds) if loaded.is_encoder_decoder else ("", *loaded.kinds)
    return {name: output for name, output in OUTPUTS.items() if output.need in kinds}


# ---- how they are made ----------------------------------------------------------------------------------------------


def _texts(get: Callable[[TextOutputs], str]) -> Make:
    """Makes a text of each text: BYTES [N]."""
    return lambda texts: ((len(texts),), [get(text).encode() for text in texts])


def _lists(get: Callable[[TextOutputs], Iterable[str]]) -> Make:
    """Makes a list of texts of each text: BYTES [N, longest]."""

    def make(texts: Sequence[TextOutputs]) -> tuple[tuple[int, ...], Elements]:
        lists = [[each.encode() for each in get(text)] for text in texts]
        longest = max(map(len, lists))
        return (len(lists), longest), [each for row in lists for each in row + [b""] * (longest - len(row))]

    return make


def _arrays(get: Callable[[TextOutputs], Any], num_axes: int, fill: int, dtype: str) -> Make:
    """Makes an array of each text, and one of all: [N, longest …]. `num_axes` are those of one text."""

    def make(texts: Sequence[TextOutputs]) -> tuple[tuple[int, ...], Elements]:
        arrays = [_array(get(text), num_axes, dtype) for text in texts]
        shape = (len(arrays), *(max(lengths) for lengths in zip(*(array.shape for array in arrays), strict=True)))
        joined = np.full(shape, fill, dtype)
        for index, array in enumerate(arrays):
            joined[(index, *map(slice, array.shape))] = array
        return shape, joined

    return make


def _array(values: Any, num_axes: int, dtype: str) -> NDArray[Any]:
    array = np.asarray(values, dtype)
    return array if array.ndim == num_axes else array.reshape(0, 2)  # an empty list of pairs


def _rows(kind: str) -> Callable[[TextOutputs], NDArray[np.float32]]:
    """Makes the rows of a text's steps: [steps, positions of the longest row]."""

    def get(text: TextOutputs) -> NDArray[np.float32]:
        rows = [np.frombuffer(getattr(step, kind).values, "<f4") for step in text.steps]
        joined = np.zeros((len(rows), max((row.size for row in rows), default=0)), np.float32)
        for target, row in zip(joined, rows, strict=True):
            target[: row.size] = row
        return joined

    return get


def _encoder_rows(text: TextOutputs) -> NDArray[np.float32]:
    parts = [
        np.frombuffer(part.attention.values, "<f4").reshape(tuple(part.attention.shape)) for part in text.encoder_self
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _score(score: Score) -> Output:
    make = _arrays(lambda text: [step.scores[text.scores.index(score)] for step in text.steps], 1, 0, "f4")
    return Output(TensorType(score, "FP32", (-1, -1)), make, "step", is_default=False, score=score)


def _attention(kind: AttentionKind, part: Part) -> Output:
    get = _encoder_rows if kind == "encoder_self" else _rows(kind)
    tensor = TensorType(f"{kind}_attention", "FP32", (-1, -1, -1))
    return Output(tensor, _arrays(get, 2, 0, "f4"), part, kind, is_default=False)


def _offsets(name: str, part: Part, get: Callable[[TextOutputs], Iterable[Any]], need: Need = "") -> Output:
    def spans(text: TextOutputs) -> list[tuple[int, int]]:
        return [(span.begin, span.end) for span in get(text)]

    return Output(TensorType(name, "INT32", (-1, -1, 2)), _arrays(spans, 2, -1, "i4"), part, need)


def _ids(name: str, part: Part, get: Callable[[TextOutputs], Iterable[Any]]) -> Output:
    make = _arrays(lambda text: [token.id for token in get(text)], 1, -1, "i4")
    return Output(TensorType(name, "INT32", (-1, -1)), make, part)


def _tokens(name: str, part: Part, get: Callable[[TextOutputs], Iterable[Any]]) -> Output:
    return Output(TensorType(name, "BYTES", (-1, -1)), _lists(lambda text: (token.piece for token in get(text))), part)


def _count(name: str, get: Callable[[TextOutputs], int], part: Part) -> Output:
    return Output(TensorType(name, "INT32", (-1,)), _arrays(get, 0, 0, "i4"), part)


def _source_tokens(text: TextOutputs) -> Iterable[Any]:
    return () if text.started is None else text.started.source


def _target_tokens(text: TextOutputs) -> Iterable[Any]:
    return (step.token for step in text.steps)


def _link_pairs(text: TextOutputs) -> list[tuple[int, int]]:
    return [(link.source, link.target) for link in text.end.alignment.links]


def _link_scores(text: TextOutputs) -> list[float]:
    return [link.score for link in text.end.alignment.links]


def _text(name: str, part: Part, get: Callable[[TextOutputs], str], need: Need = "") -> Output:
    return Output(TensorType(name, "BYTES", (-1,)), _texts(get), part, need)


_ALL = (
    _text("text_output", "step", lambda text: text.text),
    _text("stop_reason", "end", lambda text: STOP_REASONS[text.end.stop_reason]),
    _count("source_lengths", lambda text: text.end.usage.source_tokens, "end"),
    _count("target_lengths", lambda text: text.end.usage.target_tokens, "end"),
    _tokens("source_tokens", "source", _source_tokens),
    _ids("source_token_ids", "source", _source_tokens),
    _offsets("source_offsets", "source", _source_tokens),
    _tokens("target_tokens", "step", _target_tokens),
    _ids("target_token_ids", "step", _target_tokens),
    _offsets("target_offsets", "step", _target_tokens),
    _text("links", "end", lambda text: text.end.alignment.pharaoh, "links"),
    Output(TensorType("link_pairs", "INT32", (-1, -1, 2)), _arrays(_link_pairs, 2, -1, "i4"), "end", "links"),
    Output(TensorType("link_scores", "FP32", (-1, -1)), _arrays(_link_scores, 1, 0, "f4"), "end", "links"),
    _offsets("source_word_offsets", "end", lambda text: text.end.alignment.source, "links"),
    _offsets("target_word_offsets", "end", lambda text: text.end.alignment.target, "links"),
    _attention("cross", "step"),
    _attention("decoder_self", "step"),
    _attention("encoder_self", "source"),
    *(_score(score) for score in _SCORES),
)
OUTPUTS: dict[str, Output] = {output.type.name: output for output in _ALL}
