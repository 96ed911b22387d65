"""The log on standard error: lines of text for people, or a JSON object a line for programs.

The lines of a request have its id and the id of its trace. No line has a text of a client, unless the operator asks:
the message of an exception may quote a text, so an exception is its type and its stack without its message.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .call_context import current_call

log = logging.getLogger(__name__)

# What a log record may have beside its message.
_FIELDS = ("request_id", "client", "trace_id", "reference", "text")

_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_has_texts = False


@dataclass(frozen=True)
class LogOptions:
    """How the log is written."""

    level: int = logging.INFO
    is_json: bool = False
    has_texts: bool = False


def configure_log(options: LogOptions) -> None:
    """Sends the log to standard error: Sidelight's own lines from a level on, those of libraries from INFO on."""
    global _has_texts
    _has_texts = options.has_texts
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if options.is_json else _LineFormatter(_LINE))
    handler.addFilter(_add_ids)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(max(options.level, logging.INFO))
    logging.getLogger("sidelight").setLevel(options.level)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_hide_metadata)


def log_text(request_id: str, text: str) -> None:
    """Writes the source text of a request, where the operator wants texts in the log."""
    if _has_texts:
        log.info("request %s: %r", request_id, text, extra={"request_id": request_id, "text": text})


def _hide_metadata(record: logging.LogRecord) -> bool:
    """Whether a line of gRPC says something else than the value of a client's metadata, which may be a token.

    gRPC writes such a line, with a stack, for each value that is not UTF-8.
    """
    return not str(record.msg).startswith("Invalid encoding")


def _add_ids(record: logging.LogRecord) -> bool:
    """Adds the ids of the call that the current task answers, where the line has none."""
    call = current_call.get()
    if call is not None:
        for name in ("request_id", "client", "trace_id"):
            if getattr(call, name) and not hasattr(record, name):
                setattr(record, name, getattr(call, name))
    return True


class _LineFormatter(logging.Formatter):
    """Lines for people. The stack of an exception follows its line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line and the stack."""
        record = copy.copy(record)
        record.exc_text = None  # another handler may have put its own text with messages here
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the name is the base class's)
        """Returns the line without the stack."""
        record.message = _message_of(record)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  (the name is the base class's)
        """Returns the stack. Its exceptions have no messages, unless the operator wants texts."""
        return super().formatException(ei) if _has_texts else "\n".join(_stack_of(ei[1], set()))


def _message_of(record: logging.LogRecord) -> str:
    """Returns the message. asyncio quotes exceptions behind the first line."""
    message = record.getMessage()
    return message if _has_texts or not record.exc_info else message.partition("\n")[0]


def _stack_of(error: BaseException | None, seen: set[int]) -> Iterator[str]:
    """Yields the type and the stack of an exception, and before these what the exception comes from."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    origin = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    yield from _stack_of(origin, seen)
    for frame in traceback.extract_tb(error.__traceback__):
        yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
    yield f"{type(error).__module__}.{type(error).__qualname__}"


class _JsonFormatter(_LineFormatter):
    """A line of JSON for each record. A line break in a message stays inside its string."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        time = datetime.fromtimestamp(record.created, timezone.utc)
        line = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message_of(record),
        }
        line |= {name: value for name in _FIELDS if (value := getattr(record, name, ""))}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
