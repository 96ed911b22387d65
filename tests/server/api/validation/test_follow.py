"""What a follow stream refuses, by the path of the field, and how texts become tokens."""

from __future__ import annotations

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
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2

SENTENCE = "Where did you buy that old book?"

SOURCE = event(source=text(SENTENCE))
DONE = event(source_done=pb.SourceDone())
DECODING = text_pb2.Decoding()
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
        ([start(), event()], "", "REQUIRED"),
        ([start(), event(target=text("Wo"))], "target", "OUT_OF_ORDER"),
        ([start(), event(source=text(" ")), event(target=text("Wo"))], "target", "OUT_OF_ORDER"),
        ([start(), event(take_back=1)], "take_back", "OUT_OF_ORDER"),
        ([start(), event(flush=pb.Flush())], "flush", "OUT_OF_ORDER"),
        ([start(), DONE], "source_done", "OUT_OF_ORDER"),
        ([start(), event(source=text(""))], "source.text", "EMPTY"),
        ([start(), SOURCE, event(source=token_ids(5))], "source.token_ids", "CONTRADICTION"),
        ([start(), event(source=token_ids(5, 0)), SOURCE], "source.text", "CONTRADICTION"),
        ([start(), event(source=token_ids(99999))], "source.token_ids.ids[0]", "TOKEN_OUT_OF_RANGE"),
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
        ([start(capture=attention.Capture(kinds=[9])), SOURCE], "start.capture.kinds[0]", "UNKNOWN_VALUE"),
        ([start(scores=[99]), SOURCE], "start.scores[0]", "UNKNOWN_VALUE"),
        ([start(source_language="xx"), SOURCE], "start.source_language", "UNKNOWN_LANGUAGE"),
        ([start(request_id="x" * 200), SOURCE], "start.request_id", "MALFORMED"),
        ([start(prefix=text("")), SOURCE], "start.prefix.text", "EMPTY"),
        ([start(decoding=DECODING), SOURCE], "start.policy", "REQUIRED"),
        ([start(policy=pb.Policy()), SOURCE], "start.policy.align_att", "REQUIRED"),
        ([start(policy=align_att()), SOURCE], "start.policy.align_att.tokens", "REQUIRED"),
        ([start(policy=align_att(tokens=0)), SOURCE], "start.policy.align_att.tokens", "OUT_OF_RANGE"),
        ([start(policy=align_att(words=0)), SOURCE], "start.policy.align_att.words", "OUT_OF_RANGE"),
        (
            [start(policy=align_att(words=1, heads=attention.HeadSelection(layers={"layers": [9]}))), SOURCE],
            "start.policy.align_att.heads.layers.layers[0]",
            "LAYER_OUT_OF_RANGE",
        ),
        ([start(policy=align_att(words=1, row=9)), SOURCE], "start.policy.align_att.row", "UNKNOWN_VALUE"),
        (
            [start(policy=align_att(words=1), decoding=text_pb2.Decoding(beam=text_pb2.Beam(width=4))), SOURCE],
            "start.decoding.beam",
            "CONTRADICTION",
        ),
        (
            [start(policy=align_att(words=1), decoding=text_pb2.Decoding(sampling=text_pb2.Sampling())), SOURCE],
            "start.decoding.sampling",
            "CONTRADICTION",
        ),
        (
            [start(policy=align_att(words=1), decoding=text_pb2.Decoding(max_new_tokens=999)), SOURCE],
            "start.decoding.max_new_tokens",
            "OUT_OF_RANGE",
        ),
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
        (
            [start(capture=attention.Capture(grouping=attention.GROUPING_WORD)), SOURCE],
            "start.capture.grouping",
            "CONTRADICTION",
        ),
    ],
)
def test_what_is_refused(service, events, field, reason):
    with pytest.raises(grpc.RpcError) as raised:
        list(service.Follow(iter(events), timeout=60))
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
