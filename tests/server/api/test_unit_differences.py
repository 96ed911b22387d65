"""Units of differences: the attention of a request minus that of its contrast, grouped, cut and encoded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from answers import Answer, ask, values_of
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, stub
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

TARGET = "Ich kenne die Frau nicht."
SOURCE, OTHER = "I don't know the woman.", "I don't know the man."


def message(source: str, grouping: attention.Grouping.ValueType, unit: int = 0) -> pb.AttributeRequest:
    made = request(source, [CROSS, DECODER_SELF, ENCODER_SELF], given=text.Text(text=TARGET), offset_unit=unit)
    made.capture.grouping = grouping
    made.capture.special_tokens = attention.SPECIAL_TOKENS_RENORMALIZE
    if grouping == attention.GROUPING_SPAN:
        made.capture.units.source_spans.add(begin=2, end=12)
        made.capture.units.target_spans.add(begin=4, end=13)
    return made


def subtracted(made: pb.AttributeRequest) -> pb.AttributeRequest:
    made.contrast.source.text = OTHER
    made.contrast.subtract_attention = True
    return made


def rows_of(answer: Answer, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The numbers and the shares of special tokens: of all units or steps, or of the queries of the encoder."""
    events = answer.events if name == "attention" else answer.units or answer.steps
    axis = int(name == "attention")
    arrays = [getattr(event, name) for event in events if name in event.DESCRIPTOR.fields_by_name]
    return [(values_of(array, axis), np.array(array.special_shares)) for array in arrays if array.values]


@pytest.mark.parametrize("grouping", [attention.GROUPING_TOKEN, attention.GROUPING_WORD, attention.GROUPING_SPAN])
def test_units_of_differences_are_differences_of_units(bundled_server, grouping):
    """Sums and means commute with the difference. So do the shares that special tokens took."""
    with stub(bundled_server) as service:
        ours, theirs = (ask(service, message(source, grouping)) for source in (SOURCE, OTHER))
        difference = ask(service, subtracted(message(SOURCE, grouping)))
    assert not difference.code
    for name in ("cross", "decoder_self", "attention"):
        rows = [rows_of(answer, name) for answer in (ours, theirs, difference)]
        assert rows[0]
        for (values, shares), (other_values, other_shares), (result, result_shares) in zip(*rows, strict=True):
            np.testing.assert_allclose(result, values - other_values, atol=1e-5)
            np.testing.assert_allclose(result_shares, shares - other_shares, atol=1e-5)
            assert len(shares)
        assert max(np.abs(result).max() for result, _ in rows[2]) > 0.01


@pytest.mark.parametrize("grouping", [attention.GROUPING_WORD, attention.GROUPING_SPAN])
def test_the_greatest_differences_are_those_of_the_greatest_absolute_value(bundled_server, grouping):
    made = subtracted(message(SOURCE, grouping))
    with stub(bundled_server) as service:
        whole = ask(service, made)
        made.capture.top_k = 2
        kept = ask(service, made)
    num_negative = 0
    for unit, few in zip(whole.units, kept.units, strict=True):
        values, greatest = values_of(unit.cross, 0), values_of(few.cross, 0)
        np.testing.assert_allclose(np.abs(greatest), -np.sort(-np.abs(values), axis=0)[:2], atol=1e-6)
        num_negative += (greatest < 0).sum()
    assert num_negative


def test_differences_of_units_are_no_bytes(bundled_server):
    groupings = (attention.GROUPING_TOKEN, attention.GROUPING_WORD, attention.GROUPING_SPAN)
    with stub(bundled_server) as service:
        for grouping, has_slices in itertools.product(groupings, (False, True)):
            made = subtracted(message(SOURCE, grouping))
            made.capture.encoding = attention.ENCODING_UINT8
            if has_slices:
                made.capture.units.source_slices.add(begin=0, end=1)
            assert ask(service, made).error == (3, "CONTRADICTION", "capture.encoding")
