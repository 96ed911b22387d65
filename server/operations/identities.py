"""The name of a client. Two calls of one identity may come over two connections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Identity:
    """A client that a token or a certificate names. Equal where the name is equal, whatever the limits are by now.

    Attributes:
        source: What names the client.
        name: The name.
        max_requests: How many requests the client may have at once; None: the server's limits are the only ones.
        max_waiting: How many of the client's requests may wait in the queue of a model; None: no limit of its own.
    """

    source: Literal["token", "certificate"]
    name: str
    max_requests: int | None = field(default=None, compare=False)
    max_waiting: int | None = field(default=None, compare=False)
