"""Messages built for requests, and messages of responses parsed."""

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
from sidelight.client.parts import build_attribution
from sidelight.client.results import Step
from sidelight.v1 import attention_pb2, attribution_service_pb2, model_pb2, text_pb2

RNG = np.random.default_rng(7)


def build_attention(values: np.ndarray, **fields: Any) -> attention_pb2.Attention:
    encodings = {
        "<f4": attention_pb2.ENCODING_FLOAT32,
        "<f2": attention_pb2.ENCODING_FLOAT16,
        "|u1": attention_pb2.ENCODING_UINT8,
    }
    return attention_pb2.Attention(
        shape=values.shape, encoding=encodings[values.dtype.str], values=values.tobytes(), **fields
    )


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 2), (5,), (0, 2), (1, 1, 1)])
def test_floats_are_parsed_unchanged(dtype: str, shape: tuple[int, ...]) -> None:
    values = RNG.random(shape).astype(dtype)
    decoded = converters.parse_attention(build_attention(values), shape[0])
    assert decoded.dtype == values.dtype.newbyteorder("=")
    np.testing.assert_array_equal(decoded, values)


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 2), (5,)])
def test_uint8_values_are_multiplied_by_the_scale_of_their_row(shape: tuple[int, ...]) -> None:
    values = RNG.integers(0, 256, shape).astype(np.uint8)
    scales = RNG.random(shape[1:]).astype("<f4")
    decoded = converters.parse_attention(build_attention(values, scales=scales.tobytes()), shape[0])
    assert decoded.dtype == np.float32
    for index in np.ndindex(shape[1:]):
        np.testing.assert_allclose(
            decoded[(slice(None), *index)], values[(slice(None), *index)] * np.float32(scales[index])
        )


def test_bytes_of_encoder_self_attention_have_a_scale_for_each_query() -> None:
    values = RNG.integers(0, 256, (4, 5, 2)).astype(np.uint8)
    scales = RNG.random((4, 2)).astype("<f4")
    decoded = converters.parse_attention(build_attention(values, scales=scales.tobytes()), 5, axis=1)
    np.testing.assert_allclose(decoded, values * scales[:, None, :])


@pytest.mark.parametrize("axis", [0, 1])
def test_positions_that_were_not_sent_are_zero(axis: int) -> None:
    attention = RNG.random((6, 6, 2, 3)).astype(np.float32)
    order = np.argsort(-attention, axis=axis)
    indices = np.take(order, range(2), axis=axis)
    values = np.take_along_axis(attention, indices, axis)
    decoded = converters.parse_attention(
        build_attention(values, positions=indices.astype("<u4").tobytes()), 6, axis=axis, top_k=2
    )
    assert decoded.shape == attention.shape
    np.testing.assert_array_equal(np.take_along_axis(decoded, indices, axis), values)
    assert np.count_nonzero(decoded) == values.size


def bytes_of(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


def test_a_step_of_bytes_computed_by_hand() -> None:
    # [positions, heads]. All numbers of the second head are 0, so its scale is 0.
    values = np.array([[255, 0], [51, 0], [0, 0]], np.uint8)
    decoded = converters.parse_attention(build_attention(values, scales=np.array([0.002, 0], "<f4").tobytes()), 3)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, [[0.51, 0], [0.102, 0], [0, 0]], rtol=1e-6)


