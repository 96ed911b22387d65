"""Pairs are linked over a real socket: given and decoded targets, links of the client, markup, offsets, errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from harness import CROSS, request, serving, stub, wait_until
from hostile_clients import long_request
from sidelight.server.api import rpcs
from sidelight.server.engine.engine import Engine, EngineConfig
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

SOURCE, TARGET = "I don't want to be your friend.", "Ich will nicht dein Freund sein."
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def pair(source: str, target: str | None = None, **fields) -> pb.AlignRequest:
    message = pb.AlignRequest(source=text.Text(text=source), **fields)
    if target is not None:
        message.target.text = target
    return message


def align(address: str, message: pb.AlignRequest) -> pb.AlignResponse:
    with stub(address) as service:
        return service.Align(message, timeout=60)


def without_times(response: pb.AlignResponse) -> pb.AlignResponse:
    for name in ("queue_time", "time_to_first_step", "total_time"):
        response.usage.ClearField(name)
    return response


def words(spans) -> list[str]:
    return [span.text for span in spans]


def test_a_given_target_and_the_same_target_decoded_have_the_same_links(bundled_server):
    given, decoded = align(bundled_server, pair(SOURCE, TARGET)), align(bundled_server, pair(SOURCE))
    assert words(given.source) == ["I", "don't", "want", "to", "be", "your", "friend", "."]
    assert words(given.target) == ["Ich", "will", "nicht", "dein", "Freund", "sein", "."]
    assert given.pharaoh == decoded.pharaoh == "0-0 2-1 1-2 5-3 6-4 4-5 7-6"
    assert [(link.source, link.target) for link in given.links] == [
        tuple(map(int, link.split("-"))) for link in given.pharaoh.split()
    ]
    assert all(0 < link.score <= 1 for link in given.links)
    assert given.target_text == decoded.target_text == TARGET
    assert given.model == "tatoeba-en-de"
    assert given.head_source == pb.HEAD_SOURCE_CALIBRATION
    assert (given.usage.source_tokens, given.usage.target_tokens) == (11, 8)
    assert not given.marked_target_text


@pytest.fixture(scope="module")
def plain_server(bundled) -> Iterator[str]:
    """The bundled model without its calibration."""
    with serving(dataclasses.replace(bundled, alignment=None)) as address:
        yield address


def test_a_model_without_a_calibration_says_that_its_heads_are_a_default(plain_server):
    response = align(plain_server, pair(SOURCE, TARGET))
    assert response.pharaoh == "0-0 2-1 1-2 5-3 6-4 4-5 7-6"
    assert response.head_source == pb.HEAD_SOURCE_DEFAULT
    preset = attention.HeadSelection(preset="alignment")
    with pytest.raises(grpc.RpcError) as raised:
        align(plain_server, pair("a", heads=preset))
    assert raised.value.details().startswith("heads.preset: ")
    lexicon = pb.LinkOptions(features=[pb.LINK_FEATURE_LEXICON])
    with pytest.raises(grpc.RpcError) as raised:
        align(plain_server, pair("a", link_options=lexicon))
    assert raised.value.details().startswith("link_options.features[0]: ")


def test_the_rows_are_those_that_attribute_sends(plain_server):
    """The links of one head by argmax of tokens are the argmax of the rows of that head."""
    heads = attention.HeadSelection(list=attention.HeadList(heads=[attention.Head(layer=2, head=1)]))
    options = pb.LinkOptions(method=pb.LINK_METHOD_ARGMAX, features=[pb.LINK_FEATURE_ATTENTION])
    linked = align(
        plain_server,
        pair(SOURCE, TARGET, heads=heads, grouping=attention.GROUPING_TOKEN, link_options=options),
    )
    assert linked.head_source == pb.HEAD_SOURCE_REQUEST
    message = request(SOURCE, [CROSS], given=text.Text(text=TARGET))
    message.capture.heads.CopyFrom(heads)
    message.capture.special_tokens = attention.SPECIAL_TOKENS_RENORMALIZE
    with stub(plain_server) as service:
        events = list(service.Attribute(message, timeout=60))
    source = [token for token in events[0].started.source if not token.special]
    steps = [step for event in events for step in event.steps.steps if not step.token.special]
    expected = []
    for number, step in enumerate(steps):
        row = memoryview(step.cross.values).cast("f")
        best = max(range(len(source)), key=lambda index: row[index])
        expected.append((best, number, pytest.approx(row[best], abs=1e-6)))
    assert [(link.source, link.target, link.score) for link in linked.links] == expected


def test_links_of_the_client_carry_markup_and_run_no_model(bundled, monkeypatch):
    with serving(bundled) as address:
        monkeypatch.setattr(rpcs.AnswerStarter, "start", None)
        response = align(
            address,
            pair(
                "A <b>red</b> car",
                "Ein rotes Auto",
                links="0-0 1-1 2-2",
                markup=pb.Markup(format=pb.MARKUP_FORMAT_HTML),
            ),
        )
    assert response.marked_target_text == "Ein <b>rotes</b> Auto"
    assert (response.model, response.head_source, response.HasField("usage")) == ("", 0, False)
    assert [link.score for link in response.links] == [1, 1, 1]
    (report,) = response.markup_report
    assert (report.markup, report.source.begin, report.source.end) == ("<b>", 2, 5)
    assert (report.target.begin, report.target.end, report.placement) == (4, 9, pb.PLACEMENT_LINKS)


@pytest.mark.parametrize(
    ("unit", "begin", "end"),
    [(text.OFFSET_UNIT_CODE_POINT, 4, 9), (text.OFFSET_UNIT_UTF16, 5, 10), (text.OFFSET_UNIT_UTF8, 7, 13)],
)
def test_offsets_count_in_the_unit_of_the_client(bundled_server, unit, begin, end):
    source, target = "😀 a dog, blüht", "😀 - blüht"
    shift = {text.OFFSET_UNIT_CODE_POINT: (9, 14), text.OFFSET_UNIT_UTF16: (10, 15), text.OFFSET_UNIT_UTF8: (12, 18)}
    mark = pb.MarkupSpan(id="x", begin=shift[unit][0], end=shift[unit][1])
    message = pair(source, target, links="4-2", offset_unit=unit, markup=pb.Markup(spans=[mark]))
    response = align(bundled_server, message)
    assert [(span.id, span.begin, span.end) for span in response.markup] == [("x", begin, end)]
    assert (response.target[2].begin, response.target[2].end, response.target[2].text) == (begin, end, "blüht")
    assert response.offset_unit == unit


def test_the_segments_of_a_document_are_translated_one_by_one(bundled_server):
    source = "<p>I bought a <b>big</b> house.</p>" + "<p>Where is the dog?</p>" * 40 + "<hr>"
    response = align(bundled_server, pair(source, markup=pb.Markup(format=pb.MARKUP_FORMAT_HTML)))
    assert response.marked_target_text == (
        "<p>Ich habe ein <b>großes</b> Haus gekauft.</p>" + "<p>Wo ist der Hund?</p>" * 40 + "<hr>"
    )
    assert len(response.target) == 7 + 5 * 40
    single = align(bundled_server, pair("Where is the dog?"))
    assert response.usage.source_tokens > 40 * single.usage.source_tokens
    offset = {side: len(getattr(response, side)) - 5 for side in ("source", "target")}
    assert [(link.source - offset["source"], link.target - offset["target"]) for link in response.links][-5:] == [
        (link.source, link.target) for link in single.links
    ]


def test_the_signals_of_a_document_are_means_weighted_by_target_tokens(bundled_server):
    html = pb.Markup(format=pb.MARKUP_FORMAT_HTML)
    texts = ["I bought a big house.", "Where is the dog?"]
    alone = [align(bundled_server, pair(text, signals=True)) for text in texts]
    whole = align(bundled_server, pair("<hr>".join(f"<p>{text}</p>" for text in texts), markup=html, signals=True))
    weights = [response.usage.target_tokens for response in alone]
    for field in pb.Signals.DESCRIPTOR.fields:
        values = [getattr(response.signals, field.name) for response in alone]
        assert getattr(whole.signals, field.name) == pytest.approx(np.average(values, weights=weights), abs=1e-5)
    empty = align(bundled_server, pair("<hr>", markup=html, signals=True))
    assert empty.HasField("signals")
    assert not empty.signals.ListFields()
    assert not align(bundled_server, pair("a")).HasField("signals")


def test_a_document_without_words_needs_no_model(bundled_server):
    response = align(bundled_server, pair("<br><!-- x -->", markup=pb.Markup(format=pb.MARKUP_FORMAT_HTML)))
    assert response.marked_target_text == "<br><!-- x -->"
    assert not response.HasField("usage")


@pytest.mark.parametrize("blank", ["\u200b", "\u2581", "\u200b \u2581"])
def test_a_document_without_tokens_keeps_its_tags(bundled_server, blank):
    html = pb.Markup(format=pb.MARKUP_FORMAT_HTML)
    response = align(bundled_server, pair(f"<p><b>{blank}</b></p>", TARGET, markup=html))
    assert response.target_text == TARGET
    assert response.marked_target_text == f"<p><b>{TARGET}</b></p>"
    assert align(bundled_server, pair(f"<p><b>{blank}</b></p>", markup=html)).marked_target_text.startswith("<p><b>")
    with pytest.raises(grpc.RpcError) as raised:
        align(bundled_server, pair("<p><b>a</b></p>", blank, markup=html))
    assert raised.value.details().startswith("target.text: ")


def test_an_error_names_only_fields_that_the_request_has(bundled_server):
    for message in (pair("a " * 300), pair("a", "a " * 300)):
        with pytest.raises(grpc.RpcError) as raised:
            align(bundled_server, message)
        assert "truncate" not in raised.value.details()


def test_pretokenized_words_are_what_white_space_separates(bundled_server):
    response = align(bundled_server, pair("I do n't know .", "Ich weiß es nicht .", pretokenized=True))
    assert words(response.source) == ["I", "do", "n't", "know", "."]
    assert words(response.target) == ["Ich", "weiß", "es", "nicht", "."]
    assert {"0-0", "3-1", "4-4"} <= set(response.pharaoh.split())


def test_links_of_two_directions_are_joined(bundled):
    """With the same model for both directions, the intersection is in each direction, and each in the union."""
    reverse = dataclasses.replace(bundled, name="reverse")
    found = {}
    with serving(bundled, reverse) as address:
        for name in ("INTERSECTION", "UNION", "GROW_DIAG_FINAL_AND"):
            options = pb.LinkOptions(
                reverse_model="reverse", symmetrization=pb.Symmetrization.Value(f"SYMMETRIZATION_{name}")
            )
            found[name] = set(align(address, pair(SOURCE, TARGET, link_options=options)).pharaoh.split())
        forward = set(align(address, pair(SOURCE, TARGET)).pharaoh.split())
        options = pb.LinkOptions(reverse_model="reverse")
        decoded = set(align(address, pair(SOURCE, link_options=options)).pharaoh.split())
        backward = {
            "-".join(reversed(link.split("-"))) for link in align(address, pair(TARGET, SOURCE)).pharaoh.split()
        }
    assert found["INTERSECTION"] == forward & backward
    assert found["UNION"] == forward | backward
    assert found["INTERSECTION"] <= found["GROW_DIAG_FINAL_AND"] <= found["UNION"]
    assert decoded == found["GROW_DIAG_FINAL_AND"]


def test_min_score_leaves_weak_links_out(bundled_server):
    scores = sorted(link.score for link in align(bundled_server, pair(SOURCE, TARGET)).links)
    response = align(bundled_server, pair(SOURCE, TARGET, min_score=scores[2]))
    assert sorted(link.score for link in response.links) == scores[2:]


def heads(*pairs) -> attention.HeadSelection:
    return attention.HeadSelection(list=attention.HeadList(heads=[attention.Head(layer=a, head=b) for a, b in pairs]))


BAD = [
    (pb.AlignRequest(), "source", INVALID),
    (pb.AlignRequest(source=text.Text(token_ids=text.TokenIds(ids=[5]))), "source.token_ids", INVALID),
    (pair(""), "source.text", INVALID),
    (pair(" \n"), "source.text", INVALID),
    (pair("dog " * 400), "source.text", INVALID),
    (pair("d" * 1024**2 + "dd", "x", links="0-0"), "source.text", INVALID),
    (pair("a", ""), "target.text", INVALID),
    (pair("a", " "), "target.text", INVALID),
    (pair("a", "dog " * 400), "target.text", INVALID),
    (pair("a", "b", decoding=text.Decoding()), "decoding", INVALID),
    (pair("a", decoding=text.Decoding(beam=text.Beam(width=2))), "decoding.beam", INVALID),
    (pair("a", decoding=text.Decoding(max_new_tokens=9999)), "decoding.max_new_tokens", INVALID),
    (pair("a", heads=heads((9, 0))), "heads.list.heads[0].layer", INVALID),
    (pair("a", heads=attention.HeadSelection()), "heads", INVALID),
    (pair("a", row=7), "row", INVALID),
    (pair("a", grouping=attention.GROUPING_SENTENCE), "grouping", INVALID),
    (pair("a", "b", grouping=attention.GROUPING_TOKEN, links="0-0"), "grouping", INVALID),
    (pair("a", grouping=attention.GROUPING_TOKEN, pretokenized=True), "grouping", INVALID),
    (pair("a", min_score=1.5), "min_score", INVALID),
    (pair("a", offset_unit=9), "offset_unit", INVALID),
    (pair("a", links="0-0"), "target", INVALID),
    (pair("a", "b", links="0-0 0:1"), "links", INVALID),
    (pair("a", "b", links="1-0"), "links", INVALID),
    (pair("a", "b", links="0-0", model="tatoeba-en-de"), "model", INVALID),
    (pair("a", "b", links="0-0", heads=heads((0, 0))), "heads", INVALID),
    (pair("a", link_options=pb.LinkOptions(method=9)), "link_options.method", INVALID),
    (pair("a", link_options=pb.LinkOptions(features=[1, 1])), "link_options.features[1]", INVALID),
    (pair("a", link_options=pb.LinkOptions(symmetrization=2)), "link_options.symmetrization", INVALID),
    (
        pair("a", link_options=pb.LinkOptions(reverse_model="x")),
        "link_options.reverse_model",
        grpc.StatusCode.NOT_FOUND,
    ),
    (pair("a", model="x"), "model", grpc.StatusCode.NOT_FOUND),
    (pair("a", markup=pb.Markup(format=9)), "markup.format", INVALID),
    (pair("a", markup=pb.Markup(spans=[pb.MarkupSpan(begin=0, end=2)])), "markup.spans[0].end", INVALID),
    (pair("a", markup=pb.Markup(spans=[pb.MarkupSpan(begin=1, end=0)])), "markup.spans[0].end", INVALID),
    (pair("a", markup=pb.Markup(spans=[pb.MarkupSpan()] * 10_001)), "markup.spans", INVALID),
    (pair("a", markup=pb.Markup(spans=[pb.MarkupSpan()], format=2)), "markup.spans", INVALID),
    (pair("a", "b", markup=pb.Markup(format=2, split_sentences=True)), "markup.split_sentences", INVALID),
    (pair("<a>b", markup=pb.Markup(format=pb.MARKUP_FORMAT_XML)), "source.text", INVALID),
    (pair("<p>a</p>" * 1001, markup=pb.Markup(format=2)), "source.text", INVALID),
    (pair("a", request_id="x" * 129), "request_id", INVALID),
    (pair("a", "b", links="0-0", signals=True), "signals", INVALID),
]


@pytest.mark.parametrize(("message", "field", "code"), BAD)
def test_a_wrong_request_names_its_field(bundled_server, message, field, code):
    with pytest.raises(grpc.RpcError) as raised:
        align(bundled_server, message)
    assert raised.value.code() == code
    bad, status = error_details_pb2.BadRequest(), rpc_status.from_call(raised.value)
    assert status is not None
    assert any(detail.Unpack(bad) for detail in status.details)
    assert bad.field_violations[0].field == field


def test_a_stream_of_pairs_answers_each_as_a_call_of_its_own(bundled_server):
    messages = [
        pair(SOURCE, TARGET),
        pair(SOURCE),
        pair("<i>I</i> am tired.", markup=pb.Markup(format=2)),
        pair("a b", "b a", links="0-1"),
    ] * 8
    sent = []
    for number, message in enumerate(messages):
        sent.append(pb.AlignRequest())
        sent[-1].CopyFrom(message)
        sent[-1].request_id = str(number)
    with stub(bundled_server) as service:
        alone = [without_times(service.Align(message, timeout=60)) for message in sent]
        extra = [
            pb.AttributeManyRequest(attribute=request("A dog.", request_id="text")),
            pb.AttributeManyRequest(align=pair("a", "b", links="7-7", request_id="wrong")),
            pb.AttributeManyRequest(align=pair("a", request_id="late"), timeout=Duration(nanos=1)),
            pb.AttributeManyRequest(align=pair("a")),
        ]
        stream = service.AttributeMany(
            iter([*extra, *(pb.AttributeManyRequest(align=message) for message in sent)]), timeout=60
        )
        events = [event for response in stream for event in (response.batch.responses or [response])]
    found = {event.request_id: without_times(event.alignment) for event in events if event.HasField("alignment")}
    assert found == {response.request_id: response for response in alone}
    errors = {event.request_id: event.error for event in events if event.HasField("error")}
    assert {name: (error.field, error.reason) for name, error in errors.items()} == {
        "wrong": ("align.links", "MALFORMED"),
        "late": ("", "DEADLINE_EXCEEDED"),
        "": ("align.request_id", "REQUIRED"),
    }
    assert [event for event in events if event.request_id == "text"][-1].response.HasField("finished")


def test_a_document_goes_on_where_the_queue_is_full(bundled):
    document = pair("<p>A dog.</p>" * 60, markup=pb.Markup(format=pb.MARKUP_FORMAT_HTML), signals=True)
    options = pb.LinkOptions(reverse_model="reverse")
    both_ways = pair("<p>A dog.</p>" * 60, markup=document.markup, link_options=options, model=bundled.name)
    models = bundled, dataclasses.replace(bundled, name="reverse")
    with serving(*models, limits=EngineConfig(max_running=1, max_waiting=4)) as address:
        for message in (document, both_ways):
            assert align(address, message).marked_target_text == "<p>Ein Hund.</p>" * 60


def test_a_pair_of_a_stream_is_cancelled_and_its_id_is_free_again(bundled_server):
    slow = pair("The dog. " * 20, request_id="x", decoding=text.Decoding(ignore_eos=True, max_new_tokens=200))
    with stub(bundled_server) as service:
        stream = service.AttributeMany(
            iter(
                [
                    pb.AttributeManyRequest(align=slow),
                    pb.AttributeManyRequest(align=slow),
                    pb.AttributeManyRequest(cancel="x"),
                    pb.AttributeManyRequest(align=pair("A dog.", request_id="x")),
                ]
            ),
            timeout=60,
        )
        events = [event for response in stream for event in (response.batch.responses or [response])]
    assert [event.error.reason for event in events] == ["DUPLICATE", "CANCELLED", ""]
    assert events[-1].alignment.target_text == "Ein Hund."


def test_a_call_is_cancelled_by_its_id(bundled_server, monkeypatch):
    states = []
    submit = Engine.submit

    def noting(*arguments):
        states.append(submit(*arguments))
        return states[-1]

    monkeypatch.setattr(Engine, "submit", noting)
    document = pair(
        "<p>The dog.</p>" * 100,
        request_id="document",
        markup=pb.Markup(format=2),
        decoding=text.Decoding(ignore_eos=True, max_new_tokens=200),
    )
    with stub(bundled_server) as service, stub(bundled_server) as other:
        call = service.Align.future(document, timeout=60)
        wait_until(lambda: len(states) >= 5)
        assert other.CancelAttribution(pb.CancelAttributionRequest(request_id="document"), timeout=60).cancelled == 1
        assert call.exception().code() == grpc.StatusCode.CANCELLED
    assert len(states) < 100
    wait_until(lambda: all(state.queue.is_cancelled for state in states))


def test_a_deadline_ends_a_document(bundled_server):
    document = pair(
        "<p>The dog.</p>" * 200,
        markup=pb.Markup(format=2),
        decoding=text.Decoding(ignore_eos=True, max_new_tokens=200),
    )
    with stub(bundled_server) as service:
        with pytest.raises(grpc.RpcError) as raised:
            service.Align(document, timeout=0.2)
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        running = service.Attribute(long_request(), timeout=60)
        next(running)
        assert service.Align(pair("A dog."), timeout=5).target_text == "Ein Hund."
        running.cancel()
