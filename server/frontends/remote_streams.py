"""The follow streams of front ends: they take places in the engine's process. Both ends of this."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..engine import Engine, StreamHolder

# What sends a message, and what sends one that gets a reply: with the name and the arguments of the message.
Send = Callable[..., None]
Ask = Callable[..., Awaitable[Any]]


class SessionStreams:
    """The open streams of one front end for one model, in the engine's process. See `StreamHolder`."""

    def __init__(self, model: str, ask: Ask, send: Send) -> None:
        self._model, self._ask, self._send = model, ask, send

    async def find_idlest(self) -> tuple[float, int] | None:
        """Asks the front end. Returns None where it does not answer in time."""
        return await self._ask("find_idlest", self._model)

    def end_idle(self, number: int) -> None:
        """Has the front end end a stream."""
        self._send("end_idle", self._model, number)


class SessionPlaces:
    """The places of the streams of one front end, in the engine's process."""

    def __init__(self, engines: Mapping[str, Engine], ask: Ask, send: Send) -> None:
        """`engines` are by the names of their models."""
        self._places = {name: engine.follow_places for name, engine in engines.items()}
        self._streams = {name: SessionStreams(name, ask, send) for name in engines}

    async def open(self, model: str, number: int) -> None:
        """Gives a stream a place. Raises RequestError."""
        await self._places[model].open(self._streams[model], number)

    def close(self, model: str, number: int) -> None:
        """Takes the place of a stream back."""
        self._places[model].close(self._streams[model], number)

    def close_all(self) -> None:
        """Takes all places back: the front end has gone."""
        for name, places in self._places.items():
            places.close_all(self._streams[name])


class RemotePlaces:
    """The places of the follow streams of a model, in a front end. See `FollowPlaces`. For one event loop."""

    def __init__(self, model: str, ask: Ask, send: Send) -> None:
        """`ask` and `send` are those of the link."""
        self._model, self._ask, self._send = model, ask, send
        self._holder: StreamHolder | None = None  # all streams of a model in this process have one
        self._answering: set[asyncio.Task[None]] = set()

    async def open(self, holder: StreamHolder, number: int) -> None:
        """Gives a stream a place. Raises RequestError."""
        self._holder = holder
        await self._ask("open_stream", self._model, number, undo=lambda _: self.close(holder, number))

    def close(self, holder: StreamHolder, number: int) -> None:
        """Gives the place of a stream back."""
        del holder
        self._send("close_stream", self._model, number)

    def end_idle(self, number: int) -> None:
        """Ends a stream, whose place another one has got."""
        if self._holder is not None:
            self._holder.end_idle(number)

    def answer_idlest(self, number: int) -> None:
        """Answers the question of this number: which stream has been idle for longest."""

        async def answer() -> None:
            idlest = None if self._holder is None else await self._holder.find_idlest()
            self._send("answer", number, idlest)

        task = asyncio.ensure_future(answer())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
