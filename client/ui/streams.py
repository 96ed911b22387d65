"""One WebSocket for each stream. The first message of the page says what to do; closing the socket cancels the stream.

Steps go to the page as they come. Where the page does not read, the socket waits, and so does the server's stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any

import grpc
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..client import AsyncClient
from ..errors import InvalidArgumentError, ResourceExhaustedError, SidelightError, invalid_argument
from ..follow import AsyncFollowStream, AwaitingSource
from ..offset_units import Token
from ..results import Finished, Started, Step
from . import frames
from .requests import (
    build_align_options,
    build_attribute_options,
    build_follow_options,
    read_message,
    read_start,
)
from .results import Results

# How many streams the pages have open together, at most.
MAX_STREAMS = 64
# How long a socket may say nothing before its first message, in seconds.
_START_TIMEOUT = 30.0
# The most attention of one stream, in bytes as the page gets it: a browser must hold it.
_MAX_ATTENTION_BYTES = 256 << 20


class Streams:
    """The streams of all pages, over one connection to the server."""

    def __init__(self, client: AsyncClient, results: Results) -> None:
        self._client = client
        self._results = results
        self._num_open = 0

    async def handle(self, socket: WebSocket) -> None:
        """Serves one socket, up to the end of its stream."""
        await socket.accept()
        if self._num_open >= MAX_STREAMS:
            message = f"at most {MAX_STREAMS} streams are open at the same time"
            await _send_error(socket, ResourceExhaustedError(message, grpc.StatusCode.RESOURCE_EXHAUSTED))
            return
        self._num_open += 1
        try:
            await self._serve(socket)
        except (WebSocketDisconnect, asyncio.TimeoutError):
            pass
        except SidelightError as error:
            await _send_error(socket, error)
        finally:
            self._num_open -= 1
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the page may have closed it first
                await socket.close()

    async def _serve(self, socket: WebSocket) -> None:
        start = read_start(await asyncio.wait_for(_receive_text(socket), _START_TIMEOUT))
        if start["task"] == "follow":
            await self._follow(socket, start)
        else:
            work = self._attribute if start["task"] == "attribute" else self._align
            await _run_until_closed(work(socket, start), _wait_closed(socket))

    async def _align(self, socket: WebSocket, start: Mapping[str, Any]) -> None:
        options = build_align_options(start)
        alignment = await self._client.align(start.get("source", ""), start.get("target"), **options)
        await socket.send_text(frames.encode_json(frames.alignment_message(alignment)))

    async def _attribute(self, socket: WebSocket, start: Mapping[str, Any]) -> None:
        options = build_attribute_options(start)
        async with self._client.attribute(start.get("source", ""), **options) as stream:
            await socket.send_text(frames.encode_json(frames.started_message(await stream.started())))
            sender = _StepSender(socket)
            async for step in stream:
                await sender.send(step)
            result = await stream.result()
        if result.encoder_self is not None:
            array = [("encoder_self", result.encoder_self)]
            sender.count(array)
            await socket.send_bytes(frames.encode_binary({"event": "encoder_self"}, array))
        finished = Finished(result.text, result.stop_reason, result.usage, alignment=result.alignment)
        message = {**frames.finished_message(finished), "result": self._results.add(result)}
        await socket.send_text(frames.encode_json(message))

    async def _follow(self, socket: WebSocket, start: Mapping[str, Any]) -> None:
        async with self._client.follow(**build_follow_options(start)) as stream:
            drafts = _Drafts(self._client, socket, start)
            try:
                await _run_until_closed(_pass_events(socket, stream, drafts), _pass_source(socket, stream, drafts))
            finally:
                await drafts.cancel()


class _StepSender:
    """Sends steps, and refuses more attention than a page can hold."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._previous: Token | None = None
        self._num_bytes = 0

    async def send(self, step: Step) -> None:
        """Sends a step. Raises ResourceExhaustedError."""
        arrays = frames.step_arrays(step)
        self.count(arrays)
        message = frames.step_message(step, self._previous)
        await self._socket.send_bytes(frames.encode_binary(message, arrays))
        self._previous = step.token

    def count(self, arrays: list[tuple[str, Any]]) -> None:
        """Counts the bytes of arrays. Raises ResourceExhaustedError."""
        self._num_bytes += sum(2 * array.size for _, array in arrays)
        if self._num_bytes > _MAX_ATTENTION_BYTES:
            message = f"the attention of this text is larger than {_MAX_ATTENTION_BYTES >> 20} MiB: choose a preset"
            raise ResourceExhaustedError(message, grpc.StatusCode.RESOURCE_EXHAUSTED, "capture.heads")


