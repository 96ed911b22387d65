"""What the policy of a follow stream holds and commits, and what its steps carry."""

from __future__ import annotations

import numpy as np
import pytest
from follow_driver import (
    FollowDriver,
    align_att,
    array,
    assert_as_given,
    text,
    token_ids,
)
from harness import CROSS, ENCODER_SELF, request, steps_of, stub
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2

SENTENCE = "Where did you buy that old book?"

PIECES = ["Where", " did", " you", " buy", " that", " old", " book", "?"]
DECODING = text_pb2.Decoding()


@pytest.fixture
def service(bundled_server):
    with stub(bundled_server) as service:
        yield service


@pytest.mark.parametrize("method", [attention.METHOD_WEIGHTS, attention.METHOD_ROLLOUT])
def test_encoder_self_attention_comes_with_each_source(service, method):
    kinds = [CROSS, ENCODER_SELF]
    driver = FollowDriver(service, capture=attention.Capture(kinds=kinds, method=method))
    driver.add_source("Where did you")
    driver.add_text("Wo")
    driver.add_source(" buy that?")
    driver.add_text(" hast")
    driver.finish()
    assert_as_given(service, driver.stretches, capture=attention.Capture(kinds=[CROSS], method=method))
    for source, part in zip(["Where did you", "Where did you buy that?"], driver.encoder_self, strict=True):
        responses = list(
            service.Attribute(request(source, capture=attention.Capture(kinds=kinds, method=method)), timeout=60)
        )
        expected = next(r.encoder_self for r in responses if r.HasField("encoder_self"))
        np.testing.assert_allclose(array(part.attention), array(expected.attention), atol=1e-5)


_PRESET = attention.HeadSelection(preset="alignment")


def looks_at(service, source: str, ids: list[int], row) -> list[int]:
    """The source token that each token of a target looks at most, from the attention of a given target."""
    capture = attention.Capture(
        kinds=[CROSS],
        row=row,
        heads=_PRESET,
        over_heads=attention.REDUCTION_MEAN,
        special_tokens=attention.SPECIAL_TOKENS_KEEP,
    )
    message = pb.AttributeRequest(source=text(source), given=token_ids(*ids), capture=capture)
    responses = list(service.Attribute(message, timeout=60))
    special = [token.special for token in responses[0].started.source]
    rows = [array(step.cross) for step in steps_of(responses)]
    return [int(np.where(special, -1, row).argmax()) for row in rows]


@pytest.mark.parametrize("row", [attention.ROW_PREDICTING, attention.ROW_READING])
@pytest.mark.parametrize(
    "capture",
    [
        attention.Capture(row=attention.ROW_READING),
        attention.Capture(none=True),
        attention.Capture(method=attention.METHOD_ROLLOUT, special_tokens=attention.SPECIAL_TOKENS_RENORMALIZE),
    ],
)
def test_each_step_of_a_client_has_a_decision(service, row, capture):
    driver = FollowDriver(service, policy=align_att(words=2, row=row), capture=capture)
    driver.add_source("Where did you buy that old")
    target = ["Wo", " hast", " du", " dieses", " alte", " Buch", " gekauft?"]
    driver.add_text(*target)
    driver.add_ids(0)
    expected = looks_at(service, driver.source, driver.ids, row)
    decisions = [step.decision for step in driver.steps]
    assert [decision.source_token for decision in decisions] == expected
    held = [place >= 4 for place in expected[:-1]] + [True]  # the words "that old", and the end token
    assert [decision.decision == pb.DECISION_HOLD for decision in decisions] == held
    assert len(set(held)) == 2
    firm = [
        max([0, *(e + 1 for e, h in zip(expected[: n + 1], held, strict=False) if not h)]) for n in range(len(held))
    ]
    assert [decision.firm_source_tokens for decision in decisions] == firm
    driver.send(source_done=pb.SourceDone())
    driver.take_back(3)
    driver.add_text(" Buch gekauft?")
    assert all(step.decision.decision == pb.DECISION_COMMIT for step in driver.stretches[-1].steps)
    driver.finish()


