"""A `sidelight serve` process, and a light client that keeps a number of requests in flight.

The client shares the cores with the server. So it uses the bare stubs, parses every message, counts the steps and
checks the shape of their attention, and makes no arrays.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import numpy as np
from google.protobuf.duration_pb2 import Duration
from sidelight.client.cli.demo import await_server, stop_server
from sidelight.v1 import attention_pb2, attribution_service_pb2, attribution_service_pb2_grpc
from workloads import Source, Workload

if TYPE_CHECKING:
    from sidelight.v1.attribution_service_pb2_grpc import AttributionServiceAsyncStub

# The command of this Python, or else the first command on the path.
_BIN = str(Path(sys.executable).parent)
COMMAND = shutil.which("sidelight", path=os.pathsep.join([_BIN, os.environ.get("PATH", "")])) or "sidelight"

# The captures of requests: cross-attention of every layer and head, or no attention.
EVERY_HEAD = attention_pb2.Capture(kinds=[attention_pb2.ATTENTION_KIND_CROSS])
NOTHING = attention_pb2.Capture(none=True)


@dataclass
class Stream:
    """One request and its answer. Times are of `time.perf_counter`, in seconds."""

    sent: float
    first: float = 0.0  # the first step's message
    last: float = 0.0  # the last step's message
    ended: float = 0.0
    target: list[int] = field(default_factory=list)
    messages: int = 0
    admission_to_first: float = 0.0  # seconds, as the server counts them
    steps: list[attribution_service_pb2.Step] = field(default_factory=list)  # only with `keep`

    @property
    def between_steps(self) -> float | None:
        """Seconds from one step to the next, on average; None for a single step."""
        return (self.last - self.first) / (len(self.target) - 1) if len(self.target) > 1 else None


@contextlib.contextmanager
def serve(folder: Path, name: str, options: Sequence[str]) -> Iterator[str]:
    """Serves a model in a process of its own; gives the address. Raises ServerError."""
    with start_server([COMMAND, "serve", str(folder), "--name", name, *options], {}) as (address, _):
        yield address


@contextlib.contextmanager
def start_server(command: Sequence[str], variables: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Runs a command that serves, with variables of its own; gives the address and the process's id."""
    # The server chooses its threads itself.
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [*command, "--address", "127.0.0.1:0"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**environment, **variables}
        )
        with process:
            try:
                yield await_server(process, log)[1], process.pid
            finally:
                stop_server(process)


