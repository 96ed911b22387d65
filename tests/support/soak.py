"""Sends very many calls, most of which end early, and counts what the server still holds afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from raw_http2 import RawConnection
from rpc_mix import DrawnCall, draw_call
from sidelight.server.api.server import Server
from sidelight.server.engine.engine import Engine, EngineConfig
from sidelight.server.models.loader import LoadedModel

SLOTS, QUEUE, AT_ONCE = 8, 24, 26  # some calls have several requests: more than slots and queue hold, now and then
# How clients end calls.
ENDS = ["to the end", "to the end", "cancelled", "cancelled at once", "deadline", "left unread", "reset", "killed"]


@dataclass
class Usage:
    """What an idle server holds."""

    slots: int  # in use
    requests: int  # that the engine knows
    calls: int  # that are open
    tasks: int  # of the event loop
    threads: int
    descriptors: int  # open files and sockets
    memory: int  # bytes, resident


@dataclass
class Outcome:
    """How the calls ended, and what the server held before and after."""

    ends: Counter[str]
    before: Usage
    after: Usage


async def soak(loaded: LoadedModel, count: int, seed: int = 0, *, collects: bool = True) -> Outcome:
    """Sends `count` calls of every kind to a server of its own, and ends them as clients do.

    Without `collects`, Python's garbage collector is off until all is counted: nothing may wait for it.
    """
    server = Server([loaded], "127.0.0.1:0", EngineConfig(max_running=SLOTS, max_waiting=QUEUE))
    address = await server.start()
    chance = random.Random(seed)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            # Makes what is made once: threads, buffers, caches of plans.
            await send_calls(channel, address, chance, min(500, count))
            before = await _usage(server, collects=True)
            if not collects:
                gc.disable()
            ends = await send_calls(channel, address, chance, count)
            after = await _usage(server, collects=collects)
    finally:
        gc.enable()
        await server.stop()
    return Outcome(ends, before, after)


async def send_calls(
    channel: grpc.aio.Channel, address: str, chance: random.Random, count: int, at_once: int = AT_ONCE
) -> Counter[str]:
    """Sends `count` calls, `at_once` at a time. Returns how many ended in which way."""
    ends: Counter[str] = Counter()
    numbers = iter(range(count))

    async def work() -> None:
        for _ in numbers:
            ends[await _send_one(channel, address, chance)] += 1

    await asyncio.gather(*(work() for _ in range(at_once)))
    return ends


async def _send_one(channel: grpc.aio.Channel, address: str, chance: random.Random) -> str:
    """Sends a call. Returns how the call ended."""
    end, drawn = chance.choice(ENDS), draw_call(chance)
    if end in ("reset", "killed"):
        return await _break_off(address, drawn, end, chance)
    deadline = chance.uniform(0.001, 0.1) if end == "deadline" else 60
    method: Any = channel.stream_stream(drawn.path, request_serializer=_serialize)
    call = method(timeout=deadline)
    max_responses = 0 if end == "cancelled at once" else chance.randrange(1, 6) if end == "cancelled" else None
    writing = asyncio.create_task(_write(call, drawn.messages))
    try:
        if end == "left unread":
            await call.read()
            await asyncio.sleep(chance.uniform(0, 0.05))
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
        if "from Core" in (error.details() or ""):  # what gRPC's client says for itself
            return "ended by the server while the client sent"
        if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
            await asyncio.sleep(0.1)  # shorter than the second that the server asks for
        is_fault = error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
        return error.code().name + (f": {error.details()}" if is_fault else "")
    finally:
        writing.cancel()
    return end


async def _write(call: Any, messages: list[Message]) -> None:
    """Sends the messages of a call, and closes the client's side. Whatever fails shows in what is read."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
        for message in messages:
            await call.write(message)
        await call.done_writing()


async def _break_off(address: str, drawn: DrawnCall, end: str, chance: random.Random) -> str:
    """Sends a call over a connection of its own, and breaks off at a random point: the stream, or the connection."""
    messages = [message.SerializeToString() for message in drawn.messages]
    connection = RawConnection(address, window=chance.choice([0, 65535]))
    try:
        num_whole = chance.randrange(len(messages) + 1)
        stream = connection.begin(drawn.path)
        for message in messages[:num_whole]:
            connection.send_message(stream, message)
        if num_whole < len(messages):  # half of a message, or nothing more
            begin = chance.randrange(len(messages[num_whole]) + 1)
            connection.send_message(stream, messages[num_whole][:begin], of=len(messages[num_whole]))
        elif chance.random() < 0.7:
            connection.end(stream)
        await asyncio.sleep(chance.choice([0, chance.uniform(0, 0.1)]))
        if end == "reset":
            connection.reset(stream, chance.choice([0, 2, 8]))
            await asyncio.sleep(chance.choice([0, 0.01]))
        else:
            connection.kill()
    finally:
        connection.close()
    return end


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


async def _usage(server: Server, *, collects: bool) -> Usage:
    """What the server holds when it is idle, or after ten seconds if it is not idle by then."""
    (engine,) = server._engines
    for _ in range(200):
        slots, requests, calls = _count_work(server, engine)
        if not requests and not slots and not calls:
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    if collects:
        gc.collect()
    return Usage(
        *_count_work(server, engine),
        len(asyncio.all_tasks()),
        threading.active_count(),
        num_descriptors(os.getpid()),
        resident(os.getpid()),
    )


def _count_work(server: Server, engine: Engine) -> tuple[int, int, int]:
    """How many slots are in use, requests are known, and calls are open."""
    core = engine._core
    assert core is not None
    slots = engine.num_slots - core.requests.runner.num_free_slots
    return slots, len(list(core.requests)) + len(engine._admission), len(server._grpc_server.calls._calls)


def num_descriptors(process: int) -> int:
    """How many files and sockets a process has open; 0 if the system does not say."""
    with contextlib.suppress(OSError):
        return len(list(Path(f"/proc/{process}/fd").iterdir()))
    return 0


def resident(process: int) -> int:
    """The resident memory of a process in bytes; 0 if the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0
