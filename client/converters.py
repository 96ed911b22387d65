"""Between the client's own types and protobuf: the one module that knows how they look on the wire."""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sidelight.v1 import attention_pb2, model_pb2, text_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from .errors import invalid
from .parameters import Beam, Capture, Decoding, Head, Kind, Row, Sampling, Score, Source
from .results import (
    Ending,
    Hypothesis,
    Layout,
    Model,
    ModelAttention,
    Numbers,
    Started,
    Step,
    StopReason,
    Token,
    Usage,
)
from .validation import check_fields, check_value, is_sequence


def _words(enum: Any, prefix: str) -> dict[Any, Any]:
    """The words for an enum's numbers: ATTENTION_KIND_CROSS is "cross". The unspecified one has none."""
    names: Mapping[str, int] = dict(enum.items())
    return {number: name.removeprefix(prefix).lower() for name, number in names.items() if number}


_KINDS: dict[int, Kind] = _words(attention_pb2.AttentionKind, "ATTENTION_KIND_")
_REDUCTIONS: dict[int, str] = _words(attention_pb2.Reduction, "REDUCTION_")
_ROWS: dict[int, Row] = _words(attention_pb2.Row, "ROW_")
_ENCODINGS: dict[int, str] = _words(attention_pb2.Encoding, "ENCODING_")
_SCORES: dict[int, Score] = _words(attention_pb2.Score, "SCORE_")
_AXES: dict[int, Any] = _words(attention_pb2.Axis, "AXIS_")
_STOP_REASONS: dict[int, StopReason] = _words(text_pb2.StopReason, "STOP_REASON_")
_SPECIAL_TOKENS_IN_TEXT: dict[int, str] = _words(text_pb2.SpecialTokensInText, "SPECIAL_TOKENS_IN_TEXT_")

_DTYPES = {
    attention_pb2.ENCODING_FLOAT32: np.dtype("<f4"),
    attention_pb2.ENCODING_FLOAT16: np.dtype("<f2"),
    attention_pb2.ENCODING_UINT8: np.dtype("u1"),
}


def _number(words: Mapping[int, str], word: str | None) -> Any:
    """The number of a word that is one of them; 0, which is unspecified, for None."""
    return 0 if word is None else next(number for number, known in words.items() if known == word)


@contextmanager
def blaming(field: str) -> Generator[None, None, None]:
    """Raises InvalidArgumentError with this field for what protobuf refuses inside."""
    try:
        yield
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise invalid(
            field, f"has a lone surrogate, U+{code:04X} at index {error.start}: no text may have one"
        ) from error
    except (ValueError, TypeError, OverflowError) as error:
        reason = str(error)  # which quotes a number out of range whole, however long
        raise invalid(field, reason if len(reason) <= 200 else f"{reason[:199]}…") from error


# ---- what is asked --------------------------------------------------------------------------------------------------


def text_message(text: Source, field: str) -> text_pb2.Text:
    """A text, ids or a chat as the contract's Text. Raises InvalidArgumentError."""
    if isinstance(text, str):
        with blaming(field):
            return text_pb2.Text(text=text)
    if not is_sequence(text):
        raise invalid(field, "must be text, a sequence of token ids, or the messages of a chat")
    items = list(text)
    if items and all(isinstance(item, Mapping) for item in items):
        turns = cast("list[Mapping[str, str]]", items)
        return text_pb2.Text(chat=_chat_message(turns, field))
    check_value(items, Sequence[int], field)
    with blaming(field):
        return text_pb2.Text(token_ids=text_pb2.TokenIds(ids=cast("list[int]", items)))


def _chat_message(turns: Sequence[Mapping[str, str]], field: str) -> text_pb2.Chat:
    chat = text_pb2.Chat()
    for place, turn in enumerate(turns):
        path = f"{field}.chat.messages[{place}]"
        message = chat.messages.add()
        for name in ("role", "content"):
            if name not in turn:
                raise invalid(field, f"messages[{place}] has no {name}")
            check_value(turn[name], str, f"{path}.{name}")
            with blaming(f"{path}.{name}"):
                setattr(message, name, turn[name])
        for name in turn:
            if name not in ("role", "content"):
                raise invalid(f"{path}.{name}", "is not known: a message has a role and a content")
    return chat


def special_tokens_number(word: str) -> Any:
    """What becomes of special tokens in texts, as the contract's number."""
    return _number(_SPECIAL_TOKENS_IN_TEXT, word)


