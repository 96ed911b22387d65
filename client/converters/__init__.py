"""Between the client's types and protobuf messages. No other module knows the messages' fields.

alignments          word links and markup
messages            builds the messages of requests, and reads those of responses
models              reads the description of a model, and whether it serves
words               the client's words for enums
texts               texts of requests
attention_arrays    the bytes of attention become NumPy arrays
policy              what the policy of a follow stream says
observations        links between words, and signals
"""

from .alignments import build_link_options, build_markup, parse_alignment
from .attention_arrays import parse_attention, parse_special_shares
from .messages import (
    build_capture,
    build_decoding,
    build_heads,
    grouping_enum,
    offset_unit_enum,
    padding_enum,
    parse_encoder_self,
    parse_finished,
    parse_started,
    parse_step,
    parse_unit,
    row_enum,
    score_enums,
    special_tokens_enum,
    truncation_enum,
)
from .models import parse_health, parse_model
from .texts import build_text

__all__ = [
    "build_capture",
    "build_decoding",
    "build_heads",
    "build_link_options",
    "build_markup",
    "build_text",
    "grouping_enum",
    "offset_unit_enum",
    "padding_enum",
    "parse_alignment",
    "parse_attention",
    "parse_encoder_self",
    "parse_finished",
    "parse_health",
    "parse_model",
    "parse_special_shares",
    "parse_started",
    "parse_step",
    "parse_unit",
    "row_enum",
    "score_enums",
    "special_tokens_enum",
    "truncation_enum",
]