def server_seconds(server: int) -> float:
    """Returns the seconds of the processor that a process has taken."""
    fields = Path(f"/proc/{server}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def find_server() -> int:
    """Returns the id of the server's process: a child of this one."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and b"\x00serve\x00" in (folder / "cmdline").read_bytes():
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                return int(folder.name)
    raise RuntimeError("there is no process of a server")


def run(
    address: str,
    workload: Workload,
    concurrency: int,
    *,
    capture: attention_pb2.Capture = NOTHING,
    axes: Sequence[int] = (),
    keep: bool = False,
    metadata: Sequence[tuple[str, str]] = (),
    connections: int = 1,
) -> tuple[float, list[Stream]]:
    """Sends a workload's sentences, the next as soon as one ends. Raises RuntimeError if an answer is wrong.

    Args:
        address: The address of the server.
        workload: The workload.
        concurrency: The number of requests in flight.
        capture: `EVERY_HEAD` or `NOTHING`.
        axes: The expected shape of a step's attention, without the axis of source positions.
        keep: Whether to keep the first sentence's steps.
        metadata: What each call sends beside its request.
        connections: The number of connections that the requests are spread over.

    Returns:
        Seconds from the first request to the end of the last stream, and the streams in the sentences' order.
    """
    return asyncio.run(_run(address, workload, concurrency, capture, axes, keep, metadata, connections))


def run_apart(address: str, workload: Workload, num_streams: int) -> tuple[float, list[Stream]]:
    """As `run`, with a connection for each stream, and all cross-attention of the bundled model."""
    axes = (3, 4)  # its layers and heads
    return run(address, workload, num_streams, capture=EVERY_HEAD, axes=axes, connections=num_streams)


async def _run(
    address: str,
    workload: Workload,
    concurrency: int,
    capture: attention_pb2.Capture,
    axes: Sequence[int],
    keep: bool,
    metadata: Sequence[tuple[str, str]],
    connections: int,
) -> tuple[float, list[Stream]]:
    requests = [request_of(source, workload.new_tokens, capture) for source in workload.sentences(concurrency)]
    streams: dict[int, Stream] = {}
    waiting = iter(enumerate(requests))
    async with contextlib.AsyncExitStack() as stack:
        stubs: list[Any] = []
        for _ in range(connections):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            # Stubs for asyncio differ from other stubs only in their type hints.
            stubs.append(attribution_service_pb2_grpc.AttributionServiceStub(channel))
            await channel.channel_ready()

        async def work(stub: Any) -> None:
            for index, request in waiting:  # shared by all the workers
                streams[index] = await _read(stub, request, axes, keep=keep and index == 0, metadata=metadata)

        began = time.perf_counter()
        await asyncio.gather(*(work(stubs[number % connections]) for number in range(concurrency)))
        seconds = time.perf_counter() - began
    return seconds, [streams[index] for index in range(len(requests))]


def request_of(
    source: Source, new_tokens: int | None, capture: attention_pb2.Capture
) -> attribution_service_pb2.AttributeRequest:
    """Makes a greedy request for a source. `new_tokens` forces the number of tokens."""
    request = attribution_service_pb2.AttributeRequest()
    if isinstance(source, str):
        request.source.text = source
    else:
        request.source.token_ids.ids.extend(source)
    request.decoding.greedy.SetInParent()
    if new_tokens is not None:
        request.decoding.max_new_tokens = request.decoding.min_new_tokens = new_tokens
    request.capture.CopyFrom(capture)
    return request


async def _read(
    stub: AttributionServiceAsyncStub,
    request: attribution_service_pb2.AttributeRequest,
    axes: Sequence[int],
    *,
    keep: bool,
    metadata: Sequence[tuple[str, str]],
) -> Stream:
    stream = Stream(time.perf_counter())
    shape: list[int] = []
    finished: attribution_service_pb2.Finished | None = None
    async for response in stub.Attribute(request, metadata=tuple(metadata)):
        event = response.WhichOneof("event")
        stream.messages += 1
        if event == "steps":
            stream.last = time.perf_counter()
            stream.first = stream.first or stream.last
            for step in response.steps.steps:
                _check(step, len(stream.target), shape)
                stream.target.append(step.token.id)
            if keep:
                stream.steps.extend(response.steps.steps)
        elif event == "started":
            shape = [] if request.capture.none else [len(response.started.source), *axes]
        elif event == "finished":
            finished = response.finished
    stream.ended = time.perf_counter()
    if finished is None or finished.usage.target_tokens != len(stream.target):
        raise RuntimeError(f"a stream of {len(stream.target)} steps ended without saying so")
    usage = finished.usage
    stream.admission_to_first = _seconds(usage.time_to_first_step) - _seconds(usage.queue_time)
    return stream


def _check(step: attribution_service_pb2.Step, index: int, shape: list[int]) -> None:
    cross = step.cross
    if step.index != index or list(cross.shape) != shape or len(cross.values) != 4 * math.prod(shape) * bool(shape):
        raise RuntimeError(f"step {step.index}, shape {list(cross.shape)}, is not step {index} of shape {shape}")


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def cross_of(steps: Sequence[attribution_service_pb2.Step]) -> np.ndarray:
    """The cross-attention of steps, float32 `[steps, positions, layers, heads]`."""
    return np.stack([np.frombuffer(step.cross.values, "<f4").reshape(step.cross.shape) for step in steps])
