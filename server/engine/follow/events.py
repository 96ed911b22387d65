"""The events of a follow stream: what its client does, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from ...request import Request


@dataclass(frozen=True)
class SourceGrowth:
    """The source has grown. `request` has the whole source."""

    request: Request


@dataclass(frozen=True)
class SourceDone:
    """The source is complete."""


@dataclass(frozen=True)
class TargetToken:
    """The client has written a token."""

    id: int


@dataclass(frozen=True)
class TakeBack:
    """The client has removed so many tokens from the end of the target."""

    count: int


@dataclass(frozen=True)
class StreamEnd:
    """No more events come."""


@dataclass(frozen=True)
class StreamBreak:
    """No more events are read, since the server is about to end."""


FollowEvent = SourceGrowth | SourceDone | TargetToken | TakeBack | StreamEnd | StreamBreak
