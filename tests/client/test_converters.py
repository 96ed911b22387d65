from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sidelight.client import (
    Beam,
    Capture,
    Decoding,
    Greedy,
    InvalidArgumentError,
    Sampling,
    converters,
)
from sidelight.v1 import attention_pb2, attribution_service_pb2, text_pb2

RNG = np.random.default_rng(7)


def packed(values: np.ndarray, **more: Any) -> attention_pb2.Attention:
    encodings = {
        "<f4": attention_pb2.ENCODING_FLOAT32,
        "<f2": attention_pb2.ENCODING_FLOAT16,
        "|u1": attention_pb2.ENCODING_UINT8,
    }
    return attention_pb2.Attention(
        shape=values.shape, encoding=encodings[values.dtype.str], values=values.tobytes(), **more
    )


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 2), (5,), (0, 2), (1, 1, 1)])
def test_floats_come_back_as_they_were(dtype: str, shape: tuple[int, ...]) -> None:
    values = RNG.random(shape).astype(dtype)
    decoded = converters.numbers(packed(values))
    assert decoded.dtype == values.dtype.newbyteorder("=")
    np.testing.assert_array_equal(decoded, values)


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 2), (5,)])
def test_bytes_times_the_scale_of_their_row(shape: tuple[int, ...]) -> None:
    values = RNG.integers(0, 256, shape).astype(np.uint8)
    scales = RNG.random(shape[1:]).astype("<f4")
    decoded = converters.numbers(packed(values, scales=scales.tobytes()))
    assert decoded.dtype == np.float32
    for index in np.ndindex(shape[1:]):
        np.testing.assert_allclose(
            decoded[(slice(None), *index)], values[(slice(None), *index)] * np.float32(scales[index])
        )


def test_bytes_of_encoder_self_attention_have_a_scale_for_each_query() -> None:
    values = RNG.integers(0, 256, (4, 5, 2)).astype(np.uint8)
    scales = RNG.random((4, 2)).astype("<f4")
    decoded = converters.numbers(packed(values, scales=scales.tobytes()), 5, axis=1)
    np.testing.assert_allclose(decoded, values * scales[:, None, :])


@pytest.mark.parametrize("axis", [0, 1])
def test_positions_left_out_are_zero(axis: int) -> None:
    whole = RNG.random((6, 6, 2, 3)).astype(np.float32)
    order = np.argsort(-whole, axis=axis)
    kept = np.take(order, range(2), axis=axis)
    values = np.take_along_axis(whole, kept, axis)
    decoded = converters.numbers(packed(values, positions=kept.astype("<u4").tobytes()), 6, axis=axis)
    assert decoded.shape == whole.shape
    np.testing.assert_array_equal(np.take_along_axis(decoded, kept, axis), values)
    assert np.count_nonzero(decoded) == values.size


