"""Front ends: processes that own sockets and messages, apart from the process with the engines. No gRPC.

interface      what the API needs of engines, wherever these are: EngineClient and Clients
engine_group   EngineGroup: the engines of all models of a server
nursery        Nursery: forks front ends
hub            FrontEnds: all front ends, in the engine's process
session        Session: one front end, in the engine's process
remote_engine  RemoteEngine: an engine of another process, in a front end
remote_streams the follow streams of front ends, and their places in the engine's process
questions      what the engine's process asks a front end
channel        messages between two processes, with large arrays in shared memory
shared_ring    the shared memory
references     objects that both processes have
counters       what the counters of a front end have grown by
"""

from .channel import ChannelEnd
from .counters import GrowingCounters
from .engine_group import EngineGroup
from .hub import FrontEndError, FrontEnds
from .interface import ClientCounts, Clients, EngineClient, EngineRequest, Events, Place, StreamPlaces
from .nursery import Nursery
from .remote_engine import EngineLink, RemoteClients

__all__ = [
    "ChannelEnd",
    "ClientCounts",
    "Clients",
    "EngineClient",
    "EngineGroup",
    "EngineLink",
    "EngineRequest",
    "Events",
    "FrontEndError",
    "FrontEnds",
    "GrowingCounters",
    "Nursery",
    "Place",
    "RemoteClients",
    "StreamPlaces",
]
