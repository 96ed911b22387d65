"""Follow streams in the engine: requests whose source and target change while they run.

follow_state    FollowState: one stream: its events, its target so far, what it needs next
follow_builder  FollowBuilder: tokens, rows and decisions of a policy become steps
events          what a client does
event_queue     EventQueue: from an asyncio task to the engine's thread, bounded
follow_places   FollowPlaces: how many streams of a model are open, in all processes
"""

from .event_queue import MAX_EVENTS, EventQueue
from .events import FollowEvent, SourceDone, SourceGrowth, StreamBreak, StreamEnd, TakeBack, TargetToken
from .follow_builder import FollowBuilder
from .follow_places import FollowPlaces, StreamHolder
from .follow_state import FollowState, without_encoder_self

__all__ = [
    "MAX_EVENTS",
    "EventQueue",
    "FollowBuilder",
    "FollowEvent",
    "FollowPlaces",
    "FollowState",
    "SourceDone",
    "SourceGrowth",
    "StreamBreak",
    "StreamEnd",
    "StreamHolder",
    "TakeBack",
    "TargetToken",
    "without_encoder_self",
]
