"""Work beside the decode steps takes at most as much time as the steps."""

from __future__ import annotations

from sidelight.server.engine.time_share import TimeShare


def test_work_waits_for_as_many_seconds_of_steps():
    share = TimeShare()
    assert share.may_work(can_decode=True)
    share.add_work(0.5)
    for _ in range(4):
        assert not share.may_work(can_decode=True)
        share.add_step(0.125)
    assert share.may_work(can_decode=True)


def test_steps_earn_no_more_than_one_step():
    """After a thousand steps without other work, other work does not hold up the steps for as long."""
    share = TimeShare()
    for _ in range(1000):
        share.add_step(0.01)
    share.add_work(0.02)
    assert not share.may_work(can_decode=True)


def test_without_steps_work_goes_on_for_a_turn():
    share = TimeShare()
    share.add_work(0.01)
    assert share.may_work(can_decode=False)
    share.add_work(0.02)
    assert not share.may_work(can_decode=False)
    share.clear()
    assert share.may_work(can_decode=True)
