"""Calls that end early leave nothing behind. `tests/bench/bench_soak.py` sends ten thousand."""

from __future__ import annotations

import pytest
from sidelight.server.runner.thread_tuner import cores
from soak import soak


@pytest.mark.slow
@pytest.mark.parametrize("collects", [True, False], ids=["with a garbage collector", "without"])
async def test_nothing_stays_behind(bundled, collects):
    outcome = await soak(bundled, 200, collects=collects)
    assert sum(outcome.ends.values()) == 200
    early = {"cancelled", "cancelled at once", "DEADLINE_EXCEEDED", "left unread", "reset", "killed"}
    assert early | {"to the end"} <= set(outcome.ends)
    faults = [end for end in outcome.ends if end.startswith(("INTERNAL", "UNKNOWN", "INVALID_ARGUMENT"))]
    assert not faults, outcome.ends
    after = outcome.after
    assert (after.slots, after.requests, after.calls) == (0, 0, 0)
    assert after.tasks <= outcome.before.tasks
    assert after.descriptors <= outcome.before.descriptors
    # asyncio's pool grows with what happens at once, to 4 more than there are cores. A leak would be hundreds.
    assert after.threads <= outcome.before.threads + 4 + cores()
