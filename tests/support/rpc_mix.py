"""Calls of the RPCs that do work, drawn at random: Attribute, AttributeMany, Follow, Align."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from google.protobuf.message import Message
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb

WORDS = ["the", "old", "house", "by", "the", "river", "was", "sold", "to", "a", "young", "man", "who", "never", "came"]


class DrawnCall(NamedTuple):
    """A call before it is sent: the path of its method, and the messages that a client sends."""

    path: str
    messages: list[Message]


def draw_call(chance: random.Random) -> DrawnCall:
    """Draws a call of one of the RPCs."""
    name = chance.choice([*_MAKERS])
    return DrawnCall(f"/sidelight.v1.AttributionService/{name}", _MAKERS[name](chance))


def _attribute(chance: random.Random) -> list[Message]:
    return [_draw_request(chance)]


def _many(chance: random.Random) -> list[Message]:
    """Several texts, of which some are cancelled, and some are pairs to align."""
    messages: list[Message] = []
    for number in range(chance.randrange(1, 5)):
        kind = chance.choice(["attribute", "attribute", "align", "cancel"])
        message = pb.AttributeManyRequest()
        if kind == "cancel":
            message.cancel = f"text {chance.randrange(5)}"
        else:
            text = _draw_request(chance) if kind == "attribute" else _draw_pair(chance)
            text.request_id = f"text {number}"
            getattr(message, kind).CopyFrom(text)
        messages.append(message)
    return messages


def _align(chance: random.Random) -> list[Message]:
    return [_draw_pair(chance)]


def _follow(chance: random.Random) -> list[Message]:
    """A stream whose source and target grow, with targets that are taken back."""
    start = pb.FollowRequest()
    start.start.SetInParent()
    if chance.random() < 0.5:
        start.start.capture.kinds.append(chance.choice([1, 2]))
    source = pb.FollowRequest()
    source.source.text = _draw_text(chance)
    messages: list[Message] = [start, source]
    num_ids = 0
    for _ in range(chance.randrange(1, 8)):
        event = pb.FollowRequest()
        kind = chance.choice(["source", "target", "target", "target", "take_back"])
        if kind == "source":
            event.source.text = f" {_draw_text(chance)}"
        elif kind == "target":
            ids = [chance.randrange(2, 100) for _ in range(chance.randrange(1, 6))]
            event.target.token_ids.ids.extend(ids)
            num_ids += len(ids)
        elif num_ids:
            event.take_back = chance.randrange(1, num_ids + 1)
            num_ids -= event.take_back
        else:
            event.flush.SetInParent()
        messages.append(event)
    return messages


_MAKERS: dict[str, Callable[[random.Random], list[Message]]] = {
    "Attribute": _attribute,
    "AttributeMany": _many,
    "Follow": _follow,
    "Align": _align,
}


def _draw_text(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randrange(1, 15)))


def _draw_pair(chance: random.Random) -> pb.AlignRequest:
    request = pb.AlignRequest()
    request.source.text = _draw_text(chance)
    if chance.random() < 0.7:
        request.target.text = "Das alte Haus wurde verkauft"
    else:
        request.decoding.max_new_tokens = chance.randrange(1, 24)
    if chance.random() < 0.3:
        request.source.text = f"<b>{request.source.text}</b> {_draw_text(chance)}"
        request.markup.format = pb.MARKUP_FORMAT_HTML
    return request


def _draw_request(chance: random.Random) -> pb.AttributeRequest:
    request = pb.AttributeRequest()
    request.source.text = _draw_text(chance)
    request.decoding.max_new_tokens = chance.randrange(1, 24)
    request.decoding.ignore_eos = chance.random() < 0.5
    if chance.random() < 0.3:
        request.decoding.sampling.seed = chance.randrange(100)
        request.decoding.sampling.top_p = 0.9
    if chance.random() < 0.3:
        request.decoding.repetition_penalty = 1.2
    if chance.random() < 0.2:
        request.prefix.text = "Das alte Haus"
    if chance.random() < 0.1:
        request.given.text = "Das alte Haus wurde verkauft"
        request.ClearField("decoding")
        request.ClearField("prefix")
    if chance.random() < 0.5:
        request.scores.append(1)
    kinds = [kind for kind in (1, 2, 3) if chance.random() < 0.4]
    request.capture.kinds.extend(kinds)
    if chance.random() < 0.3:
        request.capture.over_heads = attention.REDUCTION_MEAN
    if chance.random() < 0.3:
        request.capture.top_k = 3
    if not kinds and chance.random() < 0.5:
        request.capture.Clear()
        request.capture.none = True
    return request