def capture_message(capture: Capture) -> attention_pb2.Capture:
    """A capture as the contract's Capture. Raises InvalidArgumentError."""
    check_fields(capture, "capture", {"heads": "heads.list", "layers": "heads.layers"})
    message = attention_pb2.Capture(
        kinds=[_number(_KINDS, kind) for kind in capture.kinds],
        over_heads=_number(_REDUCTIONS, capture.over_heads),
        over_layers=_number(_REDUCTIONS, capture.over_layers),
        none=capture.none,
    )
    # What is unset stays unset on the wire: "none" contradicts every other field.
    if capture.row != "predicting":
        message.row = _number(_ROWS, capture.row)
    if capture.encoding != "float32":
        message.encoding = _number(_ENCODINGS, capture.encoding)
    with blaming("capture.top_k"):
        message.top_k = capture.top_k
    if capture.heads is not None and capture.layers is not None:
        raise invalid("capture.heads", "either single heads or whole layers, not both")
    if capture.heads is not None:
        with blaming("capture.heads.list"):
            message.heads.list.CopyFrom(attention_pb2.HeadList(heads=[_head(head) for head in capture.heads]))
    if capture.layers is not None:
        with blaming("capture.heads.layers"):
            message.heads.layers.CopyFrom(attention_pb2.LayerList(layers=capture.layers))
    if capture.steps is not None:
        with blaming("capture.steps"):
            message.steps.CopyFrom(attention_pb2.StepSpan(begin=capture.steps[0], end=capture.steps[1]))
    return message


def _head(head: Head) -> attention_pb2.Head:
    return attention_pb2.Head(layer=head[0], head=head[1], weight=head[2] if len(head) == 3 else None)


def decoding_message(decoding: Decoding) -> text_pb2.Decoding:
    """A way of decoding as the contract's Decoding. Raises InvalidArgumentError."""
    check_fields(decoding, "decoding")
    message = text_pb2.Decoding()
    for name in ("max_new_tokens", "min_new_tokens", "ignore_eos", "repetition_penalty", "no_repeat_ngram_size"):
        _set(message, name, getattr(decoding, name), "decoding")
    for place, text in enumerate(decoding.stop):
        with blaming(f"decoding.stop[{place}]"):
            message.stop.append(text)
    strategy = decoding.strategy
    if isinstance(strategy, Sampling):
        check_fields(strategy, "decoding.sampling")
        message.sampling.SetInParent()
        for name in ("temperature", "top_k", "top_p", "seed"):
            _set(message.sampling, name, getattr(strategy, name), "decoding.sampling")
    elif isinstance(strategy, Beam):
        check_fields(strategy, "decoding.beam")
        for name in ("width", "length_penalty", "hypotheses"):
            _set(message.beam, name, getattr(strategy, name), "decoding.beam")
    elif strategy is not None:
        message.greedy.SetInParent()
    return message


def _set(message: Any, name: str, value: Any, path: str) -> None:
    """Sets a member that is not None. Raises InvalidArgumentError with its path."""
    if value is not None:
        with blaming(f"{path}.{name}"):
            setattr(message, name, value)


def score_numbers(scores: Sequence[Score]) -> list[attention_pb2.Score.ValueType]:
    """Scores as the contract's numbers."""
    return [_number(_SCORES, score) for score in scores]


# ---- what comes back ------------------------------------------------------------------------------------------------


def numbers(message: attention_pb2.Attention, positions: int, *, axis: int = 0, top_k: int = 0) -> Numbers:
    """An Attention as floats for every position; 0 where only the greatest of a row were sent.

    Args:
        message: What came.
        positions: How many positions there are in all.
        axis: The axis of positions: 0 of a step, 1 of encoder self-attention.
        top_k: How many of them each row has at most, where not all are sent; the message then says which.

    Raises:
        ValueError: The bytes do not fill the shape, or the shape or what it holds is not for these positions.
        KeyError: The encoding is unknown.
    """
    shape = tuple(message.shape)
    if len(shape) <= axis:
        raise ValueError(f"attention of shape {shape} has no axis of positions")
    sent = min(top_k, positions) if top_k else positions
    if shape[axis] != sent:
        raise ValueError(f"attention of shape {shape} is not for {sent} of {positions} positions")
    values: Numbers = _elements(message.values, _DTYPES[message.encoding], shape, "values")
    if message.encoding == attention_pb2.ENCODING_UINT8:
        # One scale for each row: for each index of all axes but that of positions.
        scales = _elements(message.scales, _DTYPES[attention_pb2.ENCODING_FLOAT32], _without(shape, axis), "scales")
        values = values * np.expand_dims(scales, axis)
    if top_k or message.positions:
        kept = _elements(message.positions, np.dtype("<u4"), shape, "positions").astype(np.int64)
        return _spread(values, kept, positions, axis)
    return values


