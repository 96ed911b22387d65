"""Records what a server answers to requests: one request for each kind of thing that a client can ask for.

    cd tests/wire && PYTHONPATH=../support ../../.venv/bin/python record.py

Run the script only if an answer is meant to change. Then say in the commit which answer changes and why.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from exchanges import ZOO, Recorded, exchange, served, write
from google.protobuf.message import Message
from recorded_answers import machine
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as service
from sidelight.v1 import text_pb2 as text

TEXT = "The lazy dog does not want to be your friend, and I don't care where the train is."
CROSS, DECODER_SELF, ENCODER_SELF = (
    attention.ATTENTION_KIND_CROSS,
    attention.ATTENTION_KIND_DECODER_SELF,
    attention.ATTENTION_KIND_ENCODER_SELF,
)
ALL = [CROSS, DECODER_SELF, ENCODER_SELF]
SHORT = text.Decoding(max_new_tokens=5)
GREEDY = text.Decoding(max_new_tokens=12)
SAMPLED = text.Decoding(max_new_tokens=12, sampling=text.Sampling(temperature=1.3, top_k=50, top_p=0.9, seed=42))


def capture(*kinds: attention.AttentionKind.ValueType, **fields: object) -> attention.Capture:
    """A capture of these kinds."""
    return attention.Capture(kinds=kinds, **fields)


def heads(*triples: tuple[int, int, float | None]) -> attention.HeadSelection:
    """Single heads, with weights."""
    listed = [attention.Head(layer=layer, head=head, weight=weight) for layer, head, weight in triples]
    return attention.HeadSelection(list=attention.HeadList(heads=listed))


def attribute(model: str = "", source: str | text.Text = TEXT, **fields: object) -> service.AttributeRequest:
    """A request with a source text. Without `decoding` and `given`, the request decodes 12 tokens."""
    if "decoding" not in fields and "given" not in fields:
        fields["decoding"] = GREEDY
    message = text.Text(text=source) if isinstance(source, str) else source
    return service.AttributeRequest(model=model, request_id="recorded", source=message, **fields)


Requests = Iterator[tuple[str, service.AttributeRequest]]  # by name


def attributes() -> Requests:
    """The requests for attributions."""
    yield from captures()
    yield from scores_and_decodings()
    yield from targets_and_texts()
    for model in ZOO:
        yield from requests_to(model)
    yield from refused_requests()


def captures() -> Requests:
    """Requests that differ in what they capture."""
    yield "defaults", attribute()
    yield "nothing captured", attribute(capture=attention.Capture(none=True))
    for name, kind in (("cross", CROSS), ("decoder self", DECODER_SELF), ("encoder self", ENCODER_SELF)):
        yield name, attribute(capture=capture(kind), decoding=SHORT)
    yield "all kinds", attribute(capture=capture(*ALL), decoding=SHORT)
    for number, reduction in enumerate(attention.Reduction.keys()[1:], 1):
        yield f"heads {reduction}", attribute(capture=capture(*ALL, over_heads=number), decoding=SHORT)
    for number, reduction in ((1, "mean"), (2, "max"), (7, "l2")):
        both = capture(CROSS, over_heads=number, over_layers=number)
        yield f"heads and layers {reduction}", attribute(capture=both)
    yield "mean of heads, max of layers", attribute(capture=capture(*ALL, over_heads=1, over_layers=2), decoding=SHORT)
    for encoding in ("FLOAT16", "UINT8"):
        number = attention.Encoding.Value(f"ENCODING_{encoding}")
        yield f"encoding {encoding}", attribute(capture=capture(*ALL, encoding=number), decoding=SHORT)
        yield f"encoding {encoding}, top 3", attribute(capture=capture(CROSS, encoding=number, top_k=3))
    yield "top 4", attribute(capture=capture(*ALL, top_k=4, over_heads=1))
    yield "pairs", attribute(capture=capture(CROSS, heads=heads((1, 0, None), (0, 1, None))))
    yield "weighted pairs", attribute(capture=capture(CROSS, heads=heads((1, 0, 0.25), (0, 1, 2.0)), over_heads=1))
    layers = attention.HeadSelection(layers=attention.LayerList(layers=[1]))
    yield "one layer", attribute(capture=capture(CROSS, DECODER_SELF, heads=layers), decoding=SHORT)
    yield "reading row", attribute(capture=capture(CROSS, row=attention.ROW_READING, over_heads=1))
    renormalized = capture(CROSS, special_tokens=attention.SPECIAL_TOKENS_RENORMALIZE, over_heads=1)
    yield "special tokens renormalized", attribute(capture=renormalized)
    yield "some steps", attribute(capture=capture(CROSS, steps=attention.StepSpan(begin=2, end=4)))


def scores_and_decodings() -> Requests:
    """Requests that differ in their scores, and in how tokens are chosen and when decoding stops."""
    yield (
        "all scores",
        attribute(scores=range(attention.SCORE_PROBABILITY, attention.SCORE_CONTRAST_LOGITS), score_top_p=0.8),
    )
    yield "sampling", attribute(decoding=SAMPLED, scores=[attention.SCORE_PROBABILITY])
    yield "stop text", attribute(decoding=text.Decoding(max_new_tokens=30, stop=["Hund"]))
    penalized = text.Decoding(max_new_tokens=12, repetition_penalty=1.4, no_repeat_ngram_size=2, min_new_tokens=10)
    yield "penalties", attribute(decoding=penalized)
    yield "ignore end", attribute(source="Hello.", decoding=text.Decoding(max_new_tokens=12, ignore_eos=True))


def targets_and_texts() -> Requests:
    """Requests with a prefix or a given target, and requests whose source needs care."""
    yield "prefix", attribute(prefix=text.Text(text="Der faule"))
    yield "resumed", attribute(resume_at=3, capture=capture(CROSS, over_heads=1))
    yield "given", attribute(given=text.Text(text="Der faule Hund."), capture=capture(*ALL), scores=[1, 2, 3])
    yield (
        "given, reading",
        attribute(
            given=text.Text(text="Der faule Hund."), capture=capture(CROSS, row=attention.ROW_READING, over_heads=1)
        ),
    )
    yield "source ids", attribute(source=text.Text(token_ids=text.TokenIds(ids=[50, 91, 7, 0])), decoding=SHORT)
    yield "typed control tokens", attribute(source="a </s> b <pad>", decoding=SHORT)
    parse = text.SPECIAL_TOKENS_IN_TEXT_PARSE
    yield "parsed control tokens", attribute(source="a </s> b <pad>", decoding=SHORT, special_tokens_in_text=parse)
    yield "unknowns and scripts", attribute(source="casă a fost 東京 👩‍👩‍👧 x\u0301", decoding=SHORT)


def requests_to(model: str) -> Requests:
    """Requests to a model of another architecture."""
    kinds = [DECODER_SELF] if model == "llama" else ALL
    languages = {"source_language": "en", "target_language": "de"} if model == "m2m100" else {}
    yield f"{model}, all kinds", attribute(model, capture=capture(*kinds), decoding=SHORT, **languages)
    yield (
        f"{model}, mean in bytes",
        attribute(
            model,
            capture=capture(*kinds, over_heads=1, encoding=attention.ENCODING_UINT8),
            given=text.Text(text="Der faule Hund."),
            scores=[1],
            **languages,
        ),
    )
    yield f"{model}, sampling", attribute(model, decoding=SAMPLED, **languages)


def refused_requests() -> Requests:
    """Requests that the server answers with an error."""
    yield "no such model", attribute("absent")
    yield "empty source", attribute(source="")
    yield "layer out of range", attribute(capture=capture(CROSS, heads=heads((17, 0, None))))
    yield "head out of range", attribute(capture=capture(CROSS, heads=heads((0, 17, None))))
    yield "kind of another architecture", attribute("llama", capture=capture(CROSS))
    yield "kind beyond the enumeration", attribute(capture=capture(99))
    yield "temperature below zero", attribute(decoding=text.Decoding(sampling=text.Sampling(temperature=-1.0)))
    yield "source too long", attribute(source="word " * 2000)
    yield "unknown language", attribute("m2m100", source_language="xx", target_language="de")
    yield "beam search", attribute(decoding=text.Decoding(beam=text.Beam(width=4)))
    yield "grouping by words", attribute(capture=capture(CROSS, grouping=attention.GROUPING_WORD))


def others() -> Iterator[tuple[str, str, Message]]:
    """The requests to other methods: name, method and message."""
    for model in ("", *ZOO, "absent"):
        yield f"model {model or 'by default'}", "GetModel", service.GetModelRequest(name=model)


def main() -> None:
    """Sends all requests and writes the file."""
    torch.set_num_threads(1)
    exchanges = {}
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as channel:
        for name, request in attributes():
            exchanges[name] = exchange(channel, "Attribute", request.SerializeToString(deterministic=True))
        for name, method, message in others():
            exchanges[name] = exchange(channel, method, message.SerializeToString(deterministic=True))
    write(Recorded(machine(), exchanges))
    for name, recorded in exchanges.items():
        print(f"{name}: {', '.join(recorded.error) or f'{sum(map(len, recorded.responses))} bytes'}")


if __name__ == "__main__":
    main()
