"""What a follow stream refuses, by the path of the field, and how texts become tokens."""

from __future__ import annotations

import queue
from typing import get_args

import grpc
import pytest
from follow_driver import (
    FollowDriver,
    align_att,
    details_of,
    event,
    start,
    text,
    token_ids,
)
from harness import stub
from sidelight.server.api.enums import SCORES, number_of
from sidelight.server.request import ContrastScore
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2

SENTENCE = "Where did you buy that old book?"

SOURCE = event(source=text(SENTENCE))
DONE = event(source_done=pb.SourceDone())
DECODING = text_pb2.Decoding()
PROBABILITY = attention.SCORE_PROBABILITY
CONTRAST_SCORES = [number_of(SCORES, score) for score in get_args(ContrastScore)]
PADDING = 6000  # of the bundled model
CHAT = text_pb2.Text(chat=text_pb2.Chat(messages=[text_pb2.ChatMessage(role="user", content="Hi")]))


@pytest.fixture
def service(bundled_server):
    with stub(bundled_server) as service:
        yield service


@pytest.mark.parametrize(
    ("events", "field", "reason"),
    [
        ([SOURCE], "start", "REQUIRED"),
        ([event()], "start", "REQUIRED"),
        ([start(), start()], "start", "OUT_OF_ORDER"),
        ([start(), SOURCE, start()], "start", "OUT_OF_ORDER"),
        ([start()], "source", "REQUIRED"),
        ([start(), event()], "event", "REQUIRED"),
        ([start(), event(target=text("Wo"))], "target", "OUT_OF_ORDER"),
        ([start(), event(source=text(" ")), event(target=text("Wo"))], "target", "OUT_OF_ORDER"),
        ([start(), event(take_back=1)], "take_back", "OUT_OF_ORDER"),
        ([start(), event(flush=pb.Flush())], "flush", "OUT_OF_ORDER"),
        ([start(), DONE], "source_done", "OUT_OF_ORDER"),
        ([start(), event(source=text(""))], "source.text", "EMPTY"),
        ([start(), SOURCE, event(source=token_ids(5))], "source.token_ids", "CONTRADICTION"),
        ([start(), event(source=token_ids(5, 0)), SOURCE], "source.text", "CONTRADICTION"),
        ([start(), event(source=token_ids(99999))], "source.token_ids.ids[0]", "TOKEN_OUT_OF_RANGE"),
        ([start(), event(source=token_ids())], "source.token_ids.ids", "EMPTY"),
        ([start(), event(source=token_ids(5, 6)), event(source=token_ids())], "source.token_ids.ids", "EMPTY"),
        (
            [start(), event(source=token_ids(5, 6)), event(source=token_ids(7, 99999))],
            "source.token_ids.ids[1]",
            "TOKEN_OUT_OF_RANGE",
        ),
        (
            [start(), event(source=token_ids(5, 6)), event(source=token_ids(PADDING))],
            "source.token_ids.ids[0]",
            "PADDING",
        ),
        (
            [start(), event(source=token_ids(*[5] * 200)), event(source=token_ids(*[5] * 200))],
            "source.token_ids.ids",
            "TEXT_TOO_LONG",
        ),
        ([start(), event(source=text_pb2.Text())], "source", "REQUIRED"),
        ([start(), event(source=CHAT)], "source.chat", "NO_CHAT_TEMPLATE"),
        ([start(), event(source=text("a" * 10**6))], "source.text", "TEXT_TOO_LONG"),
        ([start(), event(source=text(" " * 10**6))], "source.text", "TEXT_TOO_LONG"),
        ([start(), event(source=text("book " * 300))], "source.text", "TEXT_TOO_LONG"),
        ([start(), SOURCE, DONE, SOURCE], "source", "OUT_OF_ORDER"),
        ([start(), SOURCE, DONE, DONE], "source_done", "OUT_OF_ORDER"),
        ([start(), SOURCE, event(target=token_ids(5)), event(take_back=2)], "take_back", "OUT_OF_RANGE"),
        ([start(), SOURCE, event(target=text(""))], "target.text", "EMPTY"),
        ([start(), SOURCE, event(target=text_pb2.Text())], "target", "REQUIRED"),
        ([start(), SOURCE, event(target=CHAT)], "target", "REQUIRED"),
        ([start(), SOURCE, event(target=token_ids())], "target.token_ids.ids", "EMPTY"),
        ([start(), SOURCE, event(target=token_ids(5, 99999))], "target.token_ids.ids[1]", "TOKEN_OUT_OF_RANGE"),
        ([start(), SOURCE, event(target=token_ids(*[5] * 300))], "target.token_ids.ids", "TEXT_TOO_LONG"),
        ([start(), SOURCE, event(target=text("Buch " * 300))], "target.text", "TEXT_TOO_LONG"),
        (
            [start(policy=align_att(words=1), decoding=DECODING), SOURCE, event(take_back=0)],
            "take_back",
            "CONTRADICTION",
        ),
        (
            [start(policy=align_att(words=1), decoding=DECODING), SOURCE, event(target=text("Wo"))],
            "target",
            "CONTRADICTION",
        ),
    ],
)
def test_what_is_refused(service, events, field, reason):
    _expect_refusal(service.Follow(iter(events), timeout=60), field, reason)


