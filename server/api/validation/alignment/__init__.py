"""What links and judges: AlignRequests, LinkOptions, and what is observed beside a capture.

align        an AlignRequest becomes an AlignPlan, and the requests to the engine
links        LinkOptions become a Linker
observers    links and signals of an AttributeRequest get rows of their own
"""

from .align import (
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
    validate_align,
)
from .links import make_linker
from .observers import validate_observers

__all__ = [
    "MAX_SEGMENTS",
    "AlignPlan",
    "build_reverse_request",
    "build_segment_request",
    "build_states_request",
    "check_links_model",
    "find_align_field",
    "find_head_source",
    "find_states_field",
    "fix_seed",
    "make_linker",
    "validate_align",
    "validate_observers",
]