def test_parts_of_encoder_self_attention_in_bytes_computed_by_hand() -> None:
    header = attribution_service_pb2.Started(source=[text_pb2.Token(piece=piece) for piece in "abc"])
    parts = [
        # [queries, positions, layers]: one scale for each query and layer.
        (np.array([[[100, 1], [50, 2], [0, 3]]], np.uint8), [[0.01, 0.1]]),
        (np.array([[[1, 0], [2, 0], [3, 0]], [[4, 9], [5, 8], [6, 7]]], np.uint8), [[0.5, 0], [1, 2]]),
    ]
    parsed: list[np.ndarray] = []
    for first, (values, scales) in zip((0, 1), parts, strict=True):
        attention = build_attention(values, scales=np.array(scales, "<f4").tobytes())
        message = attribution_service_pb2.EncoderSelf(first_query=first, attention=attention)
        parsed.append(converters.parse_encoder_self(message, converters.parse_started(header)).attention)
    expected = [
        [[1, 0.1], [0.5, 0.2], [0, 0.3]],
        [[0.5, 0], [1, 0], [1.5, 0]],
        [[4, 18], [5, 16], [6, 14]],
    ]
    np.testing.assert_allclose(np.concatenate(parsed), expected, rtol=1e-6)


def test_bytes_of_the_greatest_positions_computed_by_hand() -> None:
    values = np.array([[200, 100], [50, 0]], np.uint8)  # [positions sent, heads]
    scales = np.array([0.001, 0.002], "<f4").tobytes()
    decoded = converters.parse_attention(
        build_attention(values, scales=scales, positions=bytes_of(3, 0, 1, 2)), 5, top_k=2
    )
    expected = [[0, 0.2], [0.05, 0], [0, 0], [0.2, 0], [0, 0]]
    np.testing.assert_allclose(decoded, expected, rtol=1e-6)


def test_equal_values_keep_the_positions_that_were_sent() -> None:
    # Among equal values, the server chooses which it sends: here the first and the third of four quarters.
    values = np.full((2,), 0.25, "<f2")
    decoded = converters.parse_attention(build_attention(values, positions=bytes_of(2, 0)), 4, top_k=2)
    assert decoded.dtype == np.float16
    assert decoded.tolist() == [0.25, 0, 0.25, 0]


@pytest.mark.parametrize("row", ["predicting", "reading"])
def test_steps_that_see_fewer_positions_than_top_k(row: str) -> None:
    header = attribution_service_pb2.Started(
        source=[text_pb2.Token(piece=piece) for piece in "abcd"],
        prefix=[text_pb2.Token(piece="<pad>")],
        architecture=model_pb2.ARCHITECTURE_ENCODER_DECODER,
        capture=attention_pb2.Capture(
            top_k=2, row=attention_pb2.ROW_READING if row == "reading" else attention_pb2.ROW_PREDICTING
        ),
        layouts=[attention_pb2.AttentionLayout(kind=kind) for kind in (1, 2)],
    )
    started = converters.parse_started(header)
    assert started.top_k == 2
    # Step 0 sees the prefix, and with "reading" also itself. Each further step sees one position more.
    sent: list[tuple[list[float], list[int]]] = [([0.75, 0.25], [1, 0]), ([0.5, 0.375], [0, 2]), ([0.5, 0.5], [3, 1])]
    rows = [[0.25, 0.75, 0, 0], [0.5, 0, 0.375, 0], [0, 0.5, 0, 0.5]]
    if row == "predicting":
        sent = [([1.0], [0]), *sent[:2]]
        rows = [[1, np.nan, np.nan], [0.25, 0.75, np.nan], [0.5, 0, 0.375]]
    else:
        rows[0][2:], rows[1][3:] = [np.nan, np.nan], [np.nan]
    steps: list[Step] = []
    for index, (values, positions) in enumerate(sent):
        decoder_self = build_attention(np.array(values, "<f4"), positions=bytes_of(*positions))
        cross = build_attention(np.array([0.5, 0.25], "<f4"), positions=bytes_of(3, index))
        message = attribution_service_pb2.Step(index=index, cross=cross, decoder_self=decoder_self)
        steps.append(converters.parse_step(message, started))
    ending = converters.parse_finished(attribution_service_pb2.Finished(stop_reason=text_pb2.STOP_REASON_END_TOKEN))
    result = build_attribution(started, [], steps, ending)
    # NaN: the step has not seen the position. 0: the step has seen it, but it was not sent.
    np.testing.assert_array_equal(result.decoder_self[: len(rows[0])], np.array(rows).T)
    assert np.isnan(result.decoder_self[len(rows[0]) :]).all()
    np.testing.assert_array_equal(result.cross, np.array([[0.25, 0, 0, 0.5], [0, 0.25, 0, 0.5], [0, 0, 0.25, 0.5]]).T)


