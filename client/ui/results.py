"""Finished results, kept for their export. Who has the id of a result may fetch it; nobody can guess one."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from ..results import Attribution

# How many results are kept at most, and of how many bytes of attention together.
MAX_RESULTS = 16
MAX_BYTES = 256 << 20


class Results:
    """The newest results. An older one goes where there are too many."""

    def __init__(self, max_results: int = MAX_RESULTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_results, self._max_bytes = max_results, max_bytes
        self._kept: OrderedDict[str, Attribution] = OrderedDict()
        self._bytes = 0

    def add(self, attribution: Attribution) -> str | None:
        """Keeps a result. Returns its id; None for a result that is too large."""
        size = _count_bytes(attribution)
        if size > self._max_bytes:
            return None
        name = secrets.token_urlsafe(16)
        self._kept[name] = attribution
        self._bytes += size
        while len(self._kept) > self._max_results or self._bytes > self._max_bytes:
            self._bytes -= _count_bytes(self._kept.popitem(last=False)[1])
        return name

    def find(self, name: str) -> Attribution | None:
        """Returns the result of an id, if it is still kept."""
        return self._kept.get(name)


def _count_bytes(attribution: Attribution) -> int:
    arrays = (attribution.cross, attribution.decoder_self, attribution.encoder_self)
    return sum(array.nbytes for array in arrays if array is not None)
