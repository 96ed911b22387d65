"""Units equal what Inseq's aggregators make of the attribution by tokens, through the server and the client."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inseq_files import load_with_inseq
from sidelight.client import Attribution, Capture, Client, Token, UnitOptions, save
from sidelight.server.text import find_words

KINDS = ("cross", "decoder_self", "encoder_self")
SCORES = ["probability", "entropy"]
INSEQ_NAMES = {"l2": "vnorm"}
SENTENCES = (
    "My grandmother is still vigorous at 82 years old.",
    "I don't want to be your friend, okay?",
    "Where did you buy that old book?",
    "Mr. Smith's extraordinarily unbelievable handwriting is illegible.",
    "The meeting begins at 3.30, doesn't it?",
    'He said: "Photosynthesis is incomprehensible!"',
    "Unfortunately, nobody understands Shakespeare's vocabulary.",
    "Kangaroos, crocodiles; koalas (and more).",
    "No.",
    "Yesterday I accidentally misspelled «antidisestablishmentarianism».",
    "We've never been to Reykjavik - have you?",
    "My sister is learning German this year.",
)
SHARED = Path(__file__).parents[3] / "shared" / "data" / "tatoeba-en-de.dev.tsv"
WORD = re.compile(r"\w+(?:['.:]\w+)*|[^\w\s]")


@pytest.fixture(scope="module")
def client(bundled_server) -> Iterator[Client]:
    with Client(bundled_server) as client:
        yield client


def ranges_of(tokens: Sequence[Token], spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The tokens of each span, as Inseq counts them: all tokens whose first character the span has."""
    ranges = []
    for begin, end in spans:
        inside = [index for index, token in enumerate(tokens) if not token.special and begin <= token.begin < end]
        # A token that covers nothing, such as "▁" alone, stands before the token that it belongs to.
        while inside and inside[0] and not tokens[inside[0] - 1].special and not tokens[inside[0] - 1].text:
            inside.insert(0, inside[0] - 1)
        inside = [index for index in inside if tokens[index].text or index < inside[-1]]
        if inside:
            ranges.append((inside[0], inside[-1] + 1))
    return ranges


def word_spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in WORD.finditer(text)]


def aggregate(tokens: Attribution, tmp_path, source, target, over_positions: str, over_steps: str) -> Any:
    """Inseq's aggregation of our attribution by tokens: first the source, then the target."""
    sequence = read_with_inseq(tokens, tmp_path)
    positions, steps = (INSEQ_NAMES.get(name, name) for name in (over_positions, over_steps))
    if positions == steps:
        return sequence.aggregate("spans", aggregate_fn=steps, source_spans=source, target_spans=target)
    halfway = sequence.aggregate("spans", aggregate_fn=positions, source_spans=source)
    return halfway.aggregate("spans", aggregate_fn=steps, target_spans=target)


def read_with_inseq(attribution: Attribution, folder: Path) -> Any:
    """The attribution as an object of Inseq."""
    path = folder / "tokens.json"
    save(attribution, path)
    return load_with_inseq(path).sequence_attributions[0]


def attribute(client: Client, sentence: str, target: str | None = None, **capture) -> Attribution:
    options = {"capture": Capture(kinds=KINDS, **capture), "scores": SCORES, "timeout": 120}
    return client.attribute(sentence, target=target, **options).result()


def compare(units: Attribution, theirs: Any, *, both: bool) -> None:
    """`both`: Inseq has reduced positions and steps with one function, also those of the decoder and the encoder."""
    np.testing.assert_allclose(units.cross, theirs.source_attributions.numpy(), atol=1e-6)
    assert units.cross.shape[:2] == (len(units.source_positions), len(units.targets))
    for name in SCORES:
        np.testing.assert_allclose(units.unit_scores[name], theirs.step_scores[name].numpy(), atol=1e-6, rtol=1e-5)
    if not both:
        return
    encoder = theirs.sequence_scores["encoder_self_attentions"].numpy()
    np.testing.assert_allclose(units.encoder_self.swapaxes(0, 1), encoder, atol=1e-6)
    own = theirs.target_attributions.numpy()
    first = len(units.started.prefix_units)
    for index in range(len(units.units)):
        # In Inseq, a unit's own positions are NaN where one of its steps has not seen one of them.
        seen = slice(first + index)
        np.testing.assert_allclose(units.decoder_self[seen, index], own[seen, index], atol=1e-6)


