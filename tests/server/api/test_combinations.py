"""Requests drawn across the whole contract: each way of asking gives the same answer, or the same error with its field.

A request ends with OK, or with a status that says which field is wrong. No request fails the server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import pytest
from answers import (
    Answer,
    ask,
    ask_many,
    assert_equal,
    check,
    events_from,
    without_offsets,
    without_rows,
    without_texts,
)
from drawn_requests import RequestDrawer
from google.protobuf import text_format
from google.protobuf.message import Message
from harness import request as request_of
from harness import serving, stub
from model_zoo import build_model
from request_forms import (
    CODES,
    copy_of,
    in_code_points,
    paths_of,
    paths_of_contract,
    with_target,
    without_attention,
)
from sidelight.server.models.loader import load
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2
from speech_zoo import build_whisper

# What a request can be refused with: its own fault, or more than the server does.
REFUSALS = {3, 5, 8, 12}
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
# With and without an encoder, and of recordings: how many requests the quick tests draw.
MODELS = {"tatoeba-en-de": 12, "llama": 10, "whisper": 10}
# With language codes, with whole matrices, with offsets from another kind of tokenizer, with grouped heads.
FURTHER = ("nllb", "fsmt", "t5", "qwen3")
# Requests that failed, in the text format of protobuf.
FAILED_ONCE = {
    "units after all steps that a resumed request leaves out, in UTF-8": """
        source { text: "The 😀 woman is 100 years old." } offset_unit: OFFSET_UNIT_UTF8
        decoding { max_new_tokens: 9 ignore_eos: true } capture { grouping: GROUPING_SENTENCE }""",
    "the same with a beam search": """
        source { text: "The 😀 woman is 100 years old." } offset_unit: OFFSET_UNIT_UTF8
        decoding { max_new_tokens: 9 ignore_eos: true beam { width: 3 } } capture { grouping: GROUPING_WORD }""",
    "a beam search that computes the encoder's rows alone, without special tokens": """
        source { text: "A dog." } decoding { max_new_tokens: 4 beam { width: 2 } } scores: SCORE_PROBABILITY
        capture {
            kinds: ATTENTION_KIND_CROSS kinds: ATTENTION_KIND_ENCODER_SELF special_tokens: SPECIAL_TOKENS_RENORMALIZE
        }""",
    "shares of special tokens in a difference": """
        source { text: "A dog." } given { text: "Ein Hund." }
        contrast { source { text: "A cat." } subtract_attention: true }
        capture { special_tokens: SPECIAL_TOKENS_RENORMALIZE grouping: GROUPING_WORD }""",
}


@pytest.fixture(scope="module")
def service(bundled, tmp_path_factory) -> Iterator[services.AttributionServiceStub]:
    folder = tmp_path_factory.mktemp("models")
    llama = load(build_model("llama", folder))
    llama.tokenizer._tokenizer.chat_template = CHAT
    with serving(bundled, llama, load(build_whisper(folder))) as address, stub(address) as service:
        yield service


@pytest.fixture(scope="module")
def further_service(zoo) -> Iterator[services.AttributionServiceStub]:
    with serving(*map(zoo, FURTHER)) as address, stub(address) as service:
        yield service


def drawer(service: services.AttributionServiceStub, model: str, seed: int) -> RequestDrawer:
    return RequestDrawer(service.GetModel(pb.GetModelRequest(name=model)).model, seed)


def answers_of(service: services.AttributionServiceStub, messages: list[pb.AttributeRequest]) -> list[Answer]:
    """Asks by Attribute. Writes the seeds that the server has drawn into the messages."""
    answers: list[Answer] = []
    for message in messages:
        answer = ask(service, message)
        if not answer.code and answer.started.HasField("seed"):
            message.decoding.sampling.seed = answer.started.seed
        answers.append(answer)
    return answers


def check_all(service: services.AttributionServiceStub, messages: list[pb.AttributeRequest]) -> Counter[str]:
    """Checks requests in all ways. Returns how often they ended in which way."""
    answers = answers_of(service, messages)
    others = [
        other
        for number, (message, answer) in enumerate(zip(messages, answers, strict=True))
        for other in other_ways(str(number), message, answer)
    ]
    received = ask_many(service, {other.name: other.message for other in others})
    for other in others:
        answer = received[other.name]
        assert answer.error == other.expected.error, (other, answer)
        assert_equal(other.select(answer.events), other.select(other.expected.events))
    return Counter(answer.reason for answer in answers)


class Other(NamedTuple):
    """A request that must give the same events as another one, as far as `select` selects them."""

    name: str
    message: pb.AttributeRequest
    expected: Answer
    select: Callable[[Sequence[Message]], Sequence[Message]] = list


def other_ways(name: str, message: pb.AttributeRequest, answer: Answer) -> Iterator[Other]:
    """Checks an answer. Yields the other ways to ask for it."""
    if answer.code:
        assert answer.code in REFUSALS, (message, answer)
        assert answer.field in answer.message, (message, answer)
        assert answer.field, (message, answer)
    else:
        check(message, answer)
    if answer.field != "request_id":
        yield Other(f"many {name}", message, answer)
    if answer.code:
        return
    count = len(answer.steps)
    for step in {count // 2, count} - {0} if not message.resume_at else ():
        resumed = copy_of(message)
        resumed.resume_at = step
        yield Other(f"resumed {name} {step}", resumed, Answer(events_from(answer, step)))
    if message.offset_unit > text_pb2.OFFSET_UNIT_CODE_POINT and message.source.WhichOneof("kind") != "chat":
        yield Other(f"code points {name}", in_code_points(message), answer, without_offsets)
    yield Other(f"tokens {name}", without_attention(message), answer, without_rows)
    # While Moses' text is written, a punctuation mark waits for the token behind it, and belongs to the word of that.
    has_other_units = message.model == "fsmt" and message.capture.grouping > attention.GROUPING_TOKEN
    is_alone = not (message.HasField("prefix") or message.resume_at or has_other_units)
    # A model of random numbers may write <pad>, which a given target must not have.
    is_padded = any(step.token.piece == "<pad>" for step in answer.steps)
    if message.WhichOneof("target") == "decoding" and is_alone and not is_padded:
        given = with_target(message, [step.token.id for step in answer.steps])
        yield Other(f"given {name}", given, answer, without_texts)


@pytest.mark.parametrize("model", MODELS)
def test_each_way_of_asking_gives_the_same_answer(service, model):
    draw = drawer(service, model, seed=1).draw
    ends = check_all(service, [draw() for _ in range(MODELS[model])])
    assert ends[""] > MODELS[model] / 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 5))
@pytest.mark.parametrize("model", [*MODELS, *FURTHER])
def test_each_way_of_asking_gives_the_same_answer_for_many_requests(request, model, seed):
    service = request.getfixturevalue("further_service" if model in FURTHER else "service")
    draw = drawer(service, model, seed).draw
    ends: Counter[str] = Counter()
    for _ in range(8):
        ends += check_all(service, [draw() for _ in range(16)])
    assert ends[""] > 128 / 4


def test_each_field_of_the_contract_is_drawn(service):
    """A new field of the contract must be drawn, too."""
    drawn: set[str] = set()
    for model in MODELS:
        draw = drawer(service, model, seed=0).draw
        for _ in range(1500):
            drawn |= paths_of(draw())
    assert paths_of_contract(pb.AttributeRequest.DESCRIPTOR) <= drawn


def test_an_offset_inside_a_character_or_behind_the_text_names_its_field(service):
    """For each field that takes an offset, in each unit, every place of a text."""
    whole = "a😀é𠀋"
    fields = [field.name for field in attention.UnitOptions.DESCRIPTOR.fields if field.message_type is not None]
    assert {"source_spans", "target_spans", "source_slices", "target_slices"} <= {*fields}
    messages: dict[str, pb.AttributeRequest] = {}
    wrong: dict[str, str] = {}
    for unit, (encoding, size) in CODES.items():
        places = {len(whole[:count].encode(encoding)) // size for count in range(len(whole) + 1)}
        for field, offset in product(fields, range(1, max(places) + 3)):
            for name, span in (("begin", (offset, max(places) + 3)), ("end", (0, offset))):
                message = request_of(whole, given=text_pb2.Text(text=whole), offset_unit=unit)
                message.capture.grouping = attention.GROUPING_SPAN
                message.capture.units.source_spans.add(begin=0, end=1)
                spans = getattr(message.capture.units, field)
                del spans[:]
                spans.add(begin=span[0], end=span[1])
                key = f"{unit} {field} {name} {offset}"
                messages[key] = message
                # A begin that is right is followed by an end behind the text.
                last = name if offset not in places else "end" if name == "begin" else ""
                wrong[key] = f"capture.units.{field}[0].{last}" if last else ""
    answers = ask_many(service, messages)
    assert {key: answer.field for key, answer in answers.items()} == wrong
    assert {answer.reason for answer in answers.values()} == {"", "OUT_OF_RANGE"}


@pytest.mark.parametrize("name", FAILED_ONCE)
def test_a_request_that_failed_once_is_answered_in_each_way(service, name):
    message = text_format.Parse(FAILED_ONCE[name], pb.AttributeRequest())
    assert check_all(service, [message]) == {"": 1}
