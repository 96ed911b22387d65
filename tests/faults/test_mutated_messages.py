"""Mutated requests of every RPC: no error is unforeseen, and none shows the inside of the server.

`soak_messages.py` sends many more.
"""

from __future__ import annotations

import logging
import random

import fuzzing
import grpc
import pytest
from error_details import find_problem
from fuzzing import Fuzzer, call_server, fuzz, reference_answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sidelight.server.errors import invalid, report_fault


@pytest.fixture(scope="module")
def drawn(bundled) -> Fuzzer:
    return Fuzzer(bundled, random.Random(1))


def test_mutants_are_validated(drawn):
    ends = fuzz(drawn, 1500, drawn.validate)
    assert ends["OK"] > 100
    assert ends["INVALID_ARGUMENT"] > 100


@settings(max_examples=100, deadline=None, suppress_health_check=[*HealthCheck])
@given(chance=st.randoms(use_true_random=False))
def test_mutants_that_hypothesis_chooses(drawn, chance):
    """A mutant that fails is made smaller."""
    fuzzer = drawn.with_chance(chance)
    fuzzer.validate(*fuzzer.draw())


@pytest.mark.slow
def test_mutants_harm_no_server(drawn, bundled_server):
    with grpc.insecure_channel(bundled_server) as channel:
        before = reference_answer(channel)
        ends = fuzz(drawn, 150, lambda path, messages: call_server(channel, path, messages))
        assert ends["INVALID_ARGUMENT"] > 10
        assert reference_answer(channel) == before


@pytest.mark.parametrize(
    "said",
    [
        "'NoneType' object has no attribute 'shape'",
        "ValueError: x",
        "see /usr/lib/python3/dist-packages",
        "<sidelight.server.api.calls.Call object at 0x7f3aa0>",
        'File "engine.py", line 3, in run',
        "list index out of range",
    ],
)
def test_what_shows_the_inside_of_a_server_is_found(said):
    code = grpc.StatusCode.INVALID_ARGUMENT
    assert find_problem(code, said)
    assert find_problem(code, "x", fuzzing.status._details(invalid("field", "WRONG", said), "r"))
    assert not find_problem(code, said, sent=[said.encode()])


def test_a_code_that_says_nothing_is_found():
    assert find_problem(grpc.StatusCode.UNKNOWN, "x")
    error = report_fault(logging.getLogger(__name__), "r", ValueError("planted"))
    assert find_problem(grpc.StatusCode[error.code.name], str(error))
    assert not find_problem(grpc.StatusCode.INVALID_ARGUMENT, "source.text: must not be empty")
