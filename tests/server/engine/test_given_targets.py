"""Given targets that wait are read together, and no request's fault, end or slowness is another's."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import grpc
import numpy as np
import pytest
from harness import CROSS, DECODER_SELF, request, serving, steps_of, stub, wait_until
from sidelight.server.engine import given_targets
from sidelight.server.engine.given_targets import GivenTargets
from sidelight.server.engine.time_share import TimeShare
from sidelight.server.runner.model_runner import ModelRunner
from sidelight.server.runner.targets import TargetPass, TargetReader
from sidelight.v1 import text_pb2 as text

WORDS = [
    "Meine",
    "Großmutter",
    "ist",
    "mit",
    "zweiundachtzig",
    "Jahren",
    "noch",
    "immer",
    "sehr",
    "rüstig",
    "und",
    "geht",
    "jeden",
    "Tag",
    "spazieren.",
]


def given_request(number: int):
    kinds = [[CROSS], [CROSS, DECODER_SELF], [DECODER_SELF]][number % 3]
    target = text.Text(text=" ".join(WORDS[: 1 + number % len(WORDS)]))
    return request(" ".join(WORDS[number % 7 :]), kinds, given=target, scores=[1] * (number % 2))


@pytest.fixture
def batches(monkeypatch) -> list[list[TargetPass]]:
    """The batches that are read. Each takes some milliseconds, so that others wait meanwhile."""
    found: list[list[TargetPass]] = []
    read = ModelRunner.read_targets

    def noting(runner, passes, max_tokens):
        time.sleep(0.02)
        found.append(read(runner, passes, max_tokens))
        return found[-1]

    monkeypatch.setattr(ModelRunner, "read_targets", noting)
    return found


def test_what_waits_is_read_together_and_gets_what_it_gets_alone(bundled, engines, batches, monkeypatch):
    with serving(bundled) as address, stub(address) as service:
        alone = [steps_of(list(service.Attribute(given_request(number), timeout=60))) for number in range(24)]
        assert [len(batch) for batch in batches] == [1] * 24
        del batches[:]
        read, all_wait = ModelRunner.read_targets, threading.Event()
        monkeypatch.setattr(ModelRunner, "read_targets", lambda *args: all_wait.wait(60) and read(*args))
        calls = [service.Attribute(given_request(number), timeout=60) for number in range(24)]
        wait_until(lambda: len(engines[0]._admission._states) == 24)
        all_wait.set()
        together = [steps_of(list(call)) for call in calls]
    assert sum(map(len, batches)) == 24
    assert len(batches) <= 8
    for steps, expected in zip(together, alone, strict=True):
        assert [step.token for step in steps] == [step.token for step in expected]
        for step, same in zip(steps, expected, strict=True):
            np.testing.assert_allclose(step.scores, same.scores, atol=1e-5)
            for row, other in ((step.cross, same.cross), (step.decoder_self, same.decoder_self)):
                values, others = (np.frombuffer(each.values, "<f4") for each in (row, other))
                np.testing.assert_allclose(values, others, atol=1e-5)


@pytest.mark.usefixtures("batches")
def test_a_request_that_fails_in_a_batch_fails_alone(bundled, monkeypatch):
    def is_bad(target_pass: TargetPass) -> bool:
        return target_pass.request.source.text.endswith("schlecht")

    run, decode = TargetReader._run, TargetPass.decode

    def failing_run(reader, batch):
        if any(map(is_bad, batch)):
            raise RuntimeError("planted")
        return run(reader, batch)

    def failing_decode(target_pass):
        if is_bad(target_pass):
            raise RuntimeError("planted")
        return decode(target_pass)

    monkeypatch.setattr(TargetReader, "_run", failing_run)
    monkeypatch.setattr(TargetPass, "decode", failing_decode)
    messages = [given_request(number) for number in range(12)]
    messages[5].source.text += " schlecht"
    with serving(bundled) as address, stub(address) as service, ThreadPoolExecutor(12) as pool:

        def code(message) -> str:
            try:
                return str(bool(steps_of(list(service.Attribute(message, timeout=60)))))
            except grpc.RpcError as error:
                return error.code().name

        codes = list(pool.map(code, messages))
    assert codes == ["INTERNAL" if number == 5 else "True" for number in range(12)]


def test_what_is_cancelled_or_too_late_while_it_waits_is_not_read(bundled, engines, batches):
    with serving(bundled) as address, stub(address) as service:
        calls = [service.Attribute(given_request(number), timeout=60) for number in range(40)]
        late = [service.Attribute(given_request(number), timeout=0.001) for number in range(5)]
        for call in calls[20:]:
            call.cancel()
        for call in calls[:20]:
            assert steps_of(list(call))
        for call in late:
            with pytest.raises(grpc.RpcError):
                list(call)
        wait_until(lambda: not engines[0]._admission._states)
    assert sum(map(len, batches)) <= 45


def test_a_batch_beside_decode_steps_takes_a_bounded_time():
    limits: list[int] = []

    def read_targets(passes: list[Any], max_tokens: int) -> list[Any]:
        limits.append(max_tokens)
        time.sleep(0.001 * sum(each.num_tokens for each in passes))
        return passes

    def make_state() -> Any:
        target_pass = SimpleNamespace(can_share=True, num_tokens=10, request=None)
        return SimpleNamespace(waits_for_batch=True, is_blocked=False, follow=None, target_pass=cast(Any, target_pass))

    class Passes(SimpleNamespace):
        __hash__ = object.__hash__

    def state() -> Any:
        made = make_state()
        made.target_pass = Passes(**vars(made.target_pass))
        return made

    runner = SimpleNamespace(read_targets=read_targets, max_given_tokens=4096)
    requests = SimpleNamespace(running=[], runner=runner)
    preemption = SimpleNamespace(make_memory_again=lambda _: True)
    time_share = TimeShare()
    targets = GivenTargets(cast(Any, requests), cast(Any, preemption), time_share)
    for can_decode in (False, True, True, False):
        requests.running = [state()]
        targets.read(can_decode=can_decode)
        assert not can_decode or not time_share.is_balanced
        targets.read(can_decode=True)  # not before the decode steps have had as much time
        time_share.clear()
    assert limits[0] == limits[-1] == 4096
    assert all(given_targets._MIN_TOKENS <= limit < 4096 for limit in limits[1:-1])
    assert len(limits) == 4