def test_a_result_has_the_characters_of_which_a_step_was_the_first_bytes() -> None:
    texts = [(0, 1, ""), (0, 1, ""), (0, 1, "한"), (2, 3, ""), (2, 4, "국x"), (3, 5, "x"), (4, 5, ""), (5, 5, "")]
    steps: list[Step] = []
    started = converters.parse_started(
        attribution_service_pb2.Started(architecture=model_pb2.ARCHITECTURE_DECODER_ONLY)
    )
    for index, (begin, end, text) in enumerate(texts):
        token = text_pb2.Token(piece="Å", begin=begin, end=end, text=text, special=begin == end)
        steps.append(converters.parse_step(attribution_service_pb2.Step(index=index, token=token), started))
    ending = converters.parse_finished(attribution_service_pb2.Finished(text="한 국x\ufffd", stop_reason=1))
    result = build_attribution(started, [], steps, ending)
    assert [token.text for token in result.steps] == ["한", "한", "한", "국", "국x", "x\ufffd", "\ufffd", ""]
    assert [token.label for token in result.steps] == ["한", "한", "한", "국", "국x", "x\ufffd", "\ufffd", "Å"]
    assert all(token.text == ending.text[token.begin : token.end] for token in result.steps)


FLOAT32, UINT8 = attention_pb2.ENCODING_FLOAT32, attention_pb2.ENCODING_UINT8
ODD = [
    # the message's fields, the number of positions, top_k, the error
    ({"shape": [3], "encoding": FLOAT32, "values": b"1234"}, 3, 0, "4 bytes of values do not fill"),
    ({"shape": [1], "encoding": FLOAT32, "values": b"123"}, 1, 0, "3 bytes of values do not fill"),
    ({"shape": [1], "values": b"1234"}, 1, 0, "0"),
    ({"encoding": FLOAT32, "values": b"1234"}, 1, 0, "no axis of positions"),
    ({"shape": [1], "encoding": FLOAT32, "values": b"1234"}, 2, 0, "not for 2 of 2 positions"),
    ({"shape": [4], "encoding": UINT8, "values": b"1234"}, 4, 0, "0 bytes of scales do not fill"),
    ({"shape": [2, 2], "encoding": UINT8, "values": b"1234", "scales": b"1234"}, 2, 0, "4 bytes of scales do not"),
    ({"shape": [2], "encoding": UINT8, "values": b"12", "scales": b"12345"}, 2, 0, "5 bytes of scales do not"),
    ({"shape": [1], "encoding": FLOAT32, "values": b"1234"}, 2, 1, "0 bytes of positions do not fill"),
    ({"shape": [1], "encoding": FLOAT32, "values": b"1234", "positions": b"12"}, 2, 1, "2 bytes of positions do not"),
    ({"shape": [1], "encoding": FLOAT32, "values": b"1234", "positions": bytes_of(2)}, 2, 1, "position 2 is out of"),
    ({"shape": [1], "encoding": FLOAT32, "values": b"1234", "positions": bytes_of(2**32 - 1)}, 2, 1, "out of range"),
    ({"shape": [2], "encoding": FLOAT32, "values": b"12341234", "positions": bytes_of(1, 1)}, 3, 2, "comes twice"),
    (
        {"shape": [1], "encoding": FLOAT32, "values": b"1234", "positions": bytes_of(0)},
        3,
        2,
        "not for 2 of 3 positions",
    ),
    ({"shape": [3], "encoding": FLOAT32, "values": b"1" * 12, "positions": bytes_of(0, 1, 2)}, 3, 2, "not for 2 of 3"),
]


