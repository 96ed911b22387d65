"""What an `attribute` call takes, and the request made of it.

What no server needs to be asked about is found out here; everything else is the server's to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from sidelight.v1 import attribution_service_pb2 as service_pb

from . import converters
from .errors import invalid
from .parameters import Capture, Decoding, Score, Source, SpecialTokensInText
from .validation import check_options, check_value

# 31 years. gRPC counts nanoseconds, and takes a deadline beyond its greatest number for one that is over.
_LONGEST_TIMEOUT = 1e9


class Options(TypedDict, total=False):
    """The keyword arguments of `attribute`, all optional. Values of other types are refused.

    - target: The target, if it is known: text or token ids. Otherwise the model writes it.
    - model: A loaded model's name; the server's default without one.
    - source_language, target_language: Codes, for models that need them.
    - capture: What to keep of the attention; everything of the model's main kind without one.
    - scores: Numbers to get with each step.
    - decoding: How the target is written; as the model's generation config says without it.
    - prefix: What the target starts with: text or token ids.
    - request_id: For errors and the server's log; the server makes one without it.
    - resume_at: The first step wanted, after a broken stream.
    - special_tokens_in_text: What becomes of special tokens that are written out in texts and chats, such as "</s>":
      "text" (without it), or "parse", for prompts that are rendered already.
    - add_special_tokens: Whether the tokenizer puts its own special tokens around the source's text and the target's;
      it does without it. False is for prompts that are rendered already.
    - score_top_p: The p of the score "top_p_size"; 0.9 without it.
    - timeout: In seconds, for the whole stream; no limit without it.
    """

    target: str | Sequence[int] | None
    model: str
    source_language: str
    target_language: str
    capture: Capture | None
    scores: Sequence[Score]
    decoding: Decoding | None
    prefix: str | Sequence[int] | None
    request_id: str
    resume_at: int
    special_tokens_in_text: SpecialTokensInText
    add_special_tokens: bool | None
    score_top_p: float | None
    timeout: float | None


def attribute_request(source: Source, options: Options) -> service_pb.AttributeRequest:
    """The request of an `attribute` call.

    Raises InvalidArgumentError for what cannot be sent: an option that there is not, a value of another type than its
    option's, a number out of range.
    """
    check_options(options, Options, "option of attribute")
    checked_timeout(options.get("timeout"))
    target, decoding = options.get("target"), options.get("decoding")
    prefix, capture = options.get("prefix"), options.get("capture")
    if target is not None and decoding is not None:
        raise invalid("decoding", "goes without a target: a given target is not decoded")
    request = service_pb.AttributeRequest(
        source=converters.text_message(source, "source"), scores=converters.score_numbers(options.get("scores", ()))
    )
    if (word := options.get("special_tokens_in_text")) is not None:
        request.special_tokens_in_text = converters.special_tokens_number(word)
    for field in (
        "request_id",
        "model",
        "source_language",
        "target_language",
        "resume_at",
        "add_special_tokens",
        "score_top_p",
    ):
        if (value := options.get(field)) is not None:
            with converters.blaming(field):
                setattr(request, field, value)
    if target is not None:
        request.given.CopyFrom(converters.text_message(target, "given"))
    elif decoding is not None:
        request.decoding.CopyFrom(converters.decoding_message(decoding))
    if prefix is not None:
        request.prefix.CopyFrom(converters.text_message(prefix, "prefix"))
    if capture is not None:
        request.capture.CopyFrom(converters.capture_message(capture))
    return request


def get_model_request(name: str) -> service_pb.GetModelRequest:
    """The request of a `get_model` call. Raises InvalidArgumentError for what is no name."""
    check_value(name, str, "name")
    with converters.blaming("name"):
        return service_pb.GetModelRequest(name=name)


def checked_timeout(timeout: float | None) -> float | None:
    """The timeout for gRPC, in seconds. Raises InvalidArgumentError unless it is a finite number above 0."""
    check_value(timeout, float | None, "timeout")
    if timeout is None:
        return None
    if not 0 < timeout < float("inf"):
        raise invalid("timeout", "must be above 0 seconds, and finite")
    return float(min(timeout, _LONGEST_TIMEOUT))
