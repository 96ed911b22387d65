"""A compiled step: one graph, whoever comes and goes, and what comes out is what comes out without it."""

from __future__ import annotations

import pytest
import torch
from batches import IN_SLOTS, alone, assert_same, jobs_of, together
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from model_zoo import build_model
from sidelight.server.models import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize("name", IN_SLOTS)
def test_one_graph_for_all(name, folder):
    """All that inductor would get is one graph; here it is run as it is, as to compile it takes minutes."""
    loaded = load(build_model(name, folder), max_length=64)
    jobs = jobs_of(loaded, name, 7)
    expected = alone(loaded, jobs)
    assert loaded.layout is not None
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    loaded.layout.compile(backend)
    rounds = st.tuples(st.integers(0, 3), st.integers(-20, 6), st.integers(-6, 6))

    @settings(deadline=None, max_examples=3, derandomize=True, phases=[Phase.generate])
    @given(st.lists(rounds, min_size=1, max_size=12))
    def check(beginning):
        def schedule():
            yield from beginning
            while True:
                yield 1, -1, -1

        for number, events in together(loaded, jobs, schedule()).items():
            assert_same(events, expected[number])

    check()
    assert len(graphs) == 1
    names = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("sidelight.attend" in name for name in names) == sum(
        loaded.sites.layers(kind) for kind in loaded.kinds if kind != "encoder_self"
    )
