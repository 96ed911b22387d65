"""The ids of the call that a task answers, for logs and spans. Tasks that the task starts have them too."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from .metrics import MethodMetrics
from .telemetry import CallTrace, Telemetry

# A `traceparent` of W3C Trace Context: version, trace id, id of the parent's span, flags.
_TRACE_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


@dataclass
class CallContext:
    """What is known of one call.

    Attributes:
        request_id: The id of its request; empty where there is none, or where there are many.
        client: The name of the client; empty where nothing names the client.
        trace_id: The id of its trace; empty where there is none.
        trace: Its span, if the span is recorded.
        code: The name of the status that the call ends with. CANCELLED is what no other end sets.
    """

    request_id: str = ""
    client: str = ""
    trace_id: str = ""
    trace: CallTrace | None = None
    code: str = "CANCELLED"


current_call: ContextVar[CallContext | None] = ContextVar("current_call", default=None)


@contextmanager
def observe_call(
    metrics: MethodMetrics, telemetry: Telemetry | None, metadata: Mapping[str, str]
) -> Iterator[CallContext]:
    """Counts a call, records its span where it is sampled, and makes it the current call of this task.

    Args:
        metrics: The counters of the method.
        telemetry: What records spans, if anything does.
        metadata: What the client has sent beside its requests.
    """
    began = time.monotonic()
    metrics.num_started += 1
    call = CallContext(trace_id=parse_trace_id(metadata.get("traceparent", "")))
    if telemetry is not None:
        call.trace = telemetry.begin_call(metrics.full_name, metadata)
        if call.trace is not None:
            call.trace_id = call.trace.trace_id
    current_call.set(call)  # of the task that answers this call, and ends with the call
    try:
        yield call
    finally:
        seconds = time.monotonic() - began
        metrics.record_end(call.code, seconds)
        if telemetry is not None:
            telemetry.end_call(metrics.full_name, call.trace, call.code, seconds, call.client)


@contextmanager
def as_current(call: CallContext | None) -> Iterator[None]:
    """Makes a call the current one of this thread for a while, so that lines of the log have its ids."""
    token = current_call.set(call)
    try:
        yield
    finally:
        current_call.reset(token)


def parse_trace_id(trace_parent: str) -> str:
    """Returns the trace id of a `traceparent`; empty where the value is not well-formed."""
    match = _TRACE_PARENT.fullmatch(trace_parent)
    return match[1] if match else ""
