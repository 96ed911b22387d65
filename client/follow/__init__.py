"""Follow streams: a source that grows, and a target that the caller's decoder writes, or the server.

events    StepCount, AwaitingSource: events that other streams do not have
streams   FollowStream and AsyncFollowStream: events out by methods, and in by iteration
request   FollowOptions, and the messages of a stream
"""

from .events import AwaitingSource, FollowEvent, StepCount
from .request import FollowOptions, build_follow_start
from .streams import AsyncFollowStream, FollowStream

__all__ = [
    "AsyncFollowStream",
    "AwaitingSource",
    "FollowEvent",
    "FollowOptions",
    "FollowStream",
    "StepCount",
    "build_follow_start",
]