@pytest.mark.covering(1)
@pytest.mark.parametrize("row", [attention.ROW_PREDICTING, attention.ROW_READING])
@pytest.mark.parametrize(
    ("held_back", "capture"),
    [
        ({"words": 1}, attention.Capture()),
        ({"tokens": 3}, attention.Capture(method=attention.METHOD_VALUE_NORMS, row=attention.ROW_READING)),
        (
            {"words": 1},
            attention.Capture(method=attention.METHOD_ROLLOUT, special_tokens=attention.SPECIAL_TOKENS_RENORMALIZE),
        ),
    ],
)
def test_a_server_writes_what_the_policy_allows(service, row, held_back, capture):
    driver = FollowDriver(service, policy=align_att(**held_back, row=row), decoding=DECODING, capture=capture)
    written: list[int] = []
    words: list[str] = []
    for number, piece in enumerate(PIECES):
        driver.add_source(piece)
        waiting = driver.wait_for_more()
        written += allowed(service, driver.source, written, row, **held_back)
        assert driver.ids == written
        assert waiting.step_count == len(written)
        words.append("".join(step.text for step in driver.steps))
        assert number < len(PIECES) - 1 or len(written) > 2
    finished = driver.finish()
    assert finished.stop_reason == text_pb2.STOP_REASON_END_TOKEN
    assert finished.text == "".join(step.text for step in driver.steps)
    assert all(finished.text.startswith(text) for text in words)
    assert all(step.decision.decision == pb.DECISION_COMMIT for step in driver.steps)
    assert driver.ids == [*written, *continued(service, driver.source, written)]
    assert_as_given(service, driver.stretches, capture=capture)


def continued(service, source: str, written: list[int]) -> list[int]:
    """The tokens that the model writes after some tokens."""
    message = request(source, prefix=token_ids(*written)) if written else request(source)
    return [step.token.id for step in steps_of(list(service.Attribute(message, timeout=60)))]


def allowed(service, source: str, written: list[int], row, *, words: int = 0, tokens: int = 0) -> list[int]:
    """The tokens that AlignAtt commits, from the attention of whole targets."""
    started = next(iter(service.Attribute(request(source), timeout=60))).started
    own = [index for index, token in enumerate(started.source) if not token.special]
    if words:
        begin = source.rindex(source.split()[-words]) if words <= len(source.split()) else 0
        first_held = min(index for index in own if started.source[index].end > begin)
    else:
        first_held = own[-tokens] if tokens <= len(own) else 0
    proposed = continued(service, source, written)
    expected = looks_at(service, source, [*written, *proposed], row)[len(written) :]
    count = next(
        n for n, (id_, place) in enumerate(zip(proposed, expected, strict=True)) if id_ == 0 or place >= first_held
    )
    return proposed[:count]


def test_a_target_that_is_complete_waits_for_the_source(service):
    driver = FollowDriver(service, policy=align_att(tokens=1), decoding=text_pb2.Decoding(stop=["hast"]))
    for piece in ("Where did you buy", " that old", " book?"):
        driver.add_source(piece)
        driver.wait_for_more()
    assert [step.text for step in driver.steps] == ["Wo", " hast"]
    finished = driver.finish()
    assert (finished.stop_reason, finished.text) == (text_pb2.STOP_REASON_STOP_TEXT, "Wo hast")


def test_the_end_token_that_the_greatest_length_forces_waits_too(service):
    driver = FollowDriver(service, policy=align_att(tokens=1), decoding=text_pb2.Decoding(max_new_tokens=2))
    for piece in ("Where did you buy", " that old", " book?"):
        driver.add_source(piece)
        assert driver.wait_for_more().step_count == 1
    assert driver.finish().text == "Wo"
    assert [step.token.special for step in driver.steps] == [False, True]


def test_offsets_count_in_the_unit_of_the_client(service):
    """Also after steps were taken back, and after the source has grown."""
    driver = FollowDriver(service, offset_unit=text_pb2.OFFSET_UNIT_UTF16)
    driver.add_source("Where 😀 did")
    driver.add_text("Groß 😀 hast")
    driver.take_back(1)
    driver.add_source(" you")
    driver.add_text(" Hund da")
    units = driver.finish().text.encode("utf-16-le")
    last = driver.steps[-1].token
    assert units[2 * last.begin : 2 * last.end].decode("utf-16-le") == last.text == "da"
    source = driver.started[-1].source[-2]
    assert "Where 😀 did you".encode("utf-16-le")[2 * source.begin : 2 * source.end].decode("utf-16-le") == "you"
