"""The further families: rows and tokens are the model's own, decoded and given, in slots beside neighbours.

`test_parity` has the families that everything is tested on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peers
import pytest
from combinations import slow_except
from further_families import FURTHER_FAMILIES
from harness import serving
from model_rows import check_rows
from model_zoo import SENTENCES, TARGET, Family, build_model
from sidelight.client import Attribution, Capture, Client, Decoding, Greedy
from sidelight.server.models.loader import LoadedModel, load

# Families of different mechanisms; the others run with the slow tests.
QUICK = {
    "nllb-moe",
    "blenderbot",
    "t5gemma",
    "mistral",
    "gpt_neox",
    "deepseek_v3",
    "gpt_oss",
    "falcon-alibi",
}
# Of different lengths, so that slots are at different positions. The longest is longer than every window.
SOURCES = [SENTENCES[0], SENTENCES[1][:9], " ".join(SENTENCES[2:5]), SENTENCES[5]]
NEW_TOKENS = 9


@dataclass(frozen=True)
class Served:
    """A model of a family, its folder, and a client of its server."""

    family: Family
    path: Path
    loaded: LoadedModel
    client: Client

    def attribute(self, **options) -> list[Attribution]:
        """Attributions of all sources, which run side by side."""
        family, has_languages = self.family, bool(self.loaded.tokenizer.languages)
        if has_languages:
            options |= {"source_language": family.source_language, "target_language": family.target_language}
        options.setdefault("capture", Capture(kinds=self.loaded.kinds))
        streams = [self.client.attribute(source, timeout=120, **options) for source in SOURCES]
        return [stream.result() for stream in streams]


@pytest.fixture(scope="module", params=slow_except(FURTHER_FAMILIES, QUICK))
def served(request, tmp_path_factory) -> Iterator[Served]:
    family = FURTHER_FAMILIES[request.param]
    path = build_model(request.param, tmp_path_factory.mktemp("zoo"), family)
    loaded = load(path)
    with serving(loaded) as address, Client(address) as client:
        yield Served(family, path, loaded, client)


def test_it_runs_as_the_table_says(served):
    assert served.loaded.attention_layers.captures_rows == served.family.captures_rows
    assert list(served.loaded.attention_layers.methods) == served.family.methods
    assert (served.loaded.backend is not None) == served.family.in_slots


def test_decoded_beside_neighbours(served):
    """The tokens are those of `generate`, the rows those of one eager pass."""
    decoding = Decoding(Greedy(), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    attributions = served.attribute(decoding=decoding)
    tokenizer, family = served.loaded.tokenizer, served.family
    languages = tokenizer.resolve_languages(family.source_language, family.target_language)
    options: dict[str, int] = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    if (first_id := tokenizer.forced_first_id(languages)) is not None:
        options["forced_bos_token_id"] = first_id
    written = []
    for ours in attributions:
        written.append([token.id for token in ours.steps])
        assert written[-1] == peers.generate_ids(served.path, [token.id for token in ours.source], **options)
        check_rows(ours, served.path)
    # Otherwise a row of another slot or step could pass.
    assert len({tuple(ids) for ids in written}) > 1
    assert max(len(set(ids)) for ids in written) > 2
    longest = attributions[2].decoder_self[:, -1]
    assert np.nanmax(longest, axis=0).mean() > 2 / longest.shape[0]


@pytest.mark.parametrize("row", ["predicting", "reading"])
def test_given(served, row):
    target = TARGET if served.loaded.is_encoder_decoder else " " + TARGET
    for ours in served.attribute(target=target, capture=Capture(kinds=served.loaded.kinds, row=row)):
        check_rows(ours, served.path)


def test_a_reduction_is_one_of_the_rows(served):
    kinds = served.loaded.kinds
    options = {"decoding": Decoding(Greedy(), max_new_tokens=3, min_new_tokens=3)}
    whole = served.attribute(**options)
    reduced = served.attribute(capture=Capture(kinds=kinds, over_heads="mean", over_layers="max"), **options)
    for ours, rows in zip(reduced, whole, strict=True):
        for kind in kinds:
            expected = getattr(rows, kind).mean(axis=3).max(axis=2)
            np.testing.assert_allclose(getattr(ours, kind), expected, atol=1e-5, rtol=2e-5)


@pytest.mark.parametrize("served", ["gpt_oss"], indirect=True)
def test_an_attention_sink_takes_a_share_and_is_no_position(served):
    options = {"decoding": Decoding(Greedy(), max_new_tokens=3, min_new_tokens=3)}
    without_special = Capture(kinds=served.loaded.kinds, special_tokens="renormalize")
    whole, left = served.attribute(**options), served.attribute(capture=without_special, **options)
    for rows, renormalized in zip(whole, left, strict=True):
        sums = np.nansum(rows.decoder_self, axis=0)
        assert 0.1 < sums.min() < 0.99
        assert sums.max() < 1
        np.testing.assert_allclose(np.nansum(renormalized.decoder_self, axis=0), 1, atol=1e-5)
        assert (renormalized.special_shares["decoder_self"] < 1 - sums.min()).all()  # the sink is no special token
