"""AttributeMany of the fake server: each text runs in a thread, as a call of Attribute would."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from sidelight.v1 import attribution_service_pb2 as pb


class _AbortedError(Exception):
    """The end of one text."""


class _TextContext:
    """What a servicer's method sees in place of its call's context, for one text."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.error = pb.Error()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return self._context.add_callback(callback)

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.error.code, self.error.message = code.value[0], details
        raise _AbortedError

    def abort_with_status(self, status: Any) -> None:
        self.error.code, self.error.message = status.code.value[0], status.details
        for key, value in status.trailing_metadata:
            if key == rpc_status.GRPC_DETAILS_METADATA_KEY:
                self._fill(status_pb2.Status.FromString(value))
        raise _AbortedError

    def _fill(self, status: status_pb2.Status) -> None:
        info, bad_request, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        for detail in status.details:
            if detail.Unpack(info):
                self.error.reason = info.reason
            elif detail.Unpack(bad_request):
                self.error.field = f"attribute.{bad_request.field_violations[0].field}"
            elif detail.Unpack(retry):
                self.error.retry_delay.CopyFrom(retry.retry_delay)


def answer_many(attribute: Callable[[Any, Any], Iterator[Any]], requests: Iterator[Any], context: Any) -> Iterator[Any]:
    """Answers the requests of a stream by a servicer's method Attribute."""
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def answer(request: Any) -> None:
        text_context = _TextContext(context)
        try:
            for response in attribute(request, text_context):
                events.put(pb.AttributeManyResponse(request_id=request.request_id, response=response))
                time.sleep(0.005)  # so that the next texts arrive while this one runs
        except _AbortedError:
            events.put(pb.AttributeManyResponse(request_id=request.request_id, error=text_context.error))

    def read() -> None:
        threads = []
        try:
            for request in requests:
                threads.append(threading.Thread(target=answer, args=(request.attribute,)))
                threads[-1].start()
        except Exception:  # the client has gone
            pass
        for thread in threads:
            thread.join()
        events.put(None)

    reader = threading.Thread(target=read)
    reader.start()
    while (event := events.get()) is not None:
        yield event
