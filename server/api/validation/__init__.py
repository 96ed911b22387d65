"""Messages of the contract become the domain's plain data: each field is checked, each default is filled in.

request       an AttributeRequest becomes a Request
texts         the source, the prefix and the given target become tokens
padding       token ids lose their padding, where the request says so
truncation    texts that are too long lose tokens at one end
decoding      a Decoding becomes DecodingParams
beam          a Beam becomes BeamParams
capture       a Capture becomes a CapturePlan
contrast      a Contrast becomes the request in a second context
encoded_pair  an AttributeRequest becomes a Request for the encoder's states of both texts
methods       the method of a Capture, and what it does with special tokens
units         a grouping and UnitOptions become a UnitPlan
alignment/    AlignRequests, LinkOptions, links and signals
follow        the messages of a follow stream become events
follow_start  the options of a follow stream, checked before the source is known

Every function raises RequestError with the path of the field. What the contract has and this server does not have is
UNIMPLEMENTED, and never ignored.
"""

from .alignment import (
    MAX_SEGMENTS,
    AlignPlan,
    build_reverse_request,
    build_segment_request,
    build_states_request,
    check_links_model,
    find_align_field,
    find_head_source,
    find_states_field,
    fix_seed,
    make_linker,
    validate_align,
)
from .beam import MAX_BEAM_WIDTH
from .decoding import MAX_STOP_BYTES, MAX_STOPS
from .encoded_pair import validate_encoded_pair
from .follow import FollowValidator
from .follow_start import paths_in_start
from .request import request_id_of, validate_request
from .units import MAX_SPANS

__all__ = [
    "MAX_BEAM_WIDTH",
    "MAX_SEGMENTS",
    "MAX_SPANS",
    "MAX_STOPS",
    "MAX_STOP_BYTES",
    "AlignPlan",
    "FollowValidator",
    "build_reverse_request",
    "build_segment_request",
    "build_states_request",
    "check_links_model",
    "find_align_field",
    "find_head_source",
    "find_states_field",
    "fix_seed",
    "make_linker",
    "paths_in_start",
    "request_id_of",
    "validate_align",
    "validate_encoded_pair",
    "validate_request",
]