class _Drafts:
    """How the target would go on if the source ended here: what is held back, and may still change."""

    def __init__(self, client: AsyncClient, socket: WebSocket, start: Mapping[str, Any]) -> None:
        self._client = client
        self._socket = socket
        self._options = build_attribute_options({**start, "kind": "none", "method": None, "row": None})
        self._task: asyncio.Task[None] | None = None
        self.source = ""
        self.ids: list[int] = []  # of the tokens that are written

    async def begin(self) -> None:
        """Writes a draft for the source as it is now. The draft before it ends."""
        await self.cancel()
        self._task = asyncio.create_task(self._write(self.source, [*self.ids]))

    async def _write(self, source: str, ids: list[int]) -> None:
        options = {**self._options, **({"prefix": ids} if ids else {})}
        try:
            async with self._client.attribute(source, **options) as stream:  # pyright: ignore[reportArgumentType]
                async for step in stream:
                    text = step.text
                    await self._socket.send_text(frames.encode_json({"event": "draft", "text": text}))
        except SidelightError:  # a draft is not needed, and the stream itself tells what is wrong
            pass

    async def cancel(self) -> None:
        """Ends the draft that is being written."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


async def _pass_events(socket: WebSocket, stream: AsyncFollowStream, drafts: _Drafts) -> None:
    """Passes the events of the server to the page."""
    sender = _StepSender(socket)
    async for event in stream:
        if isinstance(event, Step):
            await drafts.cancel()
            drafts.ids.append(event.token.id)
            await sender.send(event)
        elif isinstance(event, Started):
            await socket.send_text(frames.encode_json(frames.started_message(event)))
        elif isinstance(event, AwaitingSource):
            message = {"event": "awaiting", "steps": event.num_steps, "firm": event.firm_source_tokens}
            await socket.send_text(frames.encode_json(message))
            await drafts.begin()
        elif isinstance(event, Finished):
            await socket.send_text(frames.encode_json(frames.finished_message(event)))


async def _pass_source(socket: WebSocket, stream: AsyncFollowStream, drafts: _Drafts) -> None:
    """Passes the source of the page to the server. Raises InvalidArgumentError."""
    while True:
        message = read_message(await _receive_text(socket))
        if not message.keys() <= {"add", "done"}:
            raise invalid_argument("message", 'must have "add" or "done"')
        if (text := message.get("add")) is not None:
            if not isinstance(text, str):
                raise invalid_argument("add", "must be a text")
            drafts.source += text
            await stream.add_source(text)
        if message.get("done"):
            await stream.complete_source()
            await _wait_closed(socket)


async def _run_until_closed(work: Coroutine[Any, Any, None], closed: Awaitable[None]) -> None:
    """Runs the work until it is done, or until the page is gone. Raises the work's error."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(closed)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if task in done:
            task.result()


async def _wait_closed(socket: WebSocket) -> None:
    """Waits until the page has closed the socket. Raises InvalidArgumentError where the page says something instead."""
    message = await socket.receive()
    if message["type"] != "websocket.disconnect":
        raise invalid_argument("message", "comes after the end")


async def _receive_text(socket: WebSocket) -> str:
    """Receives a message. Raises WebSocketDisconnect, and InvalidArgumentError for a binary message."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    text = message.get("text")
    if text is None:
        raise InvalidArgumentError("a message must be a text", grpc.StatusCode.INVALID_ARGUMENT, "message")
    return text


async def _send_error(socket: WebSocket, error: SidelightError) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await socket.send_text(frames.encode_json(frames.error_message(error)))
        await socket.close()
