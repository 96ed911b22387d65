"""What the golden vectors ask for: one exchange for each form of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as service
from sidelight.v1 import text_pb2 as text

TEXT, TARGET = "That is an old book.", "Das ist ein altes Buch."
# A letter that takes two bytes, one that takes three, one beyond the 16 bits of a UTF-16 unit, and one with an accent
# of its own: offsets differ in each unit.
SCRIPTS = "Café 東京 🐈 is a\u0301n old book."
CROSS, DECODER_SELF, ENCODER_SELF = (
    attention.ATTENTION_KIND_CROSS,
    attention.ATTENTION_KIND_DECODER_SELF,
    attention.ATTENTION_KIND_ENCODER_SELF,
)
ALL = (CROSS, DECODER_SELF, ENCODER_SELF)
MEAN, MAX, SUM = attention.REDUCTION_MEAN, attention.REDUCTION_MAX, attention.REDUCTION_SUM
THREE = text.Decoding(max_new_tokens=3)
ENCODINGS = {"float32": attention.ENCODING_FLOAT32, "float16": attention.ENCODING_FLOAT16}
ENCODINGS["uint8"] = attention.ENCODING_UINT8
UNITS = {"code_point": text.OFFSET_UNIT_CODE_POINT, "utf16": text.OFFSET_UNIT_UTF16, "utf8": text.OFFSET_UNIT_UTF8}


class Plan(NamedTuple):
    """An exchange to record."""

    name: str
    method: str
    description: str
    requests: list[Any]
    steps_of_a_message: int = 1
    waits: tuple[str, ...] = ()  # the event that each request is answered with, for Follow; "": none


def plain(value: str) -> text.Text:
    """A text."""
    return text.Text(text=value)


def ids(*numbers: int) -> text.Text:
    """Token ids."""
    return text.Text(token_ids=text.TokenIds(ids=numbers))


def capture(*kinds: attention.AttentionKind.ValueType, **fields: Any) -> attention.Capture:
    """A capture of these kinds."""
    return attention.Capture(kinds=kinds, **fields)


def heads(*triples: tuple[int, int, float | None]) -> attention.HeadSelection:
    """Single heads, with weights."""
    listed = [attention.Head(layer=layer, head=head, weight=weight) for layer, head, weight in triples]
    return attention.HeadSelection(list=attention.HeadList(heads=listed))


def request(source: str = TEXT, **fields: Any) -> service.AttributeRequest:
    """A request with a source text, for three tokens where `fields` say nothing else."""
    if "decoding" not in fields and "given" not in fields:
        fields["decoding"] = THREE
    return service.AttributeRequest(request_id="golden", source=plain(source), **fields)


def plans() -> Iterator[Plan]:
    """All exchanges, in the order of the index."""
    for name, description, message in (*encodings(), *heads_and_rows(), *methods(), *units(), *targets()):
        yield Plan(name, "Attribute", description, [message])
    given = request(given=plain(TARGET), capture=capture(CROSS, over_heads=MEAN), scores=[1, 3])
    yield Plan("steps_together", "Attribute", "Several steps in one message.", [given], steps_of_a_message=4)
    for name, description, message in errors():
        yield Plan(name, "Attribute", description, [message])
    yield from many()
    yield from follow()
    yield from alignments()
    yield from others()


Requests = Iterator[tuple[str, str, service.AttributeRequest]]  # name, description, request


def encodings() -> Requests:
    """The types of numbers, with all positions and with the greatest."""
    for name, encoding in ENCODINGS.items():
        layer = attention.HeadSelection(layers=attention.LayerList(layers=[0, 2]))
        every = capture(*ALL, heads=layer, encoding=encoding)
        yield name, f"All kinds of attention in {name}: [positions, layers, heads].", request(capture=every)
        greatest = capture(*ALL, over_heads=MEAN, encoding=encoding, top_k=3)
        yield f"{name}_top_3", f"The 3 greatest positions of each row, in {name}.", request(capture=greatest)


def heads_and_rows() -> Requests:
    """Which heads, how they are reduced, which row, and which positions and steps."""
    yield "defaults", "A request without a capture: cross-attention of every layer and head.", request()
    yield (
        "no_attention",
        "Tokens and scores, without attention.",
        request(capture=attention.Capture(none=True), scores=range(1, 7), score_top_p=0.8),
    )
    yield (
        "vector",
        "Heads and layers are reduced: [positions].",
        request(capture=capture(*ALL, over_heads=MEAN, over_layers=MAX)),
    )
    pairs = heads((1, 0, 0.25), (0, 1, None), (2, 3, 2.0))
    apart = heads((1, 0, None), (0, 1, None), (2, 3, None))
    yield "pairs", "Single heads: [positions, pairs].", request(capture=capture(CROSS, heads=apart))
    yield (
        "weighted_mean",
        "The weighted mean of single heads: [positions].",
        request(capture=capture(CROSS, heads=pairs, over_heads=MEAN)),
    )
    preset = attention.HeadSelection(preset="alignment")
    yield (
        "preset",
        "The heads that align words, with the row and the special tokens of the preset.",
        request(capture=capture(CROSS, heads=preset, over_heads=MEAN)),
    )
    yield (
        "reading_row",
        "The row of the query that reads the token.",
        request(capture=capture(CROSS, DECODER_SELF, row=attention.ROW_READING, over_heads=MEAN)),
    )
    special = attention.SPECIAL_TOKENS_RENORMALIZE
    yield (
        "special_shares",
        "Special tokens are left out, and their shares are reported.",
        request(capture=capture(*ALL, special_tokens=special, over_heads=MEAN, encoding=attention.ENCODING_UINT8)),
    )
    yield (
        "some_steps",
        "Only step 1 carries attention.",
        request(capture=capture(CROSS, over_heads=MEAN, steps=attention.StepSpan(begin=1, end=2))),
    )


def methods() -> Requests:
    """What the numbers measure."""
    yield (
        "value_norms",
        "Norms of the value vectors, which are greater than 1.",
        request(capture=capture(CROSS, method=attention.METHOD_VALUE_NORMS, over_heads=SUM)),
    )
    yield (
        "rollout",
        "The attention rollout: [positions, layers].",
        request(capture=capture(CROSS, method=attention.METHOD_ROLLOUT)),
    )


def units() -> Requests:
    """Offsets in three units, and attention of words, sentences, spans and slices."""
    longer = text.Decoding(max_new_tokens=8)
    for name, unit in UNITS.items():
        words = capture(CROSS, DECODER_SELF, over_heads=MEAN, over_layers=MEAN, grouping=attention.GROUPING_WORD)
        yield (
            f"words_{name}",
            f"Attention of words; offsets count in {name}.",
            request(SCRIPTS, capture=words, decoding=longer, offset_unit=unit, scores=[1]),
        )
        yield (
            f"tokens_{name}",
            f"Links of words; offsets count in {name}.",
            request(
                SCRIPTS,
                capture=attention.Capture(none=True),
                decoding=longer,
                offset_unit=unit,
                link_options=service.LinkOptions(),
            ),
        )
    sentences = capture(CROSS, over_heads=MAX, over_layers=MAX, grouping=attention.GROUPING_SENTENCE)
    sentences.encoding = attention.ENCODING_UINT8
    yield (
        "sentences",
        "Attention of sentences, in bytes.",
        request("I see. You go.", given=plain("Ich sehe. Du gehst."), capture=sentences),
    )
    spans = [attention.TextSpan(begin=0, end=7), attention.TextSpan(begin=11, end=19)]
    options = attention.UnitOptions(source_spans=spans, source_slices=[spans[1]])
    options.target_spans.append(attention.TextSpan(begin=12, end=22))
    yield (
        "spans_and_slices",
        "Spans that the request gives, of which one is sent.",
        request(
            given=plain(TARGET),
            capture=capture(CROSS, over_heads=MEAN, grouping=attention.GROUPING_SPAN, units=options),
        ),
    )


def targets() -> Requests:
    """How the target comes to be, and what is said of it."""
    yield (
        "given",
        "The request gives the target.",
        request(given=plain(TARGET), capture=capture(CROSS, over_heads=MEAN)),
    )
    yield (
        "prefix",
        "The request gives the beginning of the target, as token ids the source.",
        service.AttributeRequest(
            request_id="golden",
            source=ids(50, 91, 7, 0),
            prefix=plain("Das"),
            decoding=THREE,
            capture=capture(DECODER_SELF, over_heads=MEAN),
        ),
    )
    yield "resumed", "The stream begins with step 2.", request(resume_at=2, capture=capture(CROSS, over_heads=MEAN))
    sampling = text.Sampling(temperature=1.3, top_k=20, top_p=0.9, seed=2**53 + 1)
    yield (
        "sampled",
        "Sampling with a seed that has no exact number of 8 bytes with a point.",
        request(decoding=text.Decoding(max_new_tokens=3, sampling=sampling), capture=attention.Capture(none=True)),
    )
    beam = text.Decoding(beam=text.Beam(width=3, hypotheses=2), max_new_tokens=12)
    yield "beams", "Two hypotheses of a beam search.", request(decoding=beam, capture=capture(CROSS, over_heads=MEAN))
    yield (
        "links_and_signals",
        "Links of words while they are written, and numbers that judge the target.",
        request(
            decoding=text.Decoding(),
            capture=attention.Capture(none=True),
            link_options=service.LinkOptions(),
            signals=True,
        ),
    )
    contrast = service.Contrast(source=plain("That is a new book."), subtract_attention=True)
    yield (
        "contrast",
        "Differences of attention, which may be negative, and contrast scores.",
        request(
            given=plain(TARGET),
            contrast=contrast,
            capture=capture(CROSS, over_heads=MEAN, encoding=attention.ENCODING_FLOAT16),
            scores=[attention.SCORE_CONTRAST_PROB_DIFF, attention.SCORE_KL_DIVERGENCE, attention.SCORE_PCXMI],
        ),
    )


def errors() -> Requests:
    """Requests that the server refuses."""
    yield (
        "error_layer",
        "INVALID_ARGUMENT that names a field in a list.",
        request(capture=capture(CROSS, heads=heads((0, 0, None), (17, 0, None)))),
    )
    yield "error_source", "INVALID_ARGUMENT that names a field.", request(source="")
    yield "error_model", "NOT_FOUND.", request(model="no-such-model")


def many() -> Iterator[Plan]:
    """Many texts on a stream."""
    narrow = capture(CROSS, over_heads=MEAN, over_layers=MEAN)
    texts = [
        service.AttributeManyRequest(attribute=request(source=source, capture=narrow), timeout=Duration(seconds=60))
        for source in (TEXT, "", "A dog.")
    ]
    for number, message in enumerate(texts):
        message.attribute.request_id = f"text-{number}"
    pair = service.AlignRequest(request_id="pair-3", source=plain(TEXT), target=plain(TARGET))
    texts.append(service.AttributeManyRequest(align=pair))
    yield Plan("many", "AttributeMany", "Three texts, of which one fails, and a pair.", texts)
    yield Plan("many_in_a_batch", "AttributeMany", "The same events in one message.", texts)


def follow() -> Iterator[Plan]:
    """Streams whose source and target grow."""
    event = service.FollowRequest
    start = service.FollowStart(request_id="golden", capture=capture(CROSS, DECODER_SELF, over_heads=MEAN))
    done = event(source_done=service.SourceDone())
    yield Plan(
        "follow",
        "Follow",
        "The client writes the target, takes a token back, and the source grows.",
        [
            event(start=start),
            event(source=plain("That is an")),
            event(target=ids(39, 21)),
            event(take_back=1),
            event(source=plain(" old book.")),
            event(target=plain("ist ein ")),
            event(flush=service.Flush()),
            done,
        ],
        waits=("", "started", "steps", "step_count", "started", "steps", "", ""),
    )
    policy = service.Policy(align_att=service.AlignAtt(words=1))
    simultaneous = service.FollowStart(
        request_id="golden",
        capture=capture(CROSS, over_heads=MEAN, over_layers=MEAN, encoding=attention.ENCODING_UINT8),
        policy=policy,
        decoding=text.Decoding(max_new_tokens=20),
        offset_unit=text.OFFSET_UNIT_UTF16,
    )
    yield Plan(
        "follow_simultaneous",
        "Follow",
        "The server writes while the source grows, and waits for more of it.",
        [event(start=simultaneous), event(source=plain("That is an old ")), event(source=plain("book.")), done],
        waits=("", "awaiting_source", "awaiting_source", "finished"),
    )
    wrong = service.FollowStart(request_id="golden", capture=capture(CROSS, grouping=attention.GROUPING_WORD))
    yield Plan("error_follow", "Follow", "INVALID_ARGUMENT of a stream.", [event(start=wrong)], waits=("finished",))


def alignments() -> Iterator[Plan]:
    """Links of words, and markup."""

    def align(name: str, description: str, **fields: Any) -> Plan:
        return Plan(name, "Align", description, [service.AlignRequest(request_id="golden", **fields)])

    yield align("align", "A pair of texts.", source=plain(TEXT), target=plain(TARGET), signals=True)
    html = service.Markup(format=service.MARKUP_FORMAT_HTML)
    yield align(
        "align_html",
        "A text in HTML, which the server translates; offsets count in utf8.",
        source=plain("I bought a <b>big</b> <i>old</i> house in Zürich &amp; an umbrella."),
        markup=html,
        offset_unit=text.OFFSET_UNIT_UTF8,
    )
    placeholders = service.Markup(format=service.MARKUP_FORMAT_PLACEHOLDERS)
    yield align(
        "align_placeholders",
        "A text with a placeholder.",
        source=plain("{name} has an old book."),
        target=plain("{name} hat ein altes Buch."),
        markup=placeholders,
    )
    spans = [service.MarkupSpan(id="b", begin=8, end=19), service.MarkupSpan(id="point", begin=5, end=5)]
    yield align(
        "align_spans",
        "Marked spans of a text, and links that the client has brought along.",
        source=plain(TEXT),
        target=plain(TARGET),
        markup=service.Markup(spans=spans),
        links="0-0 1-1 2-2-0.5 3-3 4-4 5-5",
    )
    xml = service.Markup(format=service.MARKUP_FORMAT_XML)
    yield align(
        "error_markup", "INVALID_ARGUMENT with a line and a column.", source=plain("an <b>old book"), markup=xml
    )


def others() -> Iterator[Plan]:
    """Models, and a request that does not run."""
    yield Plan("model", "GetModel", "The description of a model.", [service.GetModelRequest()])
    yield Plan("models", "ListModels", "A page of models.", [service.ListModelsRequest(page_size=1)])
    cancel: Message = service.CancelAttributionRequest(request_id="no-such-request")
    yield Plan("error_cancel", "CancelAttribution", "NOT_FOUND of a method without a stream.", [cancel])
