"""The order of waiting requests, and which clients come after others.

Clients take turns, each with its oldest request, among requests whose readers take outputs. A request whose reader has
not taken its first output starts when the engine has nothing else to do. Another reader may take the first outputs and
then nothing, which shows only after the work is done. Where many readers of one client do so, the requests of this
client come after the requests of other clients, the smallest and the oldest in turn. In a full queue, requests that
come after others give their places to a newcomer, and then requests of the client with the most. Knows clients as keys;
knows neither gRPC nor models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping
from itertools import zip_longest
from typing import Generic, NamedTuple, TypeVar, cast

T = TypeVar("T", bound=Hashable)

# Readers of a client that may stall before the client is held back. A proxy has some stalled readers at any time.
_MAX_STALLED = 8

# One request in this number of starts is of a client that is held back, so that no request waits for ever.
_SHARE = 8


class HeldBack:
    """Which requests come after others, by what their readers take."""

    def __init__(
        self,
        stalled: Collection[Hashable] = (),
        stalled_of: Mapping[Hashable, int] | None = None,
        reading_of: Mapping[Hashable, int] | None = None,
    ) -> None:
        """`stalled` holds the requests whose readers take nothing.

        `stalled_of` is the number of each client's readers that have stalled after their first output, and
        `reading_of` the number of each client's readers that take outputs.
        """
        self.requests = frozenset(stalled)
        num_stalled, num_reading = stalled_of or {}, reading_of or {}
        self.stalled_of, self.reading_of = num_stalled, num_reading
        self.clients = frozenset(
            client for client, count in num_stalled.items() if _are_mostly_stalled(count, num_reading.get(client, 0))
        )
        # Stalled readers can also be spread over many clients. Then all other clients together are held back.
        stalled_rest, reading_rest = (
            sum(count for client, count in counts.items() if client not in self.clients)
            for counts in (num_stalled, num_reading)
        )
        self.others = _are_mostly_stalled(stalled_rest, reading_rest)

    @classmethod
    def join(cls, parts: Collection[HeldBack]) -> HeldBack:
        """Returns what several front ends say together."""
        stalled_of, reading_of = Counter[Hashable](), Counter[Hashable]()
        for part in parts:
            stalled_of.update(part.stalled_of)
            reading_of.update(part.reading_of)
        return cls([request for part in parts for request in part.requests], stalled_of, reading_of)

    def __bool__(self) -> bool:
        return bool(self.requests or self.clients or self.others)


def _are_mostly_stalled(num_stalled: int, num_reading: int) -> bool:
    return num_stalled > max(_MAX_STALLED, num_reading)


class _Entry(NamedTuple):
    client: Hashable
    size: int
    num_bytes: int


class WaitingQueue(Generic[T]):
    """The waiting requests. Iteration is in the order of arrival. For one thread at a time.

    Attributes:
        num_bytes: The size of the recordings of all waiting requests.
    """

    def __init__(self) -> None:
        self._entries: dict[T, _Entry] = {}
        self._requests_of: dict[Hashable, dict[T, None]] = {}  # by clients; the next client's turn comes first
        self._held_back = HeldBack()
        self._num_begun = 0  # requests that have started since the last held-back one
        self._takes_oldest = False  # the next held-back request is the oldest; otherwise the smallest
        self.num_bytes = 0
        self._cached: tuple[bool, bool, T | None] | None = None  # the arguments of the last `next`, and its result

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries)

    def in_turns(self) -> Iterator[T]:
        """Yields the requests in the order in which they start if all readers take outputs."""
        rounds = zip_longest(*self._requests_of.values())
        return (cast("T", request) for turn in rounds for request in turn if request is not None)

    def count(self, client: Hashable) -> int:
        """The number of a client's requests."""
        return len(self._requests_of.get(client, ()))

    def add(self, request: T, client: Hashable, size: int, num_bytes: int = 0) -> None:
        """Adds a request behind the others. `size` is in tokens; `num_bytes` is the size of its recordings."""
        self._entries[request] = _Entry(client, size, num_bytes)
        self._requests_of.setdefault(client, {})[request] = None
        self.num_bytes += num_bytes
        self._cached = None

    def remove(self, request: T) -> None:
        """Takes out a request that does not start."""
        entry = self._entries.pop(request)
        requests = self._requests_of[entry.client]
        del requests[request]
        if not requests:
            del self._requests_of[entry.client]
        self.num_bytes -= entry.num_bytes
        self._cached = None

    def begin(self, request: T) -> None:
        """Takes out a request that starts. The turns of all other clients come before the next one of its client."""
        if self.is_held_back(request):
            self._takes_oldest = not self._takes_oldest
        self._num_begun = 0 if self._comes_after_others(request) else self._num_begun + 1
        client = self._entries[request].client
        self._requests_of[client] = self._requests_of.pop(client)
        self.remove(request)

    def clear(self) -> None:
        """Takes out all requests."""
        self._entries.clear()
        self._requests_of.clear()
        self.num_bytes = 0
        self._cached = None

    def hold_back(self, held_back: HeldBack) -> None:
        """Says which requests come after others from now on."""
        self._held_back = held_back
        self._cached = None

    def has_stalled(self, request: T) -> bool:
        """Whether the reader of a request takes nothing, as far as is known."""
        return request in self._held_back.requests

    def next(self, *, is_idle: bool, has_time: bool) -> T | None:
        """The request to start next; None where none may start.

        `is_idle` says whether nothing is worked on for a reader that takes outputs. `has_time` says whether a request
        that is held back may start now. Without time, the share of held-back clients is put off, and no other request
        waits for it.
        """
        if not self._held_back:
            return next((next(iter(requests)) for requests in self._requests_of.values()), None)
        if self._cached is None or self._cached[:2] != (is_idle, has_time):
            self._cached = is_idle, has_time, self._find(is_idle=is_idle, has_time=has_time)
        return self._cached[2]

    def is_held_back(self, request: T) -> bool:
        """Whether a waiting request does not start in the order of arrival."""
        return self._held_back.others or self._comes_after_others(request)

    def newest_held_back(self, newcomer: Hashable) -> T | None:
        """The newest request that comes after others, to give its place to the request of client `newcomer`.

        None where the requests of this client come after others too.
        """
        if newcomer in self._held_back.clients:
            return None
        return next((request for request in reversed(self._entries) if self._comes_after_others(request)), None)

    def newest_of_largest(self, newcomer: Hashable, num_reserved: int, *, has_recordings: bool) -> T | None:
        """The newest request of the client with the most, to give its place to the request of client `newcomer`.

        None where no client has at least two requests more than this client with its `num_reserved` other places. With
        `has_recordings`, only requests with recordings count.
        """

        def select(requests: Collection[T]) -> Collection[T]:
            return [each for each in requests if self._entries[each].num_bytes] if has_recordings else requests

        largest = max(map(select, self._requests_of.values()), key=len, default=())
        num_others = len(select(self._requests_of.get(newcomer, ()))) + num_reserved
        return next(reversed(tuple(largest))) if len(largest) > num_others + 1 else None

    def _comes_after_others(self, request: T) -> bool:
        return self.has_stalled(request) or self._entries[request].client in self._held_back.clients

    def _find(self, *, is_idle: bool, has_time: bool) -> T | None:
        reading = [request for request in self._entries if not self.has_stalled(request)]
        in_order = [request for request in reading if not self._comes_after_others(request)]
        held_back = [request for request in reading if self._comes_after_others(request)]
        if held_back and has_time and (not in_order or self._num_begun >= _SHARE - 1):
            return self._in_turn(held_back)
        if in_order and not self._held_back.others:
            return self._of_next_client(in_order)
        if not has_time:
            return None
        if in_order:
            return self._in_turn(in_order)
        return next(iter(self._entries), None) if is_idle else None

    def _of_next_client(self, requests: list[T]) -> T:
        """The oldest request of the client whose turn it is."""
        turns = {client: turn for turn, client in enumerate(self._requests_of)}
        return min(requests, key=lambda request: turns[self._entries[request].client])

    def _in_turn(self, requests: list[T]) -> T:
        """The oldest and the smallest request in turn; of several that are as small, the newest."""
        if self._takes_oldest:
            return requests[0]
        return min(reversed(requests), key=self._size)

    def _size(self, request: T) -> int:
        return self._entries[request].size
