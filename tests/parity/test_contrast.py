"""Scores of two contexts, and differences of attention, are Inseq's, through the server and the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import inseq_peer
import numpy as np
import pytest
import torch
from combinations import slow_except
from harness import serving
from inseq.attr import step_functions
from inseq.utils.torch_utils import filter_logits
from model_zoo import FAMILIES, SENTENCES, build_model
from sidelight.client import Attribution, Capture, Client, Contrast, Decoding
from sidelight.server.models import bundled_model
from sidelight.server.sampling import ContrastLogits, step_scores

NAMES = [
    "contrast_logits",
    "contrast_prob",
    "contrast_logits_diff",
    "contrast_prob_diff",
    "pcxmi",
    "kl_divergence",
    "in_context_pvi",
]
FEW = ["pcxmi", "kl_divergence"]  # Inseq runs the model once more for each score
SOURCE, OTHER_SOURCE = SENTENCES[1], SENTENCES[2]


# ---- formulas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.9, 0), (0.3, 0), (1.0, 1), (1.0, 503), (0.9, 5)])
def test_the_kept_tokens_of_the_divergence_are_inseqs(scale, top_p, top_k):
    """Inseq's own divergence of some of the tokens is NaN, since it multiplies 0 by infinity."""
    generator = torch.Generator().manual_seed(2)
    logits, others = torch.randn(2, 7, 503, generator=generator) * scale
    (ours,) = step_scores(
        ["kl_divergence"], logits, torch.arange(7), 0.9, ContrastLogits(others, torch.arange(7), top_p, top_k)
    ).T
    kept = [filter_logits(a[None], b[None], top_p, top_k) for a, b in zip(logits, others, strict=True)]
    expected = []
    for first, second in kept:
        p, q = (each.double().softmax(-1) for each in (first, second))
        expected.append(float((p[p > 0] * (p[p > 0].log() - q[p > 0].log())).sum()))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_formulas_are_inseqs(scale, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    logits, others = torch.randn(2, 5, 503, generator=generator) * scale
    targets, other_targets = torch.tensor([0, 502, 7, 99, 3]), torch.tensor([1, 502, 9, 4, 44])
    ours = step_scores(NAMES, logits, targets, 0.9, ContrastLogits(others, other_targets))

    def arguments(line: torch.Tensor, target: torch.Tensor) -> Any:
        model = SimpleNamespace(output2logits=lambda output: output, get_forward_output=lambda batch, **_: batch)
        return SimpleNamespace(
            attribution_model=SimpleNamespace(**vars(model), is_encoder_decoder=True),
            forward_output=line[None],
            target_ids=target[None],
            is_attributed_fn=False,
        )

    for row in range(5):
        contrast = arguments(others[row], other_targets[row])
        monkeypatch.setattr(step_functions, "_setup_contrast_args", lambda *_, made=contrast, **__: made)
        batch = SimpleNamespace(batch=others[row][None])
        monkeypatch.setattr(step_functions, "_get_contrast_inputs", lambda made=batch, **_: made)
        theirs = [step_functions.STEP_SCORES_MAP[name](arguments(logits[row], targets[row])) for name in NAMES]
        np.testing.assert_allclose(ours[row].numpy(), [float(score) for score in theirs], rtol=1e-4, atol=1e-5)


# ---- through the server ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A model, its folder, and a client of its server."""

    name: str
    path: Path
    client: Client
    is_encoder_decoder: bool

    @property
    def languages(self) -> dict[str, str]:
        family = FAMILIES.get(self.name)
        if family is None or not family.source_language:
            return {}
        return {"source_language": family.source_language, "target_language": family.target_language}

    def attribute(self, **options: Any) -> Attribution:
        options.setdefault("scores", NAMES)
        if "target" not in options:
            options.setdefault("decoding", Decoding(max_new_tokens=9))
        return self.client.attribute(SOURCE, timeout=120, **self.languages, **options).result()


@pytest.fixture(scope="module")
def serve(bundled_server, zoo, zoo_folder) -> Iterator[Callable[[str], Served]]:
    servers = dict[str, Served]()
    with ExitStack() as stack:

        def get(name: str) -> Served:
            if name not in servers:
                path = build_model(name, zoo_folder)
                client = stack.enter_context(Client(stack.enter_context(serving(zoo(name)))))
                servers[name] = Served(name, path, client, FAMILIES[name].is_encoder_decoder)
            return servers[name]

        servers["bundled"] = Served("bundled", bundled_model(), stack.enter_context(Client(bundled_server)), True)
        yield get


def ids_of(tokens) -> list[int]:
    return [token.id for token in tokens]


def check_scores(ours: Attribution, theirs: dict[str, np.ndarray]) -> None:
    for name, numbers in theirs.items():
        np.testing.assert_allclose(ours.scores[name], numbers, rtol=1e-4, atol=1e-4, err_msg=name)
    # The contexts differ: otherwise each of these scores would be 0.
    assert np.abs(ours.scores["pcxmi"]).max() > 1e-3
    assert ours.scores["kl_divergence"].max() > 1e-4


@pytest.mark.parametrize("given", [False, True], ids=["decoded", "given"])
@pytest.mark.parametrize("name", slow_except(["bundled", "t5", "nllb"], ["bundled"]))
def test_another_source_is_inseqs(serve, name, given):
    served = serve(name)
    ours = served.attribute(
        contrast=Contrast(source=OTHER_SOURCE),
        **({"target": SENTENCES[4]} if given else {}),
        capture=Capture(none=True),
    )
    theirs = inseq_peer.step_scores(
        served.path,
        SOURCE,
        ids_of(ours.decoder_positions),
        NAMES,
        contrast_sources=[OTHER_SOURCE],
        **served.languages,
    )
    check_scores(ours, theirs)


@pytest.mark.parametrize("given", [False, True], ids=["decoded", "given"])
@pytest.mark.parametrize("name", slow_except(["gpt2", "llama"], ["gpt2"]))
def test_another_prompt_is_inseqs(serve, name, given):
    """Inseq has no contrast source for these models: it gets prompt and continuation as a contrast target."""
    served = serve(name)
    ours = served.attribute(contrast=Contrast(source=OTHER_SOURCE), **({"target": " Der Hund."} if given else {}))
    prompt = served.client.attribute(OTHER_SOURCE, decoding=Decoding(max_new_tokens=1)).result()
    assert len(prompt.source) != len(ours.source)
    theirs = inseq_peer.step_scores(
        served.path,
        SOURCE,
        ids_of(ours.decoder_positions),
        FEW,
        contrast_target_ids=[*ids_of(prompt.source), *ids_of(ours.steps)],
    )
    check_scores(ours, theirs)


@pytest.mark.parametrize("alignments", [(), [(1, 2), (3, 1), (4, 1)]], ids=["none", "three"])
@pytest.mark.parametrize("name", slow_except(["bundled", "t5"], ["bundled"]))
def test_another_target_is_inseqs(serve, name, alignments):
    served = serve(name)
    ids = ids_of(served.client.attribute(SOURCE, target=SENTENCES[4], timeout=60).result().decoder_positions)
    start, ids = ids[:1], ids[1:]
    others = [*reversed(ids[:-1]), ids[-1]]
    if alignments:  # the targets then need not be of the same length
        others = others[2:]
    ours = served.attribute(target=ids, contrast=Contrast(target=others, alignments=alignments))
    # Inseq's positions count the start token.
    pairs = {"contrast_targets_alignments": [(a + 1, b + 1) for a, b in alignments]} if alignments else {}
    theirs = inseq_peer.step_scores(
        served.path, SOURCE, [*start, *ids], FEW, contrast_target_ids=[*start, *others], **pairs
    )
    check_scores(ours, theirs)


def test_another_target_may_be_shorter_or_longer_than_the_pairs_reach(serve):
    """Steps without a pair are counted from the ends; where the contrast target has no such step, from its last one."""
    served = serve("bundled")
    ids = ids_of(served.client.attribute(SOURCE, target=SENTENCES[4], timeout=60).result().steps)
    ours = served.attribute(target=ids, contrast=Contrast(target=ids[:2], alignments=[(2, 0)]))
    theirs = inseq_peer.step_scores(
        served.path,
        SOURCE,
        [ours.context[0].id, *ids],
        FEW,
        contrast_target_ids=[ours.context[0].id, *ids[:2]],
        contrast_targets_alignments=[(3, 1)],
    )
    check_scores(ours, theirs)


@pytest.mark.parametrize("given", [False, True], ids=["decoded", "given"])
def test_another_prefix_is_a_contrast_target_of_inseq(serve, given):
    served = serve("bundled")
    prefix = ids_of(served.client.attribute(SOURCE, decoding=Decoding(max_new_tokens=3), timeout=60).result().steps)
    prefix.reverse()
    ours = served.attribute(contrast=Contrast(prefix=prefix), **({"target": SENTENCES[4]} if given else {}))
    start, steps = ids_of(ours.context), ids_of(ours.steps)
    theirs = inseq_peer.step_scores(
        served.path,
        SOURCE,
        [*start, *steps],
        FEW,
        contrast_target_ids=[*start, *prefix, *steps],
        contrast_targets_alignments=[(1 + i, 4 + i) for i in range(len(steps))],
    )
    check_scores(ours, theirs)


@pytest.mark.parametrize("name", slow_except(["bundled", *FAMILIES], ["bundled", "t5", "fsmt", "gpt2", "gemma3"]))
def test_decoded_and_given_targets_have_the_same_scores(serve, name):
    """In every family, in slots or not: a contrast changes no token, and its scores are those of the whole pass."""
    served = serve(name)
    options: dict[str, Any] = {"scores": ["probability", *NAMES], "capture": Capture(none=True)}
    contrast = Contrast(source=OTHER_SOURCE, kl_top_p=0.8, kl_top_k=20)
    decoded = served.attribute(contrast=contrast, **options)
    plain = served.attribute(scores=["probability"])
    assert ids_of(decoded.steps) == ids_of(plain.steps)
    np.testing.assert_allclose(decoded.scores["probability"], plain.scores["probability"], rtol=1e-5)
    given = served.attribute(target=ids_of(decoded.steps), contrast=contrast, **options)
    for score in options["scores"]:
        np.testing.assert_allclose(decoded.scores[score], given.scores[score], rtol=1e-4, atol=1e-4, err_msg=score)
    assert np.abs(given.scores["pcxmi"]).max() > 1e-3
    assert (given.scores["kl_divergence"] >= -1e-6).all()


@pytest.mark.parametrize("row", ["predicting", "reading"])
def test_the_row_changes_no_score(serve, row):
    served = serve("bundled")
    for target in ({}, {"target": SENTENCES[4]}):
        ours = served.attribute(contrast=Contrast(source=OTHER_SOURCE), capture=Capture(row=row), **target)
        plain = served.attribute(contrast=Contrast(source=OTHER_SOURCE), capture=Capture(none=True), **target)
        for name in NAMES:
            np.testing.assert_allclose(ours.scores[name], plain.scores[name], atol=1e-5)


# ---- differences of attention ---------------------------------------------------------------------------------------

PAIRS = [("He is my friend.", "Er ist mein Freund."), ("She is my friend.", "Sie ist mein Freund.")]


def difference(served: Served, capture: Capture, contrast: Contrast | None = None) -> Attribution:
    (source, target), (other_source, other_target) = PAIRS
    if contrast is None:
        contrast = Contrast(source=other_source, target=other_target, subtract_attention=True)
    return served.client.attribute(source, target=target, capture=capture, contrast=contrast, timeout=60).result()


def test_a_difference_is_inseqs_pair(serve):
    served = serve("bundled")
    ours = difference(served, Capture(kinds=("cross", "decoder_self", "encoder_self")))
    theirs = inseq_peer.difference(served.path, *PAIRS)
    assert ids_of(ours.source) == theirs.source_ids
    assert ids_of(ours.decoder_positions) == theirs.target_ids
    np.testing.assert_allclose(ours.cross, theirs.source, atol=1e-5)
    np.testing.assert_allclose(ours.decoder_self, theirs.target, atol=1e-5)
    np.testing.assert_allclose(ours.encoder_self.swapaxes(0, 1), theirs.encoder, atol=1e-5)
    assert min(ours.cross.min(), np.nanmin(ours.decoder_self), ours.encoder_self.min()) < -0.1


def test_a_difference_of_continuations_is_inseqs_pair(serve):
    served = serve("gpt2")
    texts = [" the dog the fox", " fox the the dog"]
    contrast = Contrast(target=texts[1], subtract_attention=True)
    ours = served.client.attribute(SOURCE, target=texts[0], contrast=contrast, timeout=60).result()
    theirs = inseq_peer.difference(served.path, (SOURCE, SOURCE + texts[0]), (SOURCE, SOURCE + texts[1]))
    np.testing.assert_allclose(ours.decoder_self, theirs.target, atol=1e-5)
    assert np.nanmin(ours.decoder_self) < -0.01


@pytest.mark.parametrize("row", ["predicting", "reading"])
@pytest.mark.parametrize("reduced", [{}, {"over_heads": "max", "over_layers": "l2"}, {"heads": [(0, 1), (1, 0)]}])
@pytest.mark.parametrize("name", ["bundled", "fsmt", "gpt2"])
def test_a_difference_is_that_of_two_requests(serve, name, reduced, row):
    """Also of reduced attention, and of models without an encoder or without rows."""
    served = serve(name)
    ids = ids_of(served.client.attribute(SOURCE, target=" der Hund", timeout=60).result().steps)
    others = ids[::-1]
    kinds = ("cross", "decoder_self", "encoder_self") if served.is_encoder_decoder else ("decoder_self",)
    capture = Capture(kinds=kinds, row=row, **reduced)
    contrast = Contrast(target=others, subtract_attention=True)
    ours = served.attribute(target=ids, capture=capture, contrast=contrast)
    first, second = (served.attribute(target=part, capture=capture, scores=()) for part in (ids, others))
    for kind in kinds:
        expected = getattr(first, kind) - getattr(second, kind)
        np.testing.assert_allclose(getattr(ours, kind), expected, atol=1e-6)
    assert np.nanmax(np.abs(ours.decoder_self)) > 1e-3


def test_a_difference_in_fewer_numbers_keeps_the_greatest_of_both_signs(serve):
    served = serve("bundled")
    kinds = ("cross", "decoder_self", "encoder_self")
    whole = difference(served, Capture(kinds=kinds))
    half = difference(served, Capture(kinds=kinds, encoding="float16"))
    few = difference(served, Capture(kinds=kinds, top_k=2))
    for kind in kinds:
        full, kept = getattr(whole, kind), getattr(few, kind)
        np.testing.assert_array_equal(getattr(half, kind), full.astype(np.float16))
        axis = 1 if kind == "encoder_self" else 0
        sizes = np.sort(np.abs(np.nan_to_num(full)), axis)
        threshold = np.take(sizes, [-2], axis)
        np.testing.assert_array_equal(np.nan_to_num(kept), np.where(np.abs(full) >= threshold, full, 0.0))
        assert (np.nan_to_num(kept) < 0).any()
