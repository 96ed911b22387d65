"""Sends very many requests, most of which end early, and counts what the server still holds afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from sidelight.server.api.server import Server
from sidelight.server.engine.engine import Engine, EngineConfig
from sidelight.server.models.loader import LoadedModel
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as services

WORDS = ["the", "old", "house", "by", "the", "river", "was", "sold", "to", "a", "young", "man", "who", "never", "came"]
SLOTS, QUEUE, AT_ONCE = 8, 16, 26  # more concurrent requests than slots and queue hold: some are refused


@dataclass
class Usage:
    """What an idle server holds."""

    slots: int  # in use
    requests: int  # that the engine knows
    tasks: int  # of the event loop
    threads: int
    memory: int  # bytes, resident


@dataclass
class Outcome:
    """How the requests ended, and what the server held before and after."""

    ends: Counter[str]
    before: Usage
    after: Usage


async def soak(loaded: LoadedModel, count: int, seed: int = 0) -> Outcome:
    """Sends `count` requests of every kind to a server of its own, and ends them as clients do."""
    server = Server([loaded], "127.0.0.1:0", EngineConfig(max_running=SLOTS, max_waiting=QUEUE))
    address = await server.start()
    (engine,) = server._engines
    random_ = random.Random(seed)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = services.AttributionServiceStub(channel)
            await _send(stub, random_, 500)  # makes what is made once: threads, buffers, caches of plans
            before = await _usage(engine)
            ends = await _send(stub, random_, count)
            after = await _usage(engine)
    finally:
        await server.stop()
    return Outcome(ends, before, after)


async def _send(stub: Any, random_: random.Random, count: int) -> Counter[str]:
    ends: Counter[str] = Counter()
    numbers = iter(range(count))

    async def work() -> None:
        for _ in numbers:
            ends[await _send_one(stub, random_)] += 1

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return ends


async def _send_one(stub: Any, random_: random.Random) -> str:
    """Sends a request. Returns how the request ended."""
    end = random_.choice(["to the end", "to the end", "cancelled", "cancelled at once", "deadline", "left unread"])
    deadline = random_.uniform(0.001, 0.1) if end == "deadline" else 60
    call = stub.Attribute(_request(random_), timeout=deadline)
    max_responses = 0 if end == "cancelled at once" else random_.randrange(1, 6) if end == "cancelled" else None
    try:
        if end == "left unread":
            await call.read()
            await asyncio.sleep(random_.uniform(0, 0.05))
            call.cancel()
            return end
        num_responses = 0
        while max_responses is None or num_responses < max_responses:
            response = await call.read()
            if response is grpc.aio.EOF:
                return "to the end"
            num_responses += 1
        call.cancel()
    except asyncio.CancelledError:
        return end
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
            await asyncio.sleep(0.1)  # shorter than the second that the server asks for
        return error.code().name
    return end


def _request(random_: random.Random) -> pb.AttributeRequest:
    request = pb.AttributeRequest()
    request.source.text = " ".join(random_.choices(WORDS, k=random_.randrange(1, 15)))
    request.decoding.max_new_tokens = random_.randrange(1, 24)
    request.decoding.ignore_eos = random_.random() < 0.5
    if random_.random() < 0.3:
        request.decoding.sampling.seed = random_.randrange(100)
        request.decoding.sampling.top_p = 0.9
    if random_.random() < 0.3:
        request.decoding.repetition_penalty = 1.2
    if random_.random() < 0.2:
        request.prefix.text = "Das alte Haus"
    if random_.random() < 0.1:
        request.given.text = "Das alte Haus wurde verkauft"
        request.ClearField("decoding")
        request.ClearField("prefix")
    if random_.random() < 0.5:
        request.scores.append(1)
    kinds = [kind for kind in (1, 2, 3) if random_.random() < 0.4]
    request.capture.kinds.extend(kinds)
    if random_.random() < 0.3:
        request.capture.over_heads = attention.REDUCTION_MEAN
    if random_.random() < 0.3:
        request.capture.top_k = 3
    if not kinds and random_.random() < 0.5:
        request.capture.Clear()
        request.capture.none = True
    return request


async def _usage(engine: Engine) -> Usage:
    """What the server holds when it is idle, or after ten seconds if it is not idle by then."""
    for _ in range(200):
        core = engine._core
        assert core is not None
        requests = len(list(core.requests)) + len(engine._admission)
        slots = engine.num_slots - core.requests.runner.num_free_slots
        if not requests and not slots:
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
    gc.collect()
    return Usage(slots, requests, len(asyncio.all_tasks()), threading.active_count(), resident())


def resident() -> int:
    """The resident memory of this process in bytes; 0 if the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0
