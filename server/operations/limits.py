"""What operators limit, beside the numbers of slots and of waiting requests: the limits of calls, and those of a model.

The defaults are those of the settings of the same names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CallLimits:
    """The limits of connections, calls and streams, for all models together.

    Attributes:
        max_message_bytes: The most bytes of one message of a client.
        max_metadata_bytes: The most bytes of the metadata of a call, names and values.
        max_concurrent_streams: The most open calls of a connection. A client sends further calls once others have
            ended.
        min_ping_interval: The least seconds between two pings of a connection without open calls.
        max_connection_age: Seconds after which a connection takes no further calls; None: connections have no end.
        arrival_timeout: Seconds within which a request must arrive after its call has begun.
        reader_timeout: Seconds for which a reader may take no message that waits for it.
        stream_idle_timeout: Seconds for which the client of an open stream may send nothing while nothing of it runs.
        max_stream_age: Seconds after which a stream ends.
        max_texts_per_stream: The most texts that run at the same time on one AttributeMany stream.
    """

    max_message_bytes: int = 4 * 1024**2
    max_metadata_bytes: int = 16 * 1024
    max_concurrent_streams: int = 4096
    min_ping_interval: float = 10.0
    max_connection_age: float | None = None
    arrival_timeout: float = 10.0
    reader_timeout: float = 60.0
    stream_idle_timeout: float = 600.0
    max_stream_age: float = 12 * 3600.0
    max_texts_per_stream: int = 64


@dataclass(frozen=True)
class ModelLimits:
    """The limits of requests to one model, beside its numbers of tokens.

    Attributes:
        max_new_tokens: The most tokens that are written for a request; None: as many as the model has positions.
        max_step_bytes: The most bytes of attention of one step, and of one row of the encoder.
        max_pass_bytes: The most bytes of attention that one pass makes: of an encoder, or of a target that is read at
            once by a model that gives whole matrices.
        max_follow_streams: The most open follow streams.
    """

    max_new_tokens: int | None = None
    max_step_bytes: int = 64 * 1024**2
    max_pass_bytes: int = 1024**3
    max_follow_streams: int = 256
