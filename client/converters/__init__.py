"""Between the client's types and protobuf messages. No other module knows the messages' fields.

messages            builds the messages of requests, and reads those of responses
models              reads the description of a model
words               the client's words for enums
attention_arrays    the bytes of attention become NumPy arrays
policy              what the policy of a follow stream says
"""

from .attention_arrays import parse_attention, parse_special_shares
from .messages import (
    build_capture,
    build_decoding,
    build_text,
    offset_unit_enum,
    padding_enum,
    parse_encoder_self,
    parse_finished,
    parse_started,
    parse_step,
    parse_unit,
    score_enums,
    special_tokens_enum,
    truncation_enum,
)
from .models import parse_model

__all__ = [
    "build_capture",
    "build_decoding",
    "build_text",
    "offset_unit_enum",
    "padding_enum",
    "parse_attention",
    "parse_encoder_self",
    "parse_finished",
    "parse_model",
    "parse_special_shares",
    "parse_started",
    "parse_step",
    "parse_unit",
    "score_enums",
    "special_tokens_enum",
    "truncation_enum",
]
