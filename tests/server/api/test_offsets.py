"""A request gets its offsets in the unit that it asks for, in every event of its stream."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import request, serving, stub
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

SOURCE = "😀 the lazy 漢字 👩‍👩‍👧 e\u0301 𠀋 مرحبا dog"
TARGET = "der 🤖🏽 Hund é 日本 😀"
UNITS = {
    text.OFFSET_UNIT_UNSPECIFIED: ("utf-32-le", 4),
    text.OFFSET_UNIT_CODE_POINT: ("utf-32-le", 4),
    text.OFFSET_UNIT_UTF16: ("utf-16-le", 2),
    text.OFFSET_UNIT_UTF8: ("utf-8", 1),
}


@pytest.fixture(scope="module")
def address(zoo, bundled) -> Iterator[str]:
    with serving(bundled, zoo("bart"), zoo("llama")) as address:
        yield address


def answer(address: str, message: pb.AttributeRequest, unit: int) -> tuple[pb.Started, list[pb.Step], pb.Finished]:
    message.offset_unit = unit
    with stub(address) as service:
        events = list(service.Attribute(message, timeout=60))
    steps = [step for event in events for step in event.steps.steps]
    return events[0].started, steps, events[-1].finished


def check_offsets(tokens, known, whole: str, unit: int) -> None:
    """`known` are the same tokens with offsets in code points."""
    encoding, size = UNITS[unit]
    code = whole.encode(encoding)
    for token, same in zip(tokens, known, strict=True):
        assert code[: token.begin * size].decode(encoding) == whole[: same.begin]
        expected = whole[same.begin : same.end]
        if "\ufffd" not in expected:  # else its bytes were sent before it was known that they are no character
            assert code[token.begin * size : token.end * size].decode(encoding) == expected


@pytest.mark.parametrize("model", ["", "bart", "llama"])
@pytest.mark.parametrize("target", ["given", "given_ids", "prefix", "prefix_ids", "resume"])
def test_offsets_cut_the_same_substrings_in_every_unit(address, model, target):
    message = request(SOURCE, model=model)
    message.capture.none = True
    if target == "given":
        message.given.text = TARGET
    else:
        message.decoding.max_new_tokens = 6
        message.decoding.ignore_eos = True
    if target == "prefix":
        message.prefix.text = TARGET
    if target in ("given_ids", "prefix_ids"):
        given = request("the", model=model, given=text.Text(text=TARGET))
        ids = [step.token.id for step in answer(address, given, 0)[1] if not step.token.special]
        (message.given if target == "given_ids" else message.prefix).token_ids.ids.extend(ids)
    if target == "resume":
        message.prefix.text, message.resume_at = TARGET, 3
    answers = {unit: answer(address, message, unit) for unit in UNITS}
    started, steps, finished = answers[text.OFFSET_UNIT_CODE_POINT]
    assert "😀" in started.source_text
    for unit, (header, sent, end) in answers.items():
        assert header.offset_unit == (unit or text.OFFSET_UNIT_CODE_POINT)
        assert end.text == finished.text
        check_offsets(header.source, started.source, header.source_text, unit)
        check_offsets(header.prefix, started.prefix, end.text, unit)
        check_offsets([step.token for step in sent], [step.token for step in steps], end.text, unit)
        assert [(step.text, step.token.text) for step in sent] == [(step.text, step.token.text) for step in steps]
    assert all(token.text == started.source_text[token.begin : token.end] for token in started.source)
    if target == "given":
        assert answers[text.OFFSET_UNIT_UTF8][1][-1].token.end == len(TARGET.encode())
        assert answers[text.OFFSET_UNIT_UTF16][1][-1].token.end == len(TARGET.encode("utf-16-le")) // 2
