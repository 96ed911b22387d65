"""A wrong grouping ends with a status that names the field, and what is right is in Started."""

from __future__ import annotations

import grpc
import pytest
from harness import CROSS, stub
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

WORD, SPAN, MEAN = attention.GROUPING_WORD, attention.GROUPING_SPAN, attention.REDUCTION_MEAN
IDS = text.Text(token_ids=text.TokenIds(ids=[5, 6]))


def request(grouping=0, source="A dog.", given=None, given_ids=False, **units) -> pb.AttributeRequest:
    """A request; each list of spans is pairs of offsets."""
    message = pb.AttributeRequest(capture=attention.Capture(kinds=[CROSS], grouping=grouping))
    message.source.CopyFrom(IDS if source is None else text.Text(text=source))
    if given_ids:
        message.given.CopyFrom(IDS)
    elif given is not None:
        message.given.text = given
    for name, value in units.items():
        if name.startswith("over"):
            setattr(message.capture.units, name, value)
        else:
            spans = [attention.TextSpan(begin=begin, end=end) for begin, end in value]
            getattr(message.capture.units, name).extend(spans)
    return message


BAD = [
    (request(99), "capture.grouping"),
    (request(WORD, source=None), "capture.grouping"),
    (request(source=None, source_slices=[(0, 1)]), "capture.units.source_slices"),
    (request(over_positions=MEAN), "capture.units.over_positions"),
    (request(attention.GROUPING_TOKEN, over_steps=MEAN), "capture.units.over_steps"),
    (request(WORD, over_scores=42), "capture.units.over_scores"),
    (request(SPAN), "capture.units.source_spans"),
    (request(WORD, source_spans=[(0, 1)]), "capture.units.source_spans"),
    (request(source_spans=[(0, 1)]), "capture.units.source_spans"),
    (request(SPAN, source_spans=[(0, 1), (2, 2)]), "capture.units.source_spans[1].end"),
    (request(SPAN, source_spans=[(3, 2)]), "capture.units.source_spans[0].end"),
    (request(SPAN, source_spans=[(0, 7)]), "capture.units.source_spans[0].end"),
    (request(SPAN, source_spans=[(0, 3), (2, 5)]), "capture.units.source_spans[1].begin"),
    (request(SPAN, source_spans=[(3, 4), (0, 2)]), "capture.units.source_spans[1].begin"),
    (request(SPAN, source_spans=[(0, 1)] * 257), "capture.units.source_spans"),
    (request(source_slices=[(0, 1)] * 257), "capture.units.source_slices"),
    (request(source_slices=[(1, 2)]), "capture.units.source_slices"),
    (request(source_slices=[(4, 4)]), "capture.units.source_slices[0].end"),
    (request(source_slices=[(0, 2**32 - 1)]), "capture.units.source_slices[0].end"),
    (request(SPAN, target_spans=[(0, 1)]), "capture.units.target_spans"),
    (request(target_slices=[(0, 1)]), "capture.units.target_slices"),
    (request(WORD, given="Hund", target_slices=[(0, 5)]), "capture.units.target_slices[0].end"),
    (request(given_ids=True, target_slices=[(0, 1)]), "capture.units.target_slices"),
    (request(SPAN, given="Hund", target_spans=[(1, 1)]), "capture.units.target_spans[0].end"),
]


@pytest.mark.parametrize(("message", "field"), BAD)
def test_the_field_is_named(bundled_server, message, field):
    with stub(bundled_server) as service, pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(message, timeout=60))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details().startswith(f"{field}: ")


def test_none_contradicts_a_grouping(bundled_server):
    message = pb.AttributeRequest(capture=attention.Capture(none=True, grouping=WORD), source=text.Text(text="A dog."))
    with stub(bundled_server) as service, pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(message, timeout=60))
    assert raised.value.details().startswith("capture.grouping: ")


def started(address: str, message: pb.AttributeRequest) -> pb.Started:
    with stub(address) as service:
        return next(iter(service.Attribute(message, timeout=60))).started


def test_started_has_the_units_and_the_defaults(bundled_server):
    header = started(bundled_server, request(WORD, source="A dog's tail."))
    assert [unit.text for unit in header.source_units] == ["A", "dog's", "tail", ".", ""]
    assert [(unit.begin, unit.end) for unit in header.source_units][:2] == [(0, 1), (2, 7)]
    assert len(header.prefix_units) == len(header.prefix) == 1
    assert not header.source_positions
    units = header.capture.units
    assert header.capture.grouping == WORD
    assert (units.over_positions, units.over_steps, units.over_scores) == (attention.REDUCTION_SUM, MEAN, MEAN)


def test_started_has_the_slices(bundled_server):
    message = request(WORD, source="A dog's tail.", source_slices=[(3, 4), (8, 9)])
    message.capture.encoding, message.capture.top_k = attention.ENCODING_UINT8, 1
    header = started(bundled_server, message)
    assert list(header.source_positions) == [1, 2]
    assert len(header.source_units) == 5  # all units, also those that are not sent
    assert header.capture.units.source_slices == message.capture.units.source_slices
    assert (header.capture.encoding, header.capture.top_k) == (attention.ENCODING_UINT8, 1)


def test_get_model_has_the_limit_and_the_boundaries(bundled_server):
    with stub(bundled_server) as service:
        model = service.GetModel(pb.GetModelRequest(), timeout=60).model
    assert model.limits.max_spans == 256
    assert model.word_boundaries in ("icu", "uax29")
    assert started(bundled_server, request(SPAN, source="dog " * 60, source_spans=[(i, i + 1) for i in range(200)]))
