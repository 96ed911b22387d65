"""Clients of a Sidelight server, and what can be done with what they bring back. Installs without torch.

from sidelight.client import Client

with Client("127.0.0.1:50051") as client:
    for step in client.attribute("I don't want to be your friend."):
        print(step.text, step.cross.shape)
"""

from .client import AsyncClient, Client
from .errors import (
    CancelledError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    SidelightError,
    UnavailableError,
    UnimplementedError,
)
from .options import Beam, Capture, Decoding, Encoding, Greedy, Head, Kind, Reduction, Row, Sampling, Score, Source
from .requests import Options
from .results import (
    Attribution,
    Hypothesis,
    Layout,
    Model,
    ModelAttention,
    Started,
    Step,
    StopReason,
    Token,
    Usage,
)
from .saving import save
from .streams import AsyncAttributionStream, AttributionStream

__all__ = [
    "AsyncAttributionStream",
    "AsyncClient",
    "Attribution",
    "AttributionStream",
    "Beam",
    "CancelledError",
    "Capture",
    "Client",
    "DeadlineExceededError",
    "Decoding",
    "Encoding",
    "Greedy",
    "Head",
    "Hypothesis",
    "InternalError",
    "InvalidArgumentError",
    "Kind",
    "Layout",
    "Model",
    "ModelAttention",
    "NotFoundError",
    "Options",
    "Reduction",
    "ResourceExhaustedError",
    "Row",
    "Sampling",
    "Score",
    "SidelightError",
    "Source",
    "Started",
    "Step",
    "StopReason",
    "Token",
    "UnavailableError",
    "UnimplementedError",
    "Usage",
    "save",
]
