"""What logits processors do to logits, for many rows at once: penalties, bans, temperature, top-k and top-p.

A LogitsOp changes logits, float32 `[rows, vocabulary]` and contiguous, in place. It uses the operations of
transformers' own processors, so that each row gets the numbers that the row gets alone. This module knows tensors; it
knows nothing of requests. No op waits for the device: what an op needs is sent there when the op is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..transfer import int_tensor, to_device
from .token_history import TokenHistory

LogitsOp = Callable[[Tensor], object]

_BANNED = -float("inf")


def argmax(logits: Tensor) -> Tensor:
    """Returns the index of the largest number of each row, int64 `[n]`; of a NaN, in a row with NaN."""
    # On a CPU reading the numbers is no wait, and NumPy, which knows no bfloat16, takes a tenth of torch's time.
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def _column(values: Iterable[float], dtype: type, device: torch.device) -> Tensor:
    """Sends one number for each row to the device: `[rows, 1]`."""
    return to_device(np.array(list(values), dtype)[:, None], device)


def select_rows(rows: Tensor | None, op: LogitsOp) -> LogitsOp:
    """Restricts an op to some rows, given by their numbers; None: to all rows."""
    if rows is None:
        return op

    def apply(logits: Tensor) -> None:
        selected = logits.index_select(0, rows)
        op(selected)
        logits.index_copy_(0, rows, selected)

    return apply


def flat_indices(ids: Mapping[int, Iterable[int]], vocabulary: int, device: torch.device) -> Tensor:
    """Returns where the logits of tokens of rows are, counted through all rows: int64 `[m]`."""
    return int_tensor([row * vocabulary + id_ for row, row_ids in ids.items() for id_ in row_ids], device)


def repetition_penalty(
    penalties: Mapping[int, float], history: TokenHistory, vocabulary: int, device: torch.device
) -> LogitsOp:
    """Penalizes the tokens so far of rows, each by the penalty of its row. Rows are slots."""
    slots = list(penalties)
    rows = int_tensor(slots, device)
    penalty = _column(penalties.values(), np.float32, device)
    row_starts = rows[:, None] * vocabulary

    def apply(logits: Tensor) -> None:
        flat = logits.view(-1)
        indices = history.read(slots, rows)[0] + row_starts
        before = flat.take(indices)
        # A token that occurs twice is written twice, with the same value.
        flat.put_(indices, torch.where(before < 0, before * penalty, _divided(before, penalty)))

    return apply


def ban_repeated_ngrams(
    sizes: Mapping[int, int], history: TokenHistory, vocabulary: int, device: torch.device
) -> LogitsOp:
    """Bans each token that would complete an n-gram that occurred before, in rows with n-gram sizes of their own."""
    slots = list(sizes)
    rows = int_tensor(slots, device)
    size = _column(sizes.values(), np.int64, device)
    row_starts = rows[:, None] * vocabulary

    def apply(logits: Tensor) -> None:
        ids, lengths = history.read(slots, rows)
        positions = torch.arange(ids.shape[1], device=device)
        # Whether the n-gram that ends at a position is the n-gram that the next token would complete.
        banned = (positions >= size - 1) & (positions < lengths)
        for offset in range(1, max(sizes.values())):
            recent = ids.gather(1, (lengths - offset).clamp(0, ids.shape[1] - 1))
            banned &= (ids.roll(offset, 1) == recent) | (size <= offset)
        # Each position of a row writes to a banned token, so that no position overwrites another: to its own token, or
        # to the token of the row's first banning position. A row without a ban writes the value that is there.
        first_banned = ids.gather(1, banned.byte().argmax(1, keepdim=True))
        flat = logits.view(-1)
        present = flat.take(first_banned + row_starts)
        value = torch.where(banned.any(1, keepdim=True), _BANNED, present)
        flat.put_(torch.where(banned, ids, first_banned) + row_starts, value.expand_as(ids))

    return apply


def add_bans(indices: Tensor) -> LogitsOp:
    """Adds minus infinity at flat indices: transformers' arithmetic for bad words."""
    infinities = torch.full(indices.shape, _BANNED, device=indices.device)
    return lambda logits: logits.view(-1).index_add_(0, indices, infinities)


def ban_tokens(indices: Tensor) -> LogitsOp:
    """Writes minus infinity at flat indices."""
    return lambda logits: logits.view(-1).index_fill_(0, indices, _BANNED)


def force_tokens(rows: Tensor, indices: Tensor) -> LogitsOp:
    """Bans all tokens of rows but the tokens at flat indices."""

    def apply(logits: Tensor) -> None:
        logits.index_fill_(0, rows, _BANNED)
        logits.view(-1).index_fill_(0, indices, 0)

    return apply


def temperature(temperatures: Sequence[float], device: torch.device) -> LogitsOp:
    """Divides each row by a temperature of its own."""
    divisor = _column(temperatures, np.float32, device)
    return lambda logits: logits.copy_(_divided(logits, divisor))


def top_k(counts: Sequence[int], device: torch.device) -> LogitsOp:
    """Keeps the `counts[row]` largest logits of each row, and all that equal the smallest of these."""
    last = _column([count - 1 for count in counts], np.int64, device)
    max_count = max(counts)

    def apply(logits: Tensor) -> None:
        smallest = logits.topk(max_count).values.gather(1, last)
        logits.masked_fill_(logits < smallest, _BANNED)

    return apply


def top_p(shares: Sequence[float], device: torch.device) -> LogitsOp:
    """Keeps the likeliest tokens of each row that together have at least the row's share of the probability."""
    rest = _column([1 - share for share in shares], np.float32, device)
    # Sorting is most of the work. NumPy sorts values alone, many times faster than torch sorts values with indices.
    drop = drop_below_threshold if device.type == "cpu" else drop_in_order
    return lambda logits: drop(logits, rest)


def drop_in_order(logits: Tensor, rest: Tensor) -> None:
    """Bans the least likely tokens of each row, which together have at most `rest`, `[rows, 1]`, of the probability."""
    ascending, order = logits.sort()
    dropped = ascending.softmax(-1).cumsum(-1) <= rest
    dropped[:, -1:] = False  # the likeliest token always stays
    logits.masked_fill_(dropped.scatter(1, order, dropped), _BANNED)


def drop_below_threshold(logits: Tensor, rest: Tensor) -> None:
    """Does what `drop_in_order` does, on a CPU. It reads values, for which a GPU would have to be waited for."""
    ascending = torch.from_numpy(np.sort(logits.numpy()))
    count = (ascending.softmax(-1).cumsum(-1)[:, :-1] <= rest).sum(-1, keepdim=True)
    smallest_kept = ascending.gather(1, count)
    largest_dropped = ascending.gather(1, (count - 1).clamp(min=0))  # if any token is dropped
    # Of equal logits, the order in which torch sorts them decides which are dropped.
    tied = ((count > 0) & (largest_dropped == smallest_kept) & (smallest_kept > _BANNED)).nonzero()[:, 0]
    tied_logits = logits.index_select(0, tied)
    logits.masked_fill_(logits < smallest_kept, _BANNED)
    if len(tied):
        drop_in_order(tied_logits, rest.index_select(0, tied))
        logits.index_copy_(0, tied, tied_logits)


def log_softmax(logits: Tensor) -> None:
    """Replaces logits by logarithms of probabilities."""
    logits.copy_(logits.log_softmax(-1))


def _divided(logits: Tensor, divisor: Tensor) -> Tensor:
    """Divides as torch divides by a Python number: on a GPU, torch multiplies by the inverse."""
    return logits * divisor.reciprocal() if logits.is_cuda else logits / divisor
