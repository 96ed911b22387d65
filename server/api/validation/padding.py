"""Padding among the token ids of a request's texts. Raises RequestError with the field."""

from __future__ import annotations

from collections.abc import Sequence

from sidelight.v1 import attribution_service_pb2 as service_pb
from sidelight.v1 import text_pb2

from ...errors import invalid
from ...models import ModelInfo


def validate_padding(message: service_pb.AttributeRequest, loaded: ModelInfo) -> None:
    """Checks what the request says of padding. Raises RequestError."""
    if not message.padding:
        return
    if message.padding not in (text_pb2.PADDING_REFUSE, text_pb2.PADDING_MASK):
        raise invalid("padding", "UNKNOWN_VALUE", "is no way with padding")
    contrast = message.contrast
    texts = (message.source, message.prefix, message.given, contrast.source, contrast.prefix, contrast.given)
    if not any(text.WhichOneof("kind") == "token_ids" for text in texts):
        raise invalid("padding", "CONTRADICTION", "goes with token ids: texts have no padding")
    if message.padding == text_pb2.PADDING_MASK and loaded.tokenizer.padding_id is None:
        problem = "this model has no token that is only padding: leave the padding out"
        raise invalid("padding", "NO_PADDING_TOKEN", problem)


def treat_padding(ids: list[int], field: str, padding: text_pb2.Padding.ValueType, loaded: ModelInfo) -> list[int]:
    """Returns the token ids of a text without padding. Raises RequestError."""
    if padding != text_pb2.PADDING_MASK:
        refuse_padding(ids, field, loaded, "leave it out, or mask it by AttributeRequest.padding")
        return ids
    ids = [id_ for id_ in ids if id_ != loaded.tokenizer.padding_id]
    if not ids:
        raise invalid(f"{field}.token_ids.ids", "EMPTY", "must not be empty: it is nothing but padding")
    return ids


def refuse_padding(ids: Sequence[int], field: str, loaded: ModelInfo, advice: str = "leave it out") -> None:
    """Raises RequestError where there is padding among token ids."""
    padding_id = loaded.tokenizer.padding_id
    if padding_id is not None and padding_id in ids:
        problem = f"{padding_id} is padding, which the model would take for a token: {advice}"
        raise invalid(f"{field}.token_ids.ids[{[*ids].index(padding_id)}]", "PADDING", problem)
