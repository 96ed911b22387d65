"""What logits processors do to scores, for many rows at once.

A change acts in place on scores, float32 `[rows, vocabulary]` and contiguous, with the operations of transformers' own
processors, so that each row gets the numbers that it would get alone. Knows tensors; knows nothing of requests. Nothing
here waits for the device: what a change needs is sent there when it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..transfer import int_tensor, to_device

Change = Callable[[Tensor], object]

_NEVER = -float("inf")


class History:
    """The tokens that slots have read and written, on the device."""

    def __init__(self, slots: int, length: int, device: torch.device) -> None:
        """`length` is the most tokens that a slot can have; what comes after is forgotten."""
        self._device = device
        self._length = length
        # The last column takes the tokens that are forgotten.
        self._ids = torch.zeros(slots, length + 1, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(slots, dtype=torch.int64, device=device)
        self._known = np.zeros(slots, np.int64)  # the same lengths, on the host

    def start(self, slot: int, ids: Sequence[int]) -> None:
        """Begins a slot anew with some tokens, at least one and at most `length`."""
        # Places not written yet repeat a token that is there, for which a penalty comes out the same.
        row = np.full(self._ids.shape[1], ids[0], np.int64)
        row[: len(ids)] = ids
        self._ids[slot] = to_device(row, self._device)
        self._lengths[slot] = self._known[slot] = len(ids)

    def take(self, slot: int) -> Tensor:
        """A slot's tokens, to be put into another."""
        return self._ids[slot, : min(int(self._known[slot]), self._length)].clone()

    def put(self, slot: int, ids: Tensor) -> None:
        """Begins a slot anew with what was taken out of one."""
        self._ids[slot] = ids[0]
        self._ids[slot, : len(ids)] = ids
        self._lengths[slot] = self._known[slot] = len(ids)

    def append(self, slots: Sequence[int], rows: Tensor, tokens: Tensor) -> None:
        """Adds a token to each of some slots: those of `tokens`, `[n]`, in the rows of the slots."""
        lengths = self._lengths.index_select(0, rows)
        self._ids[rows, lengths.clamp(max=self._length)] = tokens.index_select(0, rows)
        self._lengths.index_copy_(0, rows, lengths + 1)
        self._known[slots] += 1

    def read(self, slots: Sequence[int], rows: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of some slots, `[slots, longest]`, and how many each has, `[slots, 1]`."""
        longest = min(int(self._known[slots].max()), self._length)
        return self._ids[:, :longest].index_select(0, rows), self._lengths.index_select(0, rows)[:, None]


def _column(values: Iterable[float], dtype: type, device: torch.device) -> Tensor:
    """One number for each row, on the device: `[rows, 1]`."""
    return to_device(np.array(list(values), dtype)[:, None], device)


def on_rows(rows: Tensor | None, change: Change) -> Change:
    """A change to some rows only, given by their numbers; None: to all."""
    if rows is None:
        return change

    def changed(scores: Tensor) -> None:
        part = scores.index_select(0, rows)
        change(part)
        scores.index_copy_(0, rows, part)

    return changed


def flat_places(ids: Mapping[int, Iterable[int]], vocabulary: int, device: torch.device) -> Tensor:
    """Where the scores of some tokens of some rows are, counted through all rows."""
    return int_tensor([row * vocabulary + id_ for row, some in ids.items() for id_ in some], device)


def penalize(penalties: Mapping[int, float], history: History, vocabulary: int, device: torch.device) -> Change:
    """The repetition penalty of some rows, on the scores of all tokens so far. Rows are slots."""
    slots = list(penalties)
    rows = int_tensor(slots, device)
    penalty = _column(penalties.values(), np.float32, device)
    first = rows[:, None] * vocabulary

    def change(scores: Tensor) -> None:
        flat = scores.view(-1)
        places = history.read(slots, rows)[0] + first
        before = flat.take(places)
        # A token that is there twice is written twice, the same.
        flat.put_(places, torch.where(before < 0, before * penalty, _divided(before, penalty)))

    return change


def ban_repeated_ngrams(sizes: Mapping[int, int], history: History, vocabulary: int, device: torch.device) -> Change:
    """Takes from some rows each token that would complete an n-gram, of the row's own size, that was there before."""
    slots = list(sizes)
    rows = int_tensor(slots, device)
    size = _column(sizes.values(), np.int64, device)
    first = rows[:, None] * vocabulary

    def change(scores: Tensor) -> None:
        ids, lengths = history.read(slots, rows)
        places = torch.arange(ids.shape[1], device=device)
        banned = (places >= size - 1) & (places < lengths)  # whether the n-gram that ends here is one to avoid
        for back in range(1, max(sizes.values())):
            last = ids.gather(1, (lengths - back).clamp(0, ids.shape[1] - 1))
            banned &= (ids.roll(back, 1) == last) | (size <= back)
        # Each place of a row writes to a token that is banned, so that none writes over another: to its own, or to that
        # of the first place that bans. A row that bans nothing writes what is there.
        some = ids.gather(1, banned.byte().argmax(1, keepdim=True))
        flat = scores.view(-1)
        kept = flat.take(some + first)
        value = torch.where(banned.any(1, keepdim=True), _NEVER, kept)
        flat.put_(torch.where(banned, ids, some) + first, value.expand_as(ids))

    return change


def subtract_all(places: Tensor) -> Change:
    """Adds minus infinity at flat places: what transformers does for bad words."""
    minus = torch.full(places.shape, _NEVER, device=places.device)
    return lambda scores: scores.view(-1).index_add_(0, places, minus)


def suppress(places: Tensor) -> Change:
    """Writes minus infinity at flat places."""
    return lambda scores: scores.view(-1).index_fill_(0, places, _NEVER)


def force(rows: Tensor, places: Tensor) -> Change:
    """Leaves to some rows only the tokens at some flat places."""

    def change(scores: Tensor) -> None:
        scores.index_fill_(0, rows, _NEVER)
        scores.view(-1).index_fill_(0, places, 0)

    return change


def cool(temperatures: Sequence[float], device: torch.device) -> Change:
    """Divides each row by a temperature of its own."""
    divisor = _column(temperatures, np.float32, device)
    return lambda scores: scores.copy_(_divided(scores, divisor))


def keep_top_k(counts: Sequence[int], device: torch.device) -> Change:
    """Keeps the greatest scores of each row, as many as its count says, and all that equal the least of them."""
    last = _column([count - 1 for count in counts], np.int64, device)
    most = max(counts)

    def change(scores: Tensor) -> None:
        least = scores.topk(most).values.gather(1, last)
        scores.masked_fill_(scores < least, _NEVER)

    return change


def keep_top_p(shares: Sequence[float], device: torch.device) -> Change:
    """Keeps the likeliest tokens of each row that together have at least its share of the probability."""
    rest = _column([1 - share for share in shares], np.float32, device)
    # Sorting is most of the work, and NumPy sorts numbers alone many times faster than torch does with their places.
    drop = drop_below_threshold if device.type == "cpu" else drop_in_order
    return lambda scores: drop(scores, rest)


def drop_in_order(scores: Tensor, rest: Tensor) -> None:
    """Drops the least likely tokens of each row, which have at most `rest`, `[rows, 1]`, of the probability."""
    ascending, order = scores.sort()
    dropped = ascending.softmax(-1).cumsum(-1) <= rest
    dropped[:, -1:] = False  # the likeliest always stays
    scores.masked_fill_(dropped.scatter(1, order, dropped), _NEVER)


def drop_below_threshold(scores: Tensor, rest: Tensor) -> None:
    """What `drop_in_order` does, on a CPU. Looks at the numbers, so a GPU would have to be waited for."""
    ascending = torch.from_numpy(np.sort(scores.numpy()))
    count = (ascending.softmax(-1).cumsum(-1)[:, :-1] <= rest).sum(-1, keepdim=True)
    least = ascending.gather(1, count)  # that stays
    greatest = ascending.gather(1, (count - 1).clamp(min=0))  # that goes, if any does
    # Which of equal scores go depends on the order in which torch has sorted them.
    tied = ((count > 0) & (greatest == least) & (least > _NEVER)).nonzero()[:, 0]
    by_order = scores.index_select(0, tied)
    scores.masked_fill_(scores < least, _NEVER)
    if len(tied):
        drop_in_order(by_order, rest.index_select(0, tied))
        scores.index_copy_(0, tied, by_order)


def normalize(scores: Tensor) -> None:
    """Makes logarithms of probabilities of scores."""
    scores.copy_(scores.log_softmax(-1))


def _divided(scores: Tensor, divisor: Tensor) -> Tensor:
    """Scores divided as torch divides them by a Python number: on a GPU it multiplies by the inverse."""
    return scores * divisor.reciprocal() if scores.is_cuda else scores / divisor
