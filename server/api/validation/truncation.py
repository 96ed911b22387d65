"""Texts that are too long lose tokens at one end, where the request says so. Raises RequestError with the field.

A text of too many bytes is cut before it is tokenized. Tokens are left out once all texts of the request are tokenized,
because a prompt and its continuation share the positions of a decoder-only model.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sidelight.v1 import attribution_service_pb2 as service_pb
from sidelight.v1 import text_pb2

from ...errors import invalid
from ...models import ModelInfo
from ...text import Token, TokenizedText

Truncation = Literal["none", "left", "right"]

_TRUNCATIONS: dict[int, Truncation] = {
    text_pb2.TRUNCATION_UNSPECIFIED: "none",
    text_pb2.TRUNCATION_NONE: "none",
    text_pb2.TRUNCATION_LEFT: "left",
    text_pb2.TRUNCATION_RIGHT: "right",
}

# How many characters are normalized at once where a text is cut: the cut comes after so many characters.
_CUT_CHARACTERS = 64


@dataclass(frozen=True)
class Texts:
    """The tokens of a request's texts.

    Attributes:
        source: What the model reads.
        start_ids: The tokens that the decoder starts with.
        prefix_ids: The tokens of the prefix.
        prefix: The prefix, if it was given as a text.
        given: The given target.
        num_left_out: How many tokens of the prefix or of the given target are left out.
    """

    source: TokenizedText
    start_ids: list[int]
    prefix_ids: list[int]
    prefix: TokenizedText | None
    given: TokenizedText | None
    num_left_out: int = 0

    @property
    def decoder_prompt_ids(self) -> tuple[int, ...]:
        """The tokens that the decoder reads between the source and step 0."""
        return (*self.start_ids, *self.prefix_ids)


def validate_truncation(message: service_pb.AttributeRequest) -> Truncation:
    """Returns on which side of a text tokens are left out. Raises RequestError."""
    if message.truncate not in _TRUNCATIONS:
        raise invalid("truncate", "UNKNOWN_VALUE", "is no way to truncate")
    truncation = _TRUNCATIONS[message.truncate]
    if truncation != "none" and message.source.WhichOneof("kind") in ("chat", "features"):
        problem = "goes with texts and token ids: neither a chat nor a recording can lose a part"
        raise invalid("truncate", "CONTRADICTION", problem)
    return truncation


# ---- before the texts are tokenized ---------------------------------------------------------------------------------


def cut_text(text: str, max_bytes: int, truncation: Truncation) -> str:
    """Returns the end of a text that stays, of about `max_bytes` bytes of UTF-8 as it is and once normalized."""
    starts = range(0, len(text), _CUT_CHARACTERS)
    num_bytes = num_normalized = 0
    for number, start in enumerate(reversed(starts) if truncation == "left" else starts):
        stretch = text[start : start + _CUT_CHARACTERS]
        num_bytes += len(stretch.encode())
        num_normalized += len(unicodedata.normalize("NFKC", stretch).encode())
        if number and max(num_bytes, num_normalized) > max_bytes:
            return text[start + len(stretch) :] if truncation == "left" else text[:start]
    return text


def cut_ids(
    ids: Sequence[int], max_tokens: int, truncation: Truncation, field: str, loaded: ModelInfo
) -> tuple[list[int], int]:
    """Returns at most `max_tokens` token ids, and how many are left out. Raises RequestError."""
    is_special = loaded.tokenizer.vocabulary.is_special
    first, last = _find_kept([is_special(id_) for id_ in ids], max_tokens, truncation, field)
    return [*ids[first], *ids[last]], max(0, len(ids) - max_tokens)


# ---- once all texts are tokenized -----------------------------------------------------------------------------------


def truncate_texts(
    texts: Texts, message: service_pb.AttributeRequest, loaded: ModelInfo, truncation: Truncation
) -> Texts:
    """Returns the texts with as many tokens as the model can have. Raises RequestError."""
    num_reserved = 0 if texts.given else _num_reserved(message, loaded)
    room = loaded.max_target_tokens - len(texts.start_ids) - num_reserved
    num_target = len(texts.given.tokens if texts.given else texts.prefix_ids)
    max_source, max_target = loaded.max_source_tokens, room
    if not loaded.is_encoder_decoder:
        max_source, max_target = _share(len(texts.source.tokens), num_target, room)
    kind = message.source.WhichOneof("kind")
    source = _restore(texts.source, message.source.text, truncation)
    source = truncate(source, max_source, truncation, f"source.{kind}")
    if texts.given:
        given = _restore(texts.given, message.given.text, truncation)
        given = truncate(given, max_target, truncation, f"given.{message.given.WhichOneof('kind')}")
        return replace(texts, source=source, given=_end_text(given, truncation), num_left_out=given.num_left_out)
    if texts.prefix:
        prefix = _restore(texts.prefix, message.prefix.text, truncation)
        prefix = truncate(prefix, max_target, truncation, "prefix.text")
        prefix, num_left_out = _end_text(prefix, truncation), prefix.num_left_out
        return replace(texts, source=source, prefix=prefix, prefix_ids=prefix.ids, num_left_out=num_left_out)
    prefix_ids, num_left_out = cut_ids(texts.prefix_ids, max_target, truncation, "prefix.token_ids", loaded)
    return replace(texts, source=source, prefix_ids=prefix_ids, num_left_out=num_left_out)


def truncate(text: TokenizedText, max_tokens: int, truncation: Truncation, field: str) -> TokenizedText:
    """Returns a text with at most `max_tokens` tokens. Raises RequestError."""
    if len(text.tokens) <= max_tokens:
        return text
    first, last = _find_kept([token.special for token in text.tokens], max_tokens, truncation, field)
    head, tail = text.tokens[first], text.tokens[last]
    num_left_out = text.num_left_out + len(text.tokens) - max_tokens
    if truncation == "left":
        begin = next(token.begin for token in tail if not token.special)
        return replace(text, tokens=(*head, *tail), num_left_out=num_left_out, begin=begin)
    end = max(token.end for token in head)
    tail = (token._replace(begin=end, end=end) for token in tail)
    return replace(text, tokens=(*head, *tail), num_left_out=num_left_out)


def _find_kept(special: Sequence[bool], max_tokens: int, truncation: Truncation, field: str) -> tuple[slice, slice]:
    """Returns which tokens at the begin and which at the end of a text stay. The special tokens at both ends stay."""
    num_left_out = len(special) - max_tokens
    if num_left_out <= 0:
        return slice(None), slice(0, 0)
    num_first = next((index for index, is_special in enumerate(special) if not is_special), len(special))
    num_last = next((index for index, is_special in enumerate(reversed(special)) if not is_special), len(special))
    if num_first + num_last >= max_tokens:
        raise invalid(field, "TEXT_TOO_LONG", f"cannot be truncated: there is room for {max(0, max_tokens):,} tokens")
    num_head = num_first if truncation == "left" else max_tokens - num_last
    return slice(0, num_head), slice(num_head + num_left_out, None)


def _num_reserved(message: service_pb.AttributeRequest, loaded: ModelInfo) -> int:
    """Returns for how many tokens of the target there must be room, at least 1."""
    if message.decoding.HasField("max_new_tokens"):
        num_asked = message.decoding.max_new_tokens
        return num_asked if num_asked < loaded.max_target_tokens else 1  # `validate_decoding` refuses it
    return max(1, min(loaded.generation_config.max_new_tokens or 1, loaded.max_target_tokens // 2))


def _share(num_source: int, num_target: int, room: int) -> tuple[int, int]:
    """Returns how many tokens of a prompt and of its continuation fit: the longer one is made shorter."""
    if num_source + num_target <= room:
        return num_source, num_target
    max_target = max(room // 2, room - num_source)
    return room - min(num_target, max_target), max_target


def _restore(text: TokenizedText, whole: str, truncation: Truncation) -> TokenizedText:
    """Returns the tokens of a text that was cut, at their places in the whole text. What is cut counts as one token."""
    num_cut = len(whole) - len(text.text)
    if num_cut <= 0:
        return text
    if truncation == "right":
        return replace(text, text=whole, num_left_out=1)
    tokens = tuple(_move(token, num_cut) for token in text.tokens)
    begin = next((token.begin for token in tokens if not token.special), num_cut)
    return replace(text, text=whole, tokens=tokens, num_left_out=1, begin=begin)


def _move(token: Token, by: int) -> Token:
    return token._replace(begin=token.begin + by, end=token.end + by)


def _end_text(text: TokenizedText, truncation: Truncation) -> TokenizedText:
    """Returns a target without the characters behind its last token, if tokens are left out there."""
    if truncation == "left" or not text.num_left_out:
        return text
    return replace(text, text=text.text[: max(token.end for token in text.tokens)])
