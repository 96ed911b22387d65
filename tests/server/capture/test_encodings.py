"""Encodings, top-k and weights: a client in any language gets what the float32 numbers say."""

from __future__ import annotations

import numpy as np
import pytest
from combinations import pairwise
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, serving, steps_of, stub
from model_zoo import FAMILIES, SOURCE
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import text_pb2 as text

KINDS = {"cross": CROSS, "decoder_self": DECODER_SELF, "encoder_self": ENCODER_SELF}
TYPES = {
    attention.ENCODING_FLOAT32: "<f4",
    attention.ENCODING_FLOAT16: "<f2",
    attention.ENCODING_UINT8: "u1",
}


# A model whose rows are captured beside fused attention; one that gives whole matrices; grouped heads with windows.
@pytest.fixture(scope="module", params=["bundled", "fsmt", "gemma3"])
def served(request, zoo):
    loaded = zoo(request.param)
    with serving(loaded) as address, stub(address) as service:
        yield loaded, service, FAMILIES.get(request.param)


def ask(served, given=False, **capture) -> dict[str, list[attention.Attention]]:
    """Returns the attentions of each kind: one for each step, or the encoder's, whose parts are joined."""
    loaded, service, _ = served
    message = request(SOURCE, [KINDS[kind] for kind in loaded.kinds])
    message.capture.MergeFrom(attention.Capture(**capture))
    if given:
        message.given.text = " Der Hund schläft."
    else:
        message.decoding.CopyFrom(text.Decoding(max_new_tokens=6, ignore_eos=True))
    responses = list(service.Attribute(message, timeout=60))
    found = {kind: [getattr(step, kind) for step in steps_of(responses)] for kind in loaded.kinds if "enc" not in kind}
    if "encoder_self" in loaded.kinds:
        found["encoder_self"] = [join([r.encoder_self.attention for r in responses if r.HasField("encoder_self")])]
    return found


def join(parts: list[attention.Attention]) -> attention.Attention:
    """Joins parts, each of several queries, one after another: queries are the slowest axis."""
    whole, *rest = parts
    for part in rest:
        whole.shape[0] += part.shape[0]
        whole.values += part.values
        whole.scales += part.scales
        whole.positions += part.positions
    return whole


def array(message: attention.Attention) -> np.ndarray:
    return np.frombuffer(message.values, TYPES[message.encoding]).reshape(tuple(message.shape))


def scales(message: attention.Attention, axis: int) -> np.ndarray:
    shape = [size for i, size in enumerate(message.shape) if i != axis]
    return np.expand_dims(np.frombuffer(message.scales, "<f4").reshape(shape), axis)


def pairs(*triples) -> attention.HeadSelection:
    heads = [attention.Head(layer=layer, head=head, weight=weight) for layer, head, weight in triples]
    return attention.HeadSelection(list=attention.HeadList(heads=heads))


SELECTIONS = {
    "everything": {},
    "heads reduced": {"over_heads": attention.REDUCTION_MEAN},
    "all reduced": {"over_heads": attention.REDUCTION_MAX, "over_layers": attention.REDUCTION_SUM},
    "pairs": {"heads": pairs((1, 0, None), (0, 1, None))},
    "pairs reduced": {"heads": pairs((1, 0, None), (0, 1, None)), "over_heads": attention.REDUCTION_L2},
}


@pytest.mark.covering(1)
@pytest.mark.parametrize("given", [False, True], ids=["decoded", "given"])
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_bytes_are_the_floats_within_half_a_scale(served, selection, given):
    floats = ask(served, given, **selection)
    packed = ask(served, given, encoding=attention.ENCODING_UINT8, **selection)
    for kind, messages in packed.items():
        axis = 1 if kind == "encoder_self" else 0
        assert len(messages) == len(floats[kind])
        for got, true in zip(messages, floats[kind], strict=True):
            assert got.shape == true.shape
            scale = scales(got, axis)
            np.testing.assert_allclose(scale, array(true).max(axis, keepdims=True) / 255, rtol=1e-5)
            error = np.abs(array(got) * scale - array(true))
            assert (error <= scale / 2 + 1e-6).all()
            assert array(got).max() == 255


@pytest.mark.covering(1)
@pytest.mark.parametrize(("selection", "encoding", "given"), pairwise(list(SELECTIONS), list(TYPES), [False, True]))
def test_top_k_are_the_largest(served, selection, encoding, given):
    selection = SELECTIONS[selection]
    floats = ask(served, given, **selection)
    for k in (1, 4, 1000):
        packed = ask(served, given, encoding=encoding, top_k=k, **selection)
        for kind, messages in packed.items():
            axis = 1 if kind == "encoder_self" else 0
            for got, true in zip(messages, floats[kind], strict=True):
                whole = array(true)
                kept = min(k, whole.shape[axis])
                assert got.shape[axis] == kept
                positions = np.frombuffer(got.positions, "<u4").reshape(tuple(got.shape)).astype(int)
                expected = np.sort(whole, axis)[(slice(None),) * axis + (slice(None, -kept - 1, -1),)]
                values = array(got) * (scales(got, axis) if got.scales else 1)
                tolerance = {"<f4": 1e-6, "<f2": 1e-3, "u1": 1 / 255}[TYPES[encoding]] * max(1, whole.max())
                np.testing.assert_allclose(values, expected, atol=tolerance)
                np.testing.assert_allclose(np.take_along_axis(whole, positions, axis), expected, atol=1e-6)
                ordered = np.sort(positions, axis)  # each position occurs once
                assert (np.diff(ordered, axis=axis) > 0).all()


@pytest.mark.parametrize("reduction", [attention.REDUCTION_MEAN, attention.REDUCTION_SUM])
def test_weights(served, reduction):
    apart = ask(served, heads=pairs((1, 0, None), (0, 1, None), (0, 0, None)))
    reduced = ask(served, heads=pairs((1, 0, 2.0), (0, 1, None), (0, 0, 0.5)), over_heads=reduction)
    for kind, messages in reduced.items():
        for got, parts in zip(messages, apart[kind], strict=True):
            expected = array(parts) @ np.array([2.0, 1.0, 0.5])
            if reduction == attention.REDUCTION_MEAN:
                expected /= 3.5
            np.testing.assert_allclose(array(got), expected, atol=1e-6)


def test_the_header_repeats_the_request(served):
    loaded, service, _ = served
    message = request(SOURCE, [KINDS[loaded.kinds[0]]])
    message.capture.MergeFrom(
        attention.Capture(
            heads=pairs((0, 1, 0.25)), over_heads=attention.REDUCTION_SUM, top_k=3, encoding=attention.ENCODING_UINT8
        )
    )
    message.decoding.max_new_tokens = 1
    capture = next(iter(service.Attribute(message, timeout=60))).started.capture
    assert capture.top_k == 3
    assert capture.encoding == attention.ENCODING_UINT8
    assert capture.heads.list.heads[0].weight == 0.25
