"""The requests that wait for the engine, and which of them the engine begins next.

First come, first served, among requests whose readers read. A request whose reader has not taken its first event is
begun when the engine has nothing else to do. Another reader may take the first events and then nothing, which shows
only after the work: where many readers of a client do so, its requests come after those of other clients, the smallest
and the oldest in turn. Knows clients as keys; knows neither gRPC nor models.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T", bound=Hashable)

# So many readers of a client may stall, and the client is as others are. A proxy has some stalled readers at any time.
_FEW = 8

# One of so many requests that begin is of a client that is held back, so that none waits for ever.
_SHARE = 8


class HeldBack:
    """The requests that come after others, by what their readers take."""

    def __init__(
        self,
        stalled: Collection[Hashable] = (),
        stalled_of: Mapping[Hashable, int] | None = None,
        reading_of: Mapping[Hashable, int] | None = None,
    ) -> None:
        """`stalled` are the requests whose readers take nothing.

        Of each client, `stalled_of` says how many readers have stalled after their first event, and `reading_of` how
        many read.
        """
        self.requests = frozenset(stalled)
        every, reading = stalled_of or {}, reading_of or {}
        self.clients = frozenset(client for client, count in every.items() if _mostly(count, reading.get(client, 0)))
        # Stalled readers can also be spread over many clients: whether the other clients are like one held back.
        rest = [sum(n for client, n in of.items() if client not in self.clients) for of in (every, reading)]
        self.others = _mostly(*rest)

    def __bool__(self) -> bool:
        return bool(self.requests or self.clients or self.others)


def _mostly(stalled: int, reading: int) -> bool:
    return stalled > max(_FEW, reading)


class _Entry(NamedTuple):
    client: Hashable
    size: int


class WaitingQueue(Generic[T]):
    """Requests that wait, in the order in which they have come. For one thread at a time."""

    def __init__(self) -> None:
        self._entries: dict[T, _Entry] = {}
        self._held_back = HeldBack()
        self._others_begun = 0  # since a request began that comes after others
        self._takes_oldest = False  # the next time that a request is chosen by its size or by its age
        self._found: tuple[bool, bool, T | None] | None = None  # what `next` was asked, and what it found

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries)

    def add(self, request: T, client: Hashable, size: int) -> None:
        """Adds a request behind the others. `size` is in tokens."""
        self._entries[request] = _Entry(client, size)
        self._found = None

    def remove(self, request: T) -> None:
        """Takes a request out that is not begun."""
        del self._entries[request]
        self._found = None

    def begin(self, request: T) -> None:
        """Takes a request out that is begun."""
        if self.is_held_back(request):
            self._takes_oldest = not self._takes_oldest
        self._others_begun = 0 if self._comes_after_others(request) else self._others_begun + 1
        self.remove(request)

    def clear(self) -> None:
        """Takes all requests out."""
        self._entries.clear()
        self._found = None

    def hold_back(self, held_back: HeldBack) -> None:
        """Says which requests come after others from now on."""
        self._held_back = held_back
        self._found = None

    def has_stalled(self, request: T) -> bool:
        """Whether a request's reader takes nothing, as far as is known."""
        return request in self._held_back.requests

    def next(self, *, is_idle: bool, has_time: bool) -> T | None:
        """The request to begin next.

        `is_idle` says whether nothing is worked on for a reader that reads, `has_time` whether a request that is held
        back may begin now. Without time, its share is put off, and nobody else waits for it.
        """
        if not self._held_back:
            return next(iter(self._entries), None)
        if self._found is None or self._found[:2] != (is_idle, has_time):
            self._found = is_idle, has_time, self._find(is_idle=is_idle, has_time=has_time)
        return self._found[2]

    def is_held_back(self, request: T) -> bool:
        """Whether a request that waits is not begun in the order in which requests have come."""
        return self._held_back.others or self._comes_after_others(request)

    def newest_held_back(self, newcomer: Hashable) -> T | None:
        """The last request that comes after others, to give its place to a client whose requests do not."""
        if newcomer in self._held_back.clients:
            return None
        return next((request for request in reversed(self._entries) if self._comes_after_others(request)), None)

    def _comes_after_others(self, request: T) -> bool:
        return self.has_stalled(request) or self._entries[request].client in self._held_back.clients

    def _find(self, *, is_idle: bool, has_time: bool) -> T | None:
        reading = [request for request in self._entries if not self.has_stalled(request)]
        others = [request for request in reading if not self._comes_after_others(request)]
        last = [request for request in reading if self._comes_after_others(request)]
        if last and has_time and (not others or self._others_begun >= _SHARE - 1):
            return self._in_turn(last)
        if others and not self._held_back.others:
            return others[0]
        if not has_time:
            return None
        if others:
            return self._in_turn(others)
        return next(iter(self._entries), None) if is_idle else None

    def _in_turn(self, requests: list[T]) -> T:
        """The oldest and the smallest in turn; the newest of several that are as small."""
        if self._takes_oldest:
            return requests[0]
        return min(reversed(requests), key=self._size)

    def _size(self, request: T) -> int:
        return self._entries[request].size