def check_words(
    client: Client,
    sentence: str,
    tmp_path,
    over_positions: str,
    over_steps: str,
    find: Callable[[str], list[tuple[int, int]]] = word_spans,
) -> None:
    by_tokens = attribute(client, sentence)
    options = UnitOptions(over_positions=over_positions, over_steps=over_steps, over_scores=over_steps)
    by_words = attribute(client, sentence, grouping="word", units=options)
    assert by_words.text == by_tokens.text
    source = ranges_of(by_tokens.source, find(sentence))
    target = ranges_of(by_tokens.steps, find(by_tokens.text))
    shifted = [(begin + 1, end + 1) for begin, end in target]  # behind the start token
    ends = [(unit.first_step, unit.end_step) for unit in by_words.units]
    assert [steps for steps in ends if steps in target] == target
    theirs = aggregate(by_tokens, tmp_path, source, shifted, over_positions, over_steps)
    compare(by_words, theirs, both=over_positions == over_steps)


@pytest.mark.parametrize("name", ["mean", "max", "min", "sum", "prod", "absmax", "l2"])
def test_words_are_inseqs_contiguous_spans(client, tmp_path, name):
    for sentence in SENTENCES[:2]:
        check_words(client, sentence, tmp_path, name, name)


def test_the_defaults_are_the_sum_of_the_source_and_the_mean_of_the_target(client, tmp_path):
    for sentence in SENTENCES:
        check_words(client, sentence, tmp_path, "sum", "mean")
    default = attribute(client, sentence, grouping="word")
    options = UnitOptions(over_positions="sum", over_steps="mean", over_scores="mean")
    named = attribute(client, sentence, grouping="word", units=options)
    np.testing.assert_array_equal(default.cross, named.cross)
    np.testing.assert_allclose(default.cross.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(np.nansum(default.decoder_self, 0), 1, atol=1e-5)


@pytest.mark.slow
def test_200_sentences_are_grouped_as_inseq_groups_them(client, tmp_path):
    if not SHARED.exists():
        pytest.skip("../shared is not here")
    sentences = [line.split("\t")[0] for line in SHARED.read_text(encoding="utf-8").splitlines()[:200]]
    assert len(sentences) == 200
    for number, sentence in enumerate(sentences):
        name = ["mean", "max", "sum", "absmax"][number % 4]
        check_words(client, sentence, tmp_path, name, name, find_words)


def test_spans_of_pieces_are_inseqs_subwords(client, tmp_path):
    """Inseq joins the pieces behind a "▁": the words between spaces, with their punctuation marks."""
    for sentence in SENTENCES[:4]:
        written = attribute(client, sentence).text
        by_tokens = attribute(client, sentence, written)
        spans = [[match.span() for match in re.finditer(r"\S+", text)] for text in (sentence, written)]
        options = UnitOptions("mean", "mean", "mean", source_spans=spans[0], target_spans=spans[1])
        by_spans = attribute(client, sentence, written, grouping="span", units=options)
        theirs = read_with_inseq(by_tokens, tmp_path).aggregate("subwords", aggregate_fn="mean")
        assert len(by_spans.units) == len(spans[1]) + 1  # and the end token
        compare(by_spans, theirs, both=True)


def test_slices_are_inseqs_slices(client, tmp_path):
    sentence = SENTENCES[1]
    by_tokens = attribute(client, sentence)
    slices = [word_spans(sentence)[1], word_spans(sentence)[3]]
    sliced = attribute(client, sentence, units=UnitOptions(source_slices=slices))
    # Inseq cannot cut encoder self-attention by spans of different lengths.
    without_encoder = dataclasses.replace(by_tokens, encoder_self=None)
    spans = ranges_of(by_tokens.source, slices)
    theirs = read_with_inseq(without_encoder, tmp_path).aggregate("slices", source_spans=spans)
    np.testing.assert_array_equal(sliced.cross, theirs.source_attributions.numpy())
    assert sliced.cross.shape[0] == len(sliced.source_positions) < len(by_tokens.source)
    kept = list(sliced.started.sent_positions)
    np.testing.assert_array_equal(sliced.encoder_self, by_tokens.encoder_self[kept][:, kept])
    np.testing.assert_array_equal(sliced.decoder_self, by_tokens.decoder_self)
