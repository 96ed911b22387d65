"""The ids of the call that a task answers. Tasks that the task starts have them too."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .telemetry import CallTrace

# A `traceparent` of W3C Trace Context: version, trace id, id of the parent's span, flags.
_TRACE_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


@dataclass
class CallContext:
    """One call: the ids of its request and of its trace, as far as there are any, and its span if it is recorded."""

    request_id: str = ""
    trace_id: str = ""
    trace: CallTrace | None = None


current_call: ContextVar[CallContext | None] = ContextVar("current_call", default=None)


def parse_trace_id(trace_parent: str) -> str:
    """Returns the trace id of a `traceparent`; empty where the value is not well-formed."""
    match = _TRACE_PARENT.fullmatch(trace_parent)
    return match[1] if match else ""
