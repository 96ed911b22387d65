"""Which request runs when, and what it gets: one thread for each model. No gRPC; no tensors.

engine              Engine: submits requests to its thread; start, drain, stop
engine_core         one iteration of the thread: schedule → run → deliver
scheduler           starts waiting requests, resumes preempted ones, ends expired ones
given_targets       batches of the targets that wait: given ones, and those of follow streams
preemption          which requests give way because their readers are slow
time_share          how much time given targets may take beside the decode steps
started_requests    the requests that have started, by status, and how they end
request_state       one request in the engine: status, sequence, outputs that wait, times
admission           the requests that have arrived and not started
waiting_queue       the order of waiting requests, and which clients come after others
batching_delay      a millisecond's wait when requests arrive in bursts
outputs/            tokens and attention → steps, units and texts
beam_hypotheses     the outputs of a request whose target a beam search has found
follow_streams      what the events of follow streams do
follow/             one follow stream: its events, its target so far, its steps
output_queue        from the engine's thread to an asyncio task, bounded by bytes
"""

from .admission import Reservation
from .engine import Engine, EngineConfig
from .follow import (
    EventQueue,
    FollowEvent,
    FollowPlaces,
    SourceDone,
    SourceGrowth,
    StreamBreak,
    StreamEnd,
    StreamHolder,
    TakeBack,
    TargetToken,
)
from .output_queue import OutputQueue, ReadyQueues
from .request_state import RequestState, RequestStatus
from .waiting_queue import HeldBack

__all__ = [
    "Engine",
    "EngineConfig",
    "EventQueue",
    "FollowEvent",
    "FollowPlaces",
    "HeldBack",
    "OutputQueue",
    "ReadyQueues",
    "RequestState",
    "RequestStatus",
    "Reservation",
    "SourceDone",
    "SourceGrowth",
    "StreamBreak",
    "StreamEnd",
    "StreamHolder",
    "TakeBack",
    "TargetToken",
]
