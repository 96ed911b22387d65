"""An AttributeRequest with a given target becomes a Request for the encoder's states of both of its texts."""

from __future__ import annotations

import dataclasses

from sidelight.v1 import attribution_service_pb2 as service_pb

from ...capture import CapturePlan
from ...errors import RequestError, invalid
from ...models import ModelInfo
from ...request import MAX_PART_BYTES, EncodedTarget, Request
from ...text import TextOptions, turn_languages
from .texts import validate_languages, validate_source


def validate_encoded_pair(message: service_pb.AttributeRequest, loaded: ModelInfo, request_id: str) -> Request:
    """Returns the request that has the encoder read the source, and the given target as if it were a source.

    Reads the texts and the languages of the message alone. Raises RequestError, also for more than 32 MiB of states.
    """
    languages, options = validate_languages(message, loaded), TextOptions()
    source = validate_source(message, loaded, languages, options)
    turned = service_pb.AttributeRequest(source=message.given)
    try:
        text = validate_source(turned, loaded, turn_languages(loaded.tokenizer, languages), options)
    except RequestError as error:
        raise dataclasses.replace(error, field="given" + error.field.removeprefix("source")) from None
    target = EncodedTarget(text, loaded.encoder_width)
    num_bytes = target.count_bytes(len(source.tokens))
    if num_bytes > MAX_PART_BYTES:
        problem = (
            f"makes {num_bytes:,} bytes of encoder states with the source; at most {MAX_PART_BYTES:,} are compared"
        )
        raise invalid("given", "TEXT_TOO_LONG", problem)
    prompt = tuple(loaded.tokenizer.start_ids(languages))
    return Request(request_id, source, prompt, target, CapturePlan((), {}, {}))
