"""Clients of a Sidelight server, and what can be done with what they bring back. Installs without torch.

from sidelight.client import Client

with Client("127.0.0.1:50051") as client:
for step in client.attribute("I don't want to be your friend."):
print(step.text, step.cross.shape)
"""

from .client import AsyncAttributionStream, AsyncClient, AttributionStream, Client
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
from .options import Capture, Decoding, Greedy, Sampling
from .results import Attribution, Layout, Model, ModelAttention, Started, Step, Token, Usage
from .saving import save

__all__ = [
    "AsyncAttributionStream",
    "AsyncClient",
    "Attribution",
    "AttributionStream",
    "CancelledError",
    "Capture",
    "Client",
    "DeadlineExceededError",
    "Decoding",
    "Greedy",
    "InternalError",
    "InvalidArgumentError",
    "Layout",
    "Model",
    "ModelAttention",
    "NotFoundError",
    "ResourceExhaustedError",
    "Sampling",
    "SidelightError",
    "Started",
    "Step",
    "Token",
    "UnavailableError",
    "UnimplementedError",
    "Usage",
    "save",
]
