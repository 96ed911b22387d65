"""Requests that end early leave nothing behind. `tests/bench/bench_soak.py` sends ten thousand."""

from __future__ import annotations

from soak import soak


async def test_nothing_stays_behind(bundled):
    outcome = await soak(bundled, 600)
    assert sum(outcome.ends.values()) == 600
    assert {"to the end", "cancelled", "cancelled at once", "DEADLINE_EXCEEDED", "left unread"} <= set(outcome.ends)
    assert not {"INTERNAL", "UNKNOWN", "INVALID_ARGUMENT"} & set(outcome.ends), outcome.ends
    assert (outcome.after.slots, outcome.after.jobs) == (0, 0)
    assert outcome.after.tasks <= outcome.before.tasks
    assert outcome.after.threads <= outcome.before.threads + 2  # a pool that grows with what happens at once
