"""Requests that end early leave nothing behind. `tests/bench/bench_soak.py` sends ten thousand."""

from __future__ import annotations

from sidelight.server.runner.thread_tuner import cores
from soak import soak


async def test_nothing_stays_behind(bundled):
    outcome = await soak(bundled, 600)
    assert sum(outcome.ends.values()) == 600
    assert {"to the end", "cancelled", "cancelled at once", "DEADLINE_EXCEEDED", "left unread"} <= set(outcome.ends)
    assert not {"INTERNAL", "UNKNOWN", "INVALID_ARGUMENT"} & set(outcome.ends), outcome.ends
    assert (outcome.after.slots, outcome.after.requests) == (0, 0)
    assert outcome.after.tasks <= outcome.before.tasks
    # asyncio's pool grows with what happens at once, to 4 more than there are cores. A leak would be hundreds.
    assert outcome.after.threads <= outcome.before.threads + 4 + cores()
