"""The models of the zoo are fit for tests, and the peers agree about their attention.

With uniform rows or equal heads, wrong results could pass a test.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inseq_peer
import numpy as np
import peers
import pytest
import torch
from combinations import slow_except
from model_zoo import FAMILIES, SOURCE, TARGET, Family, build_model
from sidelight.server.models.loader import bundled_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

KINDS = ("cross", "decoder_self", "encoder_self")
# The others change seldom, and then the tests of parity show it, too.
QUICK = ("marian", "t5", "nllb", "gpt2", "gemma3", "fsmt")


@dataclass(frozen=True)
class ZooModel:
    """A model of the zoo."""

    name: str
    family: Family
    path: Path
    tokenizer: Any

    @property
    def languages(self) -> dict[str, str]:
        return {"source_language": self.family.source_language, "target_language": self.family.target_language}

    @property
    def source(self) -> list[int]:
        return self.tokenizer(SOURCE).input_ids

    @property
    def given(self) -> str:
        """The target for Inseq. For a decoder-only model it begins with the prompt."""
        return TARGET if self.family.is_encoder_decoder else f"{SOURCE} {TARGET}"

    def matrices(self) -> peers.Matrices:
        """Returns the attention over the source and the tokens of a target."""
        start = getattr(AutoConfig.from_pretrained(self.path), "decoder_start_token_id", None)
        target = self.tokenizer(text_target=TARGET).input_ids
        return peers.eager_attention(self.path, self.source, [start, *target] if start is not None else target)


@pytest.fixture(scope="module", params=slow_except(FAMILIES, QUICK))
def zoo_model(request, tmp_path_factory) -> ZooModel:
    path = build_model(request.param, tmp_path_factory.mktemp("zoo"))
    return ZooModel(request.param, FAMILIES[request.param], path, AutoTokenizer.from_pretrained(path))


def test_it_loads_by_the_auto_classes(zoo_model):
    auto = AutoModelForSeq2SeqLM if zoo_model.family.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_pretrained(zoo_model.path)
    assert model.config.is_encoder_decoder == zoo_model.family.is_encoder_decoder
    assert model.dtype == torch.float32
    assert sorted(file.name for file in zoo_model.path.glob("*.safetensors")) == ["model.safetensors"]
    assert not list(zoo_model.path.glob("*.bin"))
    assert len(zoo_model.tokenizer) <= model.get_input_embeddings().num_embeddings


def test_it_is_the_same_whenever_it_is_built(zoo_model, tmp_path):
    again = build_model(zoo_model.name, tmp_path)
    for file in ("model.safetensors", "config.json", "generation_config.json"):
        assert (again / file).read_bytes() == (zoo_model.path / file).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(again)
    assert tokenizer.get_vocab() == zoo_model.tokenizer.get_vocab()
    assert tokenizer(SOURCE).input_ids == zoo_model.source


@pytest.mark.parametrize("text", [SOURCE, TARGET])
def test_its_tokenizer_gives_texts_back(zoo_model, text):
    ids = zoo_model.tokenizer(text).input_ids
    decoded = zoo_model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if zoo_model.name == "fsmt":  # lower case, and Moses puts spaces around apostrophes
        decoded, text = decoded.replace(" ", ""), text.lower().replace(" ", "")
    assert decoded.removeprefix("__en__ ") == text  # M2M100's tokenizer decodes language codes as text
    assert zoo_model.tokenizer.unk_token_id not in ids


def test_its_tokenizer_marks_languages(zoo_model):
    if not zoo_model.family.source_language:
        pytest.skip("knows no languages")
    code = zoo_model.tokenizer.convert_tokens_to_ids
    mark = "__{}__" if zoo_model.name == "m2m100" else "{}"
    source, target = (code(mark.format(language)) for language in zoo_model.languages.values())
    end = zoo_model.tokenizer.eos_token_id
    text, translation = zoo_model.source, zoo_model.tokenizer(text_target=TARGET).input_ids
    if zoo_model.name == "mbart":  # at the end, after the end token
        assert text[-2:] == [end, source]
        assert translation[-2:] == [end, target]
    else:
        assert (text[0], text[-1]) == (source, end)
        assert (translation[0], translation[-1]) == (target, end)
    assert source != target
    assert zoo_model.tokenizer.unk_token_id not in (source, target)


def test_it_writes_something(zoo_model):
    """Enough tokens, and different tokens: with one repeated token every step would look the same."""
    first = {}
    if zoo_model.name in ("m2m100", "nllb"):  # other models need no code, or start with the code
        first["forced_bos_token_id"] = zoo_model.tokenizer(text_target=TARGET).input_ids[0]
    ids = peers.generate_ids(zoo_model.path, zoo_model.source, **first)
    assert len(ids) >= 5
    assert len(set(ids)) >= 3


def test_a_seed_decides_what_it_draws(zoo_model):
    def draw(seed: int) -> list[int]:
        return peers.generate_ids(zoo_model.path, zoo_model.source, seed=seed, top_k=0, temperature=2.0)

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in (1, 2, 3)}) > 1


def test_its_encoder_and_decoder_differ_in_size(zoo_model):
    matrices = zoo_model.matrices()
    if not zoo_model.family.is_encoder_decoder:
        assert (matrices.cross, matrices.encoder_self) == (None, None)
        return
    assert matrices.encoder_self.shape[0] != matrices.decoder_self.shape[0]
    assert matrices.cross.shape[:2] == matrices.decoder_self.shape[:2]
    if not zoo_model.name.endswith("t5"):  # T5 has one number of heads for both
        assert matrices.encoder_self.shape[1] != matrices.decoder_self.shape[1]


def test_its_rows_are_far_from_uniform(zoo_model):
    matrices = zoo_model.matrices()
    for kind in KINDS:
        rows = getattr(matrices, kind)
        if rows is None:
            continue
        np.testing.assert_allclose(rows.sum(axis=-1), 1, atol=1e-5)
        seen = rows > 0
        uniform = seen / seen.sum(axis=-1, keepdims=True)
        # Half the sum of differences: 0 for a uniform row, near 1 for a row with a single position of many.
        distance = np.abs(rows - uniform).sum(axis=-1) / 2
        assert distance[seen.sum(axis=-1) > 3].mean() > 0.15, kind


def test_its_heads_and_layers_can_be_told_apart(zoo_model):
    """Otherwise a swapped head, layer, step or position could pass a test."""
    matrices = zoo_model.matrices()
    for kind in KINDS:
        rows = getattr(matrices, kind)
        if rows is None:
            continue
        layers, heads, queries, _ = rows.shape
        for one, other in itertools.combinations(np.ndindex(layers, heads), 2):
            assert np.abs(rows[one] - rows[other]).max() > 1e-2, (kind, one, other)
        for query in range(1, queries):
            assert np.abs(rows[:, :, query] - rows[:, :, query - 1]).max() > 1e-3, (kind, query)


def test_gemmas_window_and_cap_are_felt(zoo_model):
    if not zoo_model.name.startswith("gemma"):
        pytest.skip("has neither")
    config = AutoConfig.from_pretrained(zoo_model.path)
    rows = zoo_model.matrices().decoder_self
    queries, keys = np.indices(rows.shape[2:])
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    for layer, type_ in enumerate(config.layer_types):
        outside = queries - keys >= config.sliding_window
        assert outside.any()
        assert (rows[layer][:, outside].max() > 1e-3) == (type_ == "full_attention")
    if zoo_model.name == "gemma2":
        # The first layer's input does not depend on the cap: only the cap changes its rows.
        model = AutoModelForCausalLM.from_pretrained(zoo_model.path, attn_implementation="eager").eval()
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = None
        with torch.inference_mode():
            ids = torch.tensor([[*zoo_model.source, *zoo_model.tokenizer(text_target=TARGET).input_ids]])
            bare = model(ids, output_attentions=True, use_cache=False).attentions[0][0].numpy()
        assert np.abs(bare - rows[0]).max() > 0.1


def test_grouped_heads_are_grouped(zoo_model):
    config = AutoConfig.from_pretrained(zoo_model.path)
    groups = getattr(config, "num_key_value_heads", None) if not zoo_model.family.is_encoder_decoder else None
    assert (groups is not None and groups < config.num_attention_heads) == (
        zoo_model.name in {"llama", "qwen3", "gemma2", "gemma3"}
    )


# ---- the peers agree ------------------------------------------------------------------------------------------------


def unseen(truth: inseq_peer.Truth) -> np.ndarray:
    """Returns which target positions each step has not seen, `[positions, steps]`."""
    positions, steps = np.indices(truth.target.shape[:2])
    return positions >= truth.first_step + steps


def check_against_eager(truth: inseq_peer.Truth, path: Path, **options: Any) -> None:
    """Compares the shapes and numbers of Inseq's arrays with the description in `inseq_peer`."""
    decoder_only = truth.source is None
    source = [] if decoder_only else truth.source_ids
    eager = peers.eager_attention(path, source, truth.target_ids, **options)
    steps = len(truth.target_ids) - truth.first_step
    expected = eager.steps("decoder_self", truth.first_step)
    assert truth.target.shape == expected.shape
    assert truth.target.shape[:2] == (len(truth.target_ids), steps)
    # Only unseen positions are NaN. No step has seen the last token, so its row is NaN.
    assert (np.isnan(truth.target).all(axis=(2, 3)) == unseen(truth)).all()
    assert (np.isnan(truth.target).any(axis=(2, 3)) == unseen(truth)).all()
    assert np.isnan(truth.target[-1]).all()
    np.testing.assert_allclose(truth.target[~unseen(truth)], expected[~unseen(truth)], atol=1e-5)
    if decoder_only:
        assert truth.encoder is None
        return
    assert truth.first_step == 1  # only the start token comes before
    assert truth.source.shape[:2] == (len(truth.source_ids), steps)
    np.testing.assert_allclose(truth.source, eager.steps("cross", 1), atol=1e-5)
    # Keys first, then queries.
    np.testing.assert_allclose(truth.encoder, eager.encoder_self.transpose(3, 2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("given", [False, True], ids=["decoded", "given"])
def test_inseq_is_transformers(zoo_model, given):
    if not zoo_model.family.inseq:
        pytest.skip("Inseq does not attribute this family")
    truth = inseq_peer.attribute(zoo_model.path, SOURCE, zoo_model.given if given else None, **zoo_model.languages)
    check_against_eager(truth, zoo_model.path)


@pytest.mark.parametrize("given", [False, True], ids=["decoded", "given"])
def test_inseq_is_transformers_on_the_bundled_model(given):
    check_against_eager(inseq_peer.attribute(bundled_model(), SOURCE, TARGET if given else None), bundled_model())


def test_inseqs_fsmt_is_not_fsmt(tmp_path):
    """Inseq is no peer for FSMT: even the encoder's rows differ. This test fails when Inseq corrects them."""
    path = build_model("fsmt", tmp_path)
    truth = inseq_peer.attribute(path, SOURCE, TARGET)
    eager = peers.eager_attention(path, truth.source_ids, truth.target_ids)
    assert np.abs(truth.encoder - eager.encoder_self.transpose(3, 2, 0, 1)).max() > 0.1


@pytest.mark.parametrize("name", ["bart", "t5", "gpt2"])
@pytest.mark.parametrize("function", peers.REDUCTIONS)
def test_inseqs_reductions_are_numpys(name, function, tmp_path_factory):
    """Inseq reduces over heads, then over layers. It does not normalize, and unseen positions stay NaN."""
    path = build_model(name, tmp_path_factory.getbasetemp() / "reductions")
    truth = inseq_peer.attribute(path, SOURCE)
    reduce = {
        "mean": np.mean,
        "max": np.max,
        "min": np.min,
        "sum": np.sum,
        "prod": np.prod,
        "absmax": np.max,  # probabilities are not negative
        "vnorm": lambda numbers, axis: np.sqrt(np.sum(numbers**2, axis=axis)),
    }[function]
    heads = peers.inseq_reduced(truth, function)
    both = peers.inseq_reduced(truth, function, function)
    for kind in ("source", "target", "encoder"):
        whole = getattr(truth, kind)
        if whole is None:
            assert getattr(both, kind) is None
            continue
        expected = reduce(whole, axis=3)
        np.testing.assert_allclose(getattr(heads, kind), expected, atol=1e-6)
        np.testing.assert_allclose(getattr(both, kind), reduce(expected, axis=2), atol=1e-6)