@pytest.mark.parametrize(
    "message",
    [
        attention_pb2.Attention(shape=[3], encoding=attention_pb2.ENCODING_FLOAT32, values=b"1234"),
        attention_pb2.Attention(shape=[1], values=b"1234"),
        attention_pb2.Attention(shape=[4], encoding=attention_pb2.ENCODING_UINT8, values=b"1234"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(message: attention_pb2.Attention) -> None:
    with pytest.raises((ValueError, KeyError)):
        converters.numbers(message)


def test_sources() -> None:
    assert converters.text_message("Hallo", "source") == text_pb2.Text(text="Hallo")
    assert list(converters.text_message(np.array([3, 1]), "source").token_ids.ids) == [3, 1]  # type: ignore[arg-type]
    chat = converters.text_message([{"role": "user", "content": "Hallo"}], "source").chat
    assert [(turn.role, turn.content) for turn in chat.messages] == [("user", "Hallo")]


@pytest.mark.parametrize("source", [b"bytes", [-1], [2**40], ["a"], [{"role": "user"}], "\ud800", 7])
def test_sources_that_are_none(source: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        converters.text_message(source, "source")
    assert caught.value.field == "source"


def test_capture() -> None:
    capture = Capture(
        kinds=("cross", "encoder_self"),
        heads=[(2, 3), (0, 1)],
        over_heads="l2",
        row="reading",
        encoding="float16",
        steps=(1, None),
    )
    message = converters.capture_message(capture)
    assert list(message.kinds) == [attention_pb2.ATTENTION_KIND_CROSS, attention_pb2.ATTENTION_KIND_ENCODER_SELF]
    assert [(pair.layer, pair.head) for pair in message.heads.list.heads] == [(2, 3), (0, 1)]
    assert message.over_heads == attention_pb2.REDUCTION_L2
    assert not message.over_layers
    assert message.row == attention_pb2.ROW_READING
    assert message.encoding == attention_pb2.ENCODING_FLOAT16
    assert message.steps.begin == 1
    assert not message.steps.HasField("end")
    assert list(converters.capture_message(Capture(layers=[1, 0])).heads.layers.layers) == [1, 0]


def test_a_default_capture_sets_nothing() -> None:
    # "none" contradicts every other field, so defaults must not be on the wire.
    assert converters.capture_message(Capture()) == attention_pb2.Capture()
    assert converters.capture_message(Capture(none=True)) == attention_pb2.Capture(none=True)


@pytest.mark.parametrize(
    ("capture", "field"),
    [
        (Capture(kinds=["crossed"]), "capture.kinds"),  # type: ignore[list-item]
        (Capture(over_heads="median"), "capture.over_heads"),  # type: ignore[arg-type]
        (Capture(over_layers="median"), "capture.over_layers"),  # type: ignore[arg-type]
        (Capture(row="writing"), "capture.row"),  # type: ignore[arg-type]
        (Capture(encoding="float8"), "capture.encoding"),  # type: ignore[arg-type]
        (Capture(layers=[0], heads=[(0, 0)]), "capture.heads"),
        (Capture(layers=[-1]), "capture.heads.layers"),
        (Capture(heads=[(0,)]), "capture.heads.list"),  # type: ignore[list-item]
        (Capture(steps=(-1, None)), "capture.steps"),
    ],
)
def test_captures_that_cannot_be_sent(capture: Capture, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        converters.capture_message(capture)
    assert caught.value.field == field


def test_decoding() -> None:
    assert converters.decoding_message(Decoding()) == text_pb2.Decoding()
    assert converters.decoding_message(Decoding(Greedy(), 5)).WhichOneof("strategy") == "greedy"
    drawn = converters.decoding_message(Decoding(Sampling(temperature=0.5, seed=2**63), stop=["."], ignore_eos=True))
    assert drawn.sampling.seed == 2**63
    assert drawn.sampling.HasField("temperature")
    assert not drawn.sampling.HasField("top_k")
    assert list(drawn.stop) == ["."]
    beam = converters.decoding_message(Decoding(Beam(4, hypotheses=2))).beam
    assert (beam.width, beam.hypotheses, beam.HasField("length_penalty")) == (4, 2, False)
    with pytest.raises(InvalidArgumentError) as caught:
        converters.decoding_message(Decoding(Sampling(top_k=-1)))
    assert caught.value.field == "decoding.sampling"


def test_an_ending_with_hypotheses() -> None:
    token = text_pb2.Token(id=4, piece="▁Ja", end=2, text="Ja")
    message = attribution_service_pb2.Finished(
        text="Ja",
        stop_reason=text_pb2.STOP_REASON_LENGTH,
        hypotheses=[attribution_service_pb2.Hypothesis(text="Ja", tokens=[token], score=-1.5)],
        usage=attribution_service_pb2.Usage(seed=0),
    )
    ending = converters.ending(message)
    assert (ending.text, ending.stop_reason, ending.usage.seed) == ("Ja", "length", 0)
    assert ending.hypotheses[0].tokens[0].piece == "▁Ja"
    assert ending.hypotheses[0].score == -1.5
