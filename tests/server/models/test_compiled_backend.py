"""A step compiled by torch.compile: one graph for all requests, with the numbers of a step that is not compiled."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from harness import CROSS, DECODER_SELF, request, serving, steps_of, stub
from hypothesis import Phase, given, settings
from mixed_requests import BEGINNINGS, IN_SLOTS, alone, assert_same, mixed_requests, then_one_by_one, together
from model_zoo import SOURCE, build_model
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.models import BackendConfig, LoadedModel, ModelError, load
from sidelight.server.models.compiled_backend import CompiledBackend
from sidelight.server.models.transformers_backend import TransformersBackend
from sidelight.server.runner.model_runner import ModelRunner
from sidelight.v1 import text_pb2 as text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


def compiled_by(loaded: LoadedModel, compiler) -> LoadedModel:
    """The same model, compiled by another compiler than inductor."""
    return replace(loaded, backend=CompiledBackend(loaded.model, BackendConfig(64, 64), compiler))


# One of each architecture, one whose layers have windows.
@pytest.mark.slow
@pytest.mark.parametrize("name", IN_SLOTS)
def test_one_graph_for_all_requests(name, folder):
    """Inductor would take minutes. The compiler here runs the graph as it is, and counts the graphs."""
    loaded = load(build_model(name, folder), max_length=64, compiled=True)
    jobs = mixed_requests(loaded, name, 7)
    expected = alone(loaded, jobs)
    graphs = []

    def keep_graph(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    loaded = compiled_by(loaded, keep_graph)

    @settings(deadline=None, max_examples=3, derandomize=True, phases=[Phase.generate])
    @given(BEGINNINGS)
    def check(beginning):
        for number, events in together(loaded, jobs, then_one_by_one(beginning)).items():
            assert_same(events, expected[number])

    check()
    assert len(graphs) == 1
    names = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("sidelight.attend" in name for name in names) == sum(
        loaded.attention_layers.num_layers(kind) for kind in loaded.kinds if kind != "encoder_self"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_server_compiles_its_steps(folder):
    """By inductor, before the server says that it serves."""
    torch._dynamo.reset()
    path = build_model("marian", folder)
    message = request(SOURCE, [CROSS, DECODER_SELF], decoding=text.Decoding(max_new_tokens=9, ignore_eos=True))
    answers = []
    for compiled in (False, True):
        loaded = load(path, max_length=64, compiled=compiled)
        with serving(loaded, limits=EngineConfig(max_running=4)) as address, stub(address) as service:
            answers.append(steps_of(list(service.Attribute(message, timeout=60))))
    assert len(answers[0]) == 9
    for one, other in zip(*answers, strict=True):
        assert one.token == other.token
        for kind in ("cross", "decoder_self"):
            ours, theirs = (np.frombuffer(getattr(step, kind).values, "<f4") for step in (one, other))
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_what_cannot_be_compiled_is_said(folder, monkeypatch):
    path = build_model("marian", folder)
    with pytest.raises(ModelError, match="int8 cannot be compiled"):
        load(path, dtype="int8", compiled=True)

    def broken(*_):
        raise RuntimeError("no compiler")

    loaded = load(path, max_length=64, compiled=True)
    monkeypatch.setattr(loaded.backend, "_graph", broken)
    with pytest.raises(ModelError, match=r"cannot run .*: no compiler$"), serving(loaded):
        pass


def test_a_compiled_step_has_the_last_layer_in_its_graph(folder):
    loaded = load(build_model("marian", folder), compiled=True)
    assert type(loaded.backend) is CompiledBackend
    assert loaded.backend.lm_head is None
    assert not loaded.model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.slow
def test_a_compiled_step_keeps_its_threads(folder):
    """With another number of threads torch would compile the step again, while all requests wait."""
    loaded = load(build_model("marian", folder), max_length=64, compiled=True)
    modules = TransformersBackend(loaded.model, BackendConfig(64, 64), None)
    compiled = CompiledBackend(loaded.model, BackendConfig(64, 64), lambda graph, _: graph.forward)
    torch._dynamo.reset()
    with torch.inference_mode():
        assert ModelRunner(loaded, modules, 2, (1, 2))._threads._counts == (1, 2)
        assert ModelRunner(loaded, compiled, 2, (1, 2))._threads._counts == ()