def _elements(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
    """Little-endian elements as an array of the machine's own order. Raises ValueError where they do not fill it."""
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes of {what} do not fill a shape of {shape}")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _spread(values: Numbers, kept: NDArray[np.int64], positions: int, axis: int) -> Numbers:
    """The values that were kept at their places among all positions, 0 elsewhere. Raises ValueError for false ones."""
    if (kept >= positions).any():
        raise ValueError(f"position {kept.max()} is out of range: there are {positions}")
    if (np.diff(np.sort(kept, axis), axis=axis) == 0).any():
        raise ValueError("a position comes twice in a row of attention")
    shape = values.shape
    whole = np.zeros((*shape[:axis], positions, *shape[axis + 1 :]), values.dtype)
    np.put_along_axis(whole, kept, values, axis)
    return whole


def token(message: text_pb2.Token) -> Token:
    """A Token."""
    return Token(message.id, message.piece, message.begin, message.end, message.special, message.text)


def started(message: service_pb.Started) -> Started:
    """A stream's header."""
    layouts = [_layout(layout) for layout in message.layouts]
    return Started(
        request_id=message.request_id,
        model=message.model,
        source_text=message.source_text,
        source=tuple(token(t) for t in message.source),
        prefix=tuple(token(t) for t in message.prefix),
        layouts={layout.kind: layout for layout in layouts},
        scores=tuple(_SCORES[score] for score in message.scores),
        row=_ROWS.get(message.capture.row, "predicting"),
        is_encoder_decoder=message.architecture == model_pb2.ARCHITECTURE_ENCODER_DECODER,
        seed=message.seed if message.HasField("seed") else None,
        top_k=message.capture.top_k,
    )


def _layout(message: attention_pb2.AttentionLayout) -> Layout:
    return Layout(
        kind=_KINDS[message.kind],
        axes=tuple(_AXES[axis] for axis in message.axes),
        layers=tuple(message.layers),
        head_count=message.head_count,
        pairs=tuple((pair.layer, pair.head) for pair in message.pairs),
        weights=tuple(pair.weight if pair.HasField("weight") else 1.0 for pair in message.pairs),
    )


def step(message: service_pb.Step, header: Started) -> Step:
    """A step, with the header's names for its scores."""
    seen = header.first_position + message.index + (header.row == "reading")
    top_k = header.top_k
    return Step(
        index=message.index,
        token=token(message.token),
        text=message.text,
        cross=numbers(message.cross, len(header.source), top_k=top_k) if message.HasField("cross") else None,
        decoder_self=numbers(message.decoder_self, seen, top_k=top_k) if message.HasField("decoder_self") else None,
        scores=dict(zip(header.scores, message.scores, strict=True)),
    )


def encoder_self(message: service_pb.EncoderSelf, header: Started) -> Numbers:
    """A part of encoder self-attention, `[queries, positions, ...]`."""
    return numbers(message.attention, len(header.source), axis=1, top_k=header.top_k)


def ending(message: service_pb.Finished) -> Ending:
    """How a stream ended."""
    return Ending(
        text=message.text,
        stop_reason=_STOP_REASONS[message.stop_reason],
        usage=_usage(message.usage),
        hypotheses=tuple(
            Hypothesis(one.text, tuple(token(t) for t in one.tokens), one.score) for one in message.hypotheses
        ),
    )


def _usage(message: service_pb.Usage) -> Usage:
    """What a request cost."""
    return Usage(
        source_tokens=message.source_tokens,
        target_tokens=message.target_tokens,
        attention_bytes=message.attention_bytes,
        queue_time=message.queue_time.ToTimedelta().total_seconds(),
        time_to_first_step=message.time_to_first_step.ToTimedelta().total_seconds(),
        total_time=message.total_time.ToTimedelta().total_seconds(),
        seed=message.seed if message.HasField("seed") else None,
    )


def model(message: model_pb2.Model) -> Model:
    """A model, described."""
    return Model(
        name=message.name,
        family=message.family,
        is_encoder_decoder=message.architecture == model_pb2.ARCHITECTURE_ENCODER_DECODER,
        attentions={_KINDS[size.kind]: ModelAttention(size.layers, size.heads) for size in message.attentions},
        max_source_tokens=message.max_source_tokens,
        max_target_tokens=message.max_target_tokens,
        languages=tuple(message.languages),
        dtype=message.dtype,
        device=message.device,
        default=message.default,
        vocabulary_size=message.vocabulary_size,
    )
