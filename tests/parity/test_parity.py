"""Attention equals Inseq's, and the models' own matrices, for every family, through the server and the client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import inseq_peer
import numpy as np
import pytest
import torch
from combinations import slow_except
from harness import serving
from inseq.data import aggregation_functions as inseq_functions
from model_rows import check_rows
from model_zoo import FAMILIES, SOURCE, TARGET, Family, build_model
from sidelight.client import Attribution, Capture, Client, Decoding, Greedy
from sidelight.kernels.cpu import is_supported
from sidelight.server.capture.attention_function import NAME
from sidelight.server.models.bart_cpu_backend import BartCpuBackend
from sidelight.server.models.loader import LoadedModel, bundled_model
from sidelight.server.transformers_versions import takes_whole_target

KINDS = ("cross", "decoder_self", "encoder_self")
NEW_TOKENS = 10


@dataclass(frozen=True)
class Served:
    """A model, its folder, and a client of its server."""

    family: Family
    path: Path
    loaded: LoadedModel
    client: Client

    @property
    def languages(self) -> dict[str, str]:
        family = self.family
        return {"source_language": family.source_language, "target_language": family.target_language}

    @property
    def first_id(self) -> int | None:
        """The language token that decoding must generate first."""
        tokenizer, family = self.loaded.tokenizer, self.family
        return tokenizer.forced_first_id(tokenizer.resolve_languages(family.source_language, family.target_language))

    def attribute(self, target: str | list[int] | None = None, **options) -> Attribution:
        if target is None:
            options.setdefault("decoding", Decoding(Greedy(), max_new_tokens=NEW_TOKENS))
        options.setdefault("capture", Capture(kinds=self.loaded.kinds))
        languages = self.languages if self.loaded.tokenizer.languages else {}
        return self.client.attribute(SOURCE, target=target, timeout=120, **languages, **options).result()


@pytest.fixture(scope="module", params=["bundled", *FAMILIES])
def served(request, zoo, zoo_folder) -> Iterator[Served]:
    if request.param == "bundled":
        family, path = FAMILIES["marian"], bundled_model()
    else:
        family, path = FAMILIES[request.param], build_model(request.param, zoo_folder)
    loaded = zoo(request.param)
    with serving(loaded) as address, Client(address) as client:
        yield Served(family, path, loaded, client)


def continuation(served: Served) -> str:
    return TARGET if served.loaded.is_encoder_decoder else " " + TARGET


def test_rows_are_captured_by_the_expected_method(served):
    assert served.loaded.attention_layers.captures_rows == served.family.captures_rows
    assert list(served.loaded.attention_layers.methods) == served.family.methods
    backend = served.loaded.backend
    assert (backend is not None) == served.family.in_slots
    if is_supported():
        assert isinstance(backend, BartCpuBackend) == served.family.has_program
    implementation = served.loaded.model.config._attn_implementation
    assert implementation == (NAME if served.family.captures_rows else "eager")


@pytest.mark.covering(1)
@pytest.mark.parametrize("given", [False, True], ids=["decoded", "given"])
def test_equal_to_inseq(served, given):
    if not served.family.inseq:
        pytest.skip("Inseq does not attribute this family")
    ours = served.attribute(continuation(served) if given else None)
    target = continuation(served) if given else None
    if given and not served.loaded.is_encoder_decoder:
        target = SOURCE + target
    theirs = inseq_peer.attribute(
        served.path, SOURCE, target, max_new_tokens=NEW_TOKENS, first_id=served.first_id, **served.languages
    )
    compare(ours, theirs, served)


def compare(ours: Attribution, theirs: inseq_peer.Truth, served: Served) -> None:
    if served.loaded.is_encoder_decoder:
        assert [token.id for token in ours.source] == theirs.source_ids
        np.testing.assert_allclose(ours.cross, theirs.source, atol=1e-5)
        np.testing.assert_allclose(ours.encoder_self.swapaxes(0, 1), theirs.encoder, atol=1e-5)
    assert [token.id for token in ours.decoder_positions] == theirs.target_ids
    assert len(ours.context) == theirs.first_step
    # Positions that a step has not seen are NaN in both arrays, and for assert_allclose NaN equals NaN.
    np.testing.assert_allclose(ours.decoder_self, theirs.target, atol=1e-5)


@pytest.mark.covering(1)
@pytest.mark.parametrize("given", [False, True], ids=["decoded", "given"])
@pytest.mark.parametrize("row", ["predicting", "reading"])
def test_equal_to_the_models_own_matrices(served, row, given):
    """The expected rows come from one eager forward pass with `output_attentions=True`, for all families."""
    target = continuation(served) if given else None
    ours = served.attribute(target, capture=Capture(kinds=served.loaded.kinds, row=row))
    check_rows(ours, served.path)


def test_the_tokens_are_those_of_generate(served):
    if takes_whole_target(served.loaded.model):
        pytest.skip("this transformers generates other tokens with FSMT than its forward pass gives")
    ours = served.attribute()
    # Eager attention, since SDPA of old versions omits the soft caps of Gemma 2.
    reference = type(served.loaded.model).from_pretrained(served.path, attn_implementation="eager").eval()
    ids = torch.tensor([[token.id for token in ours.source]])
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1}
    if served.first_id is not None:
        options["forced_bos_token_id"] = served.first_id
    generated = reference.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
    start = 1 if served.loaded.is_encoder_decoder else ids.shape[1]
    assert [token.id for token in ours.steps] == generated[start:]


def test_rows_sum_to_one_and_are_not_uniform(served):
    ours = served.attribute()
    for kind in served.loaded.kinds:
        rows = getattr(ours, kind)
        positions = 1 if kind == "encoder_self" else 0
        np.testing.assert_allclose(np.nansum(rows, axis=positions), 1, atol=1e-5)
    # If all rows were alike, wrong rows could pass the tests above.
    assert np.nanmax(ours.decoder_self[:, -1], axis=0).mean() > 2 / ours.decoder_self.shape[0]


@pytest.mark.covering(1)
@pytest.mark.parametrize("name", slow_except(["mean", "max", "min", "sum", "prod", "absmax", "l2"], {"max", "l2"}))
def test_reductions_are_inseqs(served, name):
    """Inseq's aggregation functions reduce Inseq's whole attribution: over heads first, then over layers."""
    if not served.family.inseq:
        pytest.skip("Inseq does not attribute this family")
    aggregate = {
        "mean": inseq_functions.MeanAggregationFunction,
        "max": inseq_functions.MaxAggregationFunction,
        "min": inseq_functions.MinAggregationFunction,
        "sum": inseq_functions.SumAggregationFunction,
        "prod": inseq_functions.ProdAggregationFunction,
        "absmax": inseq_functions.AbsMaxAggregationFunction,
        "l2": inseq_functions.VectorNormAggregationFunction,
    }[name]()
    options = {"max_new_tokens": NEW_TOKENS, "first_id": served.first_id, **served.languages}
    theirs = inseq_peer.attribute(served.path, SOURCE, **options)
    kinds = served.loaded.kinds
    heads = served.attribute(capture=Capture(kinds=kinds, over_heads=name))
    both = served.attribute(capture=Capture(kinds=kinds, over_heads=name, over_layers=name))
    for kind, whole in (("cross", theirs.source), ("decoder_self", theirs.target), ("encoder_self", theirs.encoder)):
        if whole is None:
            continue
        seen = ~np.isnan(whole).any(axis=(2, 3))
        over_heads = aggregate(torch.from_numpy(whole), dim=3)
        over_layers = aggregate(over_heads, dim=2)
        for attribution, expected in ((heads, over_heads), (both, over_layers)):
            rows = getattr(attribution, kind)
            rows = rows.swapaxes(0, 1) if kind == "encoder_self" else rows
            np.testing.assert_allclose(rows[seen], expected.numpy()[seen], atol=1e-5)


def test_layers_and_pairs_are_parts_of_the_whole(served):
    whole = served.attribute()
    kinds = served.loaded.kinds
    count = min(served.loaded.attention_layers.num_layers(kind) for kind in kinds)
    layers = list(range(count))[::-1]
    reversed_layers = served.attribute(capture=Capture(kinds=kinds, layers=layers))
    pairs = [(count - 1, 1), (0, 0), (count - 1, 0)]
    single = served.attribute(capture=Capture(kinds=kinds, heads=pairs))
    reduced = served.attribute(capture=Capture(kinds=kinds, heads=pairs, over_heads="max"))
    for kind in kinds:
        full = getattr(whole, kind)
        np.testing.assert_allclose(getattr(reversed_layers, kind), full[:, :, layers], atol=1e-6)
        expected = np.stack([full[:, :, layer, head] for layer, head in pairs], axis=2)
        np.testing.assert_allclose(getattr(single, kind), expected, atol=1e-6)
        np.testing.assert_allclose(getattr(reduced, kind), expected.max(axis=2), atol=1e-6)
