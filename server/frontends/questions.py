"""Questions: what the engine's process asks one front end, and the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

# Seconds for which a front end may take to answer: one that hangs does not hold up a client of another one.
_ANSWER_SECONDS = 2.0


class Questions:
    """The questions to one front end that have no answer yet. For one event loop."""

    def __init__(self, send: Callable[..., None]) -> None:
        """`send` sends a message: its name and its arguments, a number of the question first."""
        self._send = send
        self._asked: dict[int, asyncio.Future[Any]] = {}  # by number
        self._num_asked = 0

    async def ask(self, name: str, *arguments: Any) -> Any:
        """Asks. Returns the answer; None where there is none in time."""
        self._num_asked += 1
        number, future = self._num_asked, asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._send(name, number, *arguments)
        done, _ = await asyncio.wait([future], timeout=_ANSWER_SECONDS)
        return future.result() if done else None

    def answer(self, number: int, answer: Any) -> None:
        """Gives the call of `ask` the answer to its question."""
        self._asked.pop(number).set_result(answer)

    def close(self) -> None:
        """Ends all questions: the front end has gone."""
        for future in self._asked.values():
            if not future.done():
                future.set_result(None)