@pytest.mark.parametrize(("fields", "positions", "top_k", "message"), ODD)
def test_attention_that_does_not_fit_is_refused(fields: Any, positions: int, top_k: int, message: str) -> None:
    with pytest.raises((ValueError, KeyError), match=message):
        converters.parse_attention(attention_pb2.Attention(**fields), positions, top_k=top_k)


def test_build_text() -> None:
    assert converters.build_text("Hallo", "source") == text_pb2.Text(text="Hallo")
    assert list(converters.build_text(np.array([3, 1]), "source").token_ids.ids) == [3, 1]  # type: ignore[arg-type]
    chat = converters.build_text([{"role": "user", "content": "Hallo"}], "source").chat
    assert [(turn.role, turn.content) for turn in chat.messages] == [("user", "Hallo")]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_recording_is_sent_as_float32(dtype: Any) -> None:
    features = np.arange(6, dtype=dtype).reshape(2, 3)[:, ::-1]
    text = converters.build_text(features, "source")
    assert list(text.features.shape) == [2, 3]
    assert np.frombuffer(text.features.values, "<f4").tolist() == [2, 1, 0, 5, 4, 3]


@pytest.mark.parametrize("array", [np.zeros((2, 3), np.int64), np.zeros((1, 2, 3), np.float32)])
def test_another_array_is_no_recording(array: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^source: must be an array of floating-point numbers") as raised:
        converters.build_text(array, "source")
    assert raised.value.field == "source"


@pytest.mark.parametrize("source", [b"bytes", [-1], [2**40], ["a"], [{"role": "user"}], "\ud800", 7])
def test_invalid_sources(source: Any) -> None:
    with pytest.raises(InvalidArgumentError) as error_info:
        converters.build_text(source, "source")
    assert error_info.value.field == "source"


def test_build_capture() -> None:
    capture = Capture(
        kinds=("cross", "encoder_self"),
        heads=[(2, 3), (0, 1)],
        over_heads="l2",
        row="reading",
        encoding="float16",
        steps=(1, None),
    )
    message = converters.build_capture(capture)
    assert list(message.kinds) == [attention_pb2.ATTENTION_KIND_CROSS, attention_pb2.ATTENTION_KIND_ENCODER_SELF]
    assert [(pair.layer, pair.head) for pair in message.heads.list.heads] == [(2, 3), (0, 1)]
    assert message.over_heads == attention_pb2.REDUCTION_L2
    assert not message.over_layers
    assert message.row == attention_pb2.ROW_READING
    assert message.encoding == attention_pb2.ENCODING_FLOAT16
    assert message.steps.begin == 1
    assert not message.steps.HasField("end")
    assert list(converters.build_capture(Capture(layers=[1, 0])).heads.layers.layers) == [1, 0]


def test_build_capture_with_weights_and_top_k() -> None:
    message = converters.build_capture(
        Capture(heads=[(2, 3, 0.75), (0, 1), (1, 1, 0)], over_heads="mean", encoding="uint8", top_k=5)
    )
    assert message.encoding == attention_pb2.ENCODING_UINT8
    assert message.top_k == 5
    assert [(head.layer, head.head, head.weight) for head in message.heads.list.heads] == [
        (2, 3, 0.75),
        (0, 1, 0),
        (1, 1, 0),
    ]
    # A weight of 0 must not become the default, which is 1.
    assert [head.HasField("weight") for head in message.heads.list.heads] == [True, False, True]


def test_a_layout_has_a_weight_for_each_pair() -> None:
    heads = [attention_pb2.Head(layer=2, head=3, weight=0.75), attention_pb2.Head(layer=0, head=1)]
    layout = attention_pb2.AttentionLayout(kind=attention_pb2.ATTENTION_KIND_CROSS, pairs=heads)
    header = converters.parse_started(attribution_service_pb2.Started(layouts=[layout]))
    assert header.layouts["cross"].pairs == ((2, 3), (0, 1))
    assert header.layouts["cross"].weights == (0.75, 1.0)


def test_a_default_capture_sets_nothing() -> None:
    # "none" contradicts every other field that is set, so defaults must stay unset.
    assert converters.build_capture(Capture()) == attention_pb2.Capture()
    assert converters.build_capture(Capture(none=True)) == attention_pb2.Capture(none=True)


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
        (Capture(top_k=-1), "capture.top_k"),
        (Capture(top_k=2**32), "capture.top_k"),
        (Capture(top_k=1.5), "capture.top_k"),  # type: ignore[arg-type]
        (Capture(heads=[(0,)]), "capture.heads.list"),  # type: ignore[list-item]
        (Capture(heads=[(0, 1, 0.5, 2)]), "capture.heads.list"),  # type: ignore[list-item]
        (Capture(heads=[(0, 1, "much")]), "capture.heads.list"),  # type: ignore[list-item]
        (Capture(heads=[5]), "capture.heads.list"),  # type: ignore[list-item]
        (Capture(steps=(-1, None)), "capture.steps"),
    ],
)
def test_invalid_captures(capture: Capture, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as error_info:
        converters.build_capture(capture)
    assert error_info.value.field == field


def test_build_decoding() -> None:
    assert converters.build_decoding(Decoding()) == text_pb2.Decoding()
    assert converters.build_decoding(Decoding(Greedy(), 5)).WhichOneof("strategy") == "greedy"
    sampling = converters.build_decoding(Decoding(Sampling(temperature=0.5, seed=2**63), stop=["."], ignore_eos=True))
    assert sampling.sampling.seed == 2**63
    assert sampling.sampling.HasField("temperature")
    assert not sampling.sampling.HasField("top_k")
    assert list(sampling.stop) == ["."]
    beam = converters.build_decoding(Decoding(Beam(4, hypotheses=2))).beam
    assert (beam.width, beam.hypotheses, beam.HasField("length_penalty"), beam.early_stopping) == (4, 2, False, 0)
    beam = converters.build_decoding(Decoding(Beam(4, early_stopping="never"))).beam
    assert beam.early_stopping == text_pb2.EARLY_STOPPING_NEVER
    with pytest.raises(InvalidArgumentError) as error_info:
        converters.build_decoding(Decoding(Sampling(top_k=-1)))
    assert error_info.value.field == "decoding.sampling.top_k"


def test_parse_finished_with_hypotheses() -> None:
    token = text_pb2.Token(id=4, piece="▁Ja", end=2, text="Ja")
    message = attribution_service_pb2.Finished(
        text="Ja",
        stop_reason=text_pb2.STOP_REASON_LENGTH,
        hypotheses=[
            attribution_service_pb2.Hypothesis(
                text="Ja", tokens=[token], score=-1.5, stop_reason=text_pb2.STOP_REASON_END_TOKEN
            )
        ],
        usage=attribution_service_pb2.Usage(seed=0),
    )
    ending = converters.parse_finished(message)
    assert (ending.text, ending.stop_reason, ending.usage.seed) == ("Ja", "length", 0)
    assert ending.hypotheses[0].tokens[0].piece == "▁Ja"
    assert (ending.hypotheses[0].score, ending.hypotheses[0].stop_reason) == (-1.5, "end_token")


def test_shares_of_special_tokens_have_the_shape_without_positions() -> None:
    """`[queries, positions, layers]`: the positions are axis 1 in a part of the encoder, and axis 0 in a step."""
    values = np.arange(12, dtype="<f4").reshape(2, 3, 2)
    part = build_attention(values)
    part.special_shares.extend([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(converters.parse_special_shares(part, axis=1), [[0.1, 0.2], [0.3, 0.4]])
    step = build_attention(values[0])
    step.special_shares.extend([0.5, 0.25])
    np.testing.assert_allclose(converters.parse_special_shares(step), [0.5, 0.25])
    step.special_shares.append(1.0)
    with pytest.raises(ValueError, match="shape"):
        converters.parse_special_shares(step)