@pytest.mark.parametrize(
    ("options", "field", "reason"),
    [
        ({"request_id": "x" * 200}, "request_id", "MALFORMED"),
        ({"source_language": "xx"}, "source_language", "UNKNOWN_LANGUAGE"),
        ({"target_language": "xx"}, "target_language", "UNKNOWN_LANGUAGE"),
        ({"offset_unit": 9}, "offset_unit", "UNKNOWN_VALUE"),
        ({"special_tokens_in_text": 9}, "special_tokens_in_text", "UNKNOWN_VALUE"),
        ({"scores": [99]}, "scores[0]", "UNKNOWN_VALUE"),
        ({"scores": [PROBABILITY, PROBABILITY]}, "scores[1]", "DUPLICATE"),
        ({"scores": [PROBABILITY], "score_top_p": 0.5}, "score_top_p", "CONTRADICTION"),
        ({"scores": [attention.SCORE_TOP_P_SIZE], "score_top_p": 2.0}, "score_top_p", "OUT_OF_RANGE"),
        ({"capture": attention.Capture(kinds=[9])}, "capture.kinds[0]", "UNKNOWN_VALUE"),
        ({"capture": attention.Capture(method=99)}, "capture.method", "UNKNOWN_VALUE"),
        ({"capture": attention.Capture(grouping=99)}, "capture.grouping", "UNKNOWN_VALUE"),
        ({"capture": attention.Capture(grouping=attention.GROUPING_WORD)}, "capture.grouping", "CONTRADICTION"),
        ({"capture": attention.Capture(units=attention.UnitOptions())}, "capture.units", "CONTRADICTION"),
        ({"prefix": text("")}, "prefix.text", "EMPTY"),
        ({"prefix": text_pb2.Text()}, "prefix", "REQUIRED"),
        ({"prefix": token_ids(5, 99999)}, "prefix.token_ids.ids[1]", "TOKEN_OUT_OF_RANGE"),
        ({"prefix": token_ids(5, PADDING)}, "prefix.token_ids.ids[1]", "PADDING"),
        ({"prefix": token_ids(*[5] * 255)}, "prefix", "TEXT_TOO_LONG"),
        ({"decoding": DECODING}, "policy", "REQUIRED"),
        ({"decoding": text_pb2.Decoding(beam=text_pb2.Beam(width=4))}, "decoding.beam", "CONTRADICTION"),
        ({"decoding": text_pb2.Decoding(sampling=text_pb2.Sampling())}, "decoding.sampling", "CONTRADICTION"),
        (
            {"policy": align_att(words=1), "decoding": text_pb2.Decoding(max_new_tokens=999)},
            "decoding.max_new_tokens",
            "OUT_OF_RANGE",
        ),
        ({"policy": align_att(words=1), "decoding": text_pb2.Decoding(stop=[""])}, "decoding.stop[0]", "EMPTY"),
        ({"policy": pb.Policy()}, "policy", "REQUIRED"),
        ({"policy": align_att()}, "policy.align_att", "REQUIRED"),
        ({"policy": align_att(tokens=0)}, "policy.align_att.tokens", "OUT_OF_RANGE"),
        ({"policy": align_att(words=0)}, "policy.align_att.words", "OUT_OF_RANGE"),
        ({"policy": align_att(words=1, row=9)}, "policy.align_att.row", "UNKNOWN_VALUE"),
        (
            {"policy": align_att(words=1, heads=attention.HeadSelection(layers={"layers": [9]}))},
            "policy.align_att.heads.layers.layers[0]",
            "LAYER_OUT_OF_RANGE",
        ),
        *(({"scores": [PROBABILITY, score]}, "scores[1]", "CONTRADICTION") for score in CONTRAST_SCORES),
    ],
)
def test_options_are_refused_before_there_is_a_source(service, options, field, reason):
    """The client sends nothing else, and does not close its side of the stream."""
    events: queue.Queue[pb.FollowRequest | None] = queue.Queue()
    events.put(start(**options))
    try:
        _expect_refusal(service.Follow(iter(events.get, None), timeout=60), f"start.{field}", reason)
    finally:
        events.put(None)


@pytest.mark.parametrize(
    "options",
    [
        {"special_tokens_in_text": text_pb2.SPECIAL_TOKENS_IN_TEXT_PARSE, "prefix": token_ids(5)},
        {"add_special_tokens": False},
    ],
)
def test_options_that_go_with_text_wait_for_the_source(service, options):
    driver = FollowDriver(service, capture=attention.Capture(none=True), **options)
    driver.add_source(SENTENCE)
    assert driver.finish()
    (field,) = {*options} - {"prefix"}
    events = [start(**options), event(source=token_ids(5, 0))]
    _expect_refusal(service.Follow(iter(events), timeout=60), f"start.{field}", "CONTRADICTION")


def _expect_refusal(call, field, reason):
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    error: grpc.Call = raised.value  # pyright: ignore[reportAssignmentType]
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error) == (field, reason)


# ---- texts ----------------------------------------------------------------------------------------------------------


def test_a_text_becomes_tokens_word_by_word(service):
    driver = FollowDriver(service, capture=attention.Capture(none=True))
    driver.add_source(SENTENCE)
    driver.send(target=text("Wo ha"))
    driver.send(target=text("st d"))
    driver._read(lambda: len(driver.ids) == 2)
    assert [step.token.piece for step in driver.steps] == ["▁Wo", "▁hast"]
    driver.take_back(1)  # with the "d" that waits
    driver.add_text(" has", "t du die", "ses")
    assert [step.token.piece for step in driver.steps[2:]] == ["▁hast", "▁du", "▁dieses"]
    driver.send(target=text(" alte"))  # complete when the stream ends
    assert driver.finish().text == "Wo hast du dieses alte"


def test_a_flush_inside_a_word_leaves_what_was_sent(service):
    driver = FollowDriver(service, capture=attention.Capture(none=True))
    driver.add_source(SENTENCE)
    driver.add_text("Groß")
    first = [*driver.ids]
    driver.add_text("mutter")
    assert driver.ids[: len(first)] == first
    assert driver.finish().text == "Großmutter"
