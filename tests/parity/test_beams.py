"""Beam search gives the hypotheses of transformers' `generate`, with their scores, in slots and one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import peers
import pytest
import torch
from mixed_requests import IN_SLOTS, slots_run
from model_zoo import FAMILIES, SENTENCES, build_model
from sidelight.server.api.validation import validate_request
from sidelight.server.models.loader import LoadedModel, bundled_model, load
from sidelight.server.request import Finished, Request
from sidelight.server.runner.runner import Runner
from sidelight.server.runner.sequence import SearchOutput
from sidelight.server.runner.unbatched_runner import UnbatchedRunner
from sidelight.server.sampling import FoundHypothesis
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

DATA = Path(__file__).parents[3] / "shared" / "data" / "tatoeba-en-de.dev.tsv"
EARLY_STOPPING = {"first": True, "unlikely": False, "never": "never"}
QUICK = ("nllb", "gemma3", "fsmt")  # forced first tokens; windows; no slots
LENGTH_PENALTIES = (0.0, 0.6, 1.5, -0.5, 2.0)


def message(family, number: int, source: str, *, max_new_tokens: int = 0) -> pb.AttributeRequest:
    """Makes a request by its number. Requests differ in width, penalties, the end of the search, and lengths."""
    request = pb.AttributeRequest(source_language=family.source_language, target_language=family.target_language)
    request.source.text = source
    decoding = request.decoding
    decoding.max_new_tokens = max_new_tokens or (40, 12, 6)[number % 3]
    decoding.beam.width = 2 + number % 7
    decoding.beam.hypotheses = 1 + number % decoding.beam.width
    decoding.beam.early_stopping = number % 4
    if number % 3:
        decoding.beam.length_penalty = LENGTH_PENALTIES[number % 5]
    if number % 5 == 1:
        decoding.no_repeat_ngram_size = 2
    elif number % 5 == 2:
        decoding.repetition_penalty = 1.3
    elif number % 5 == 3:
        decoding.min_new_tokens = min(8, decoding.max_new_tokens)
    if number % 6 == 1:
        request.prefix.text = "Der Hund"
    return request


@torch.inference_mode()
def search(runner: Runner, requests: list[Request]) -> list[list[FoundHypothesis]]:
    """Runs beam searches side by side. Returns what each has found."""
    sequences = runner.add(requests)
    found: dict[object, list[FoundHypothesis]] = {}
    for sequence in sequences:
        assert not isinstance(sequence, Exception), sequence
        while sequence.is_prefilling:
            runner.prefill(sequence)
    while waiting := [sequence for sequence in sequences if sequence not in found]:
        for sequence, output in runner.decode(waiting[: runner.max_batch_size]):
            assert isinstance(output, SearchOutput), output
            found[sequence] = output.hypotheses
            runner.remove(sequence)
    return [found[sequence] for sequence in sequences]


def generate(path: Path, loaded: LoadedModel, request: Request) -> list[tuple[list[int], float]]:
    """Runs transformers' `generate`. Returns the new tokens of each hypothesis, padding included, and its score."""
    params = request.target
    prompt = [*request.decoder_prompt_ids]
    options = {"decoder_input_ids": torch.tensor([prompt])} if loaded.is_encoder_decoder else {}
    prompt = prompt if loaded.is_encoder_decoder else [*request.source.ids, *prompt]
    ids = torch.tensor([request.source.ids if loaded.is_encoder_decoder else prompt])
    output = peers.load_model(path).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=params.beam.width,
        num_return_sequences=params.beam.num_hypotheses,
        length_penalty=params.beam.length_penalty,
        early_stopping=EARLY_STOPPING[params.beam.early_stopping],
        max_new_tokens=params.max_new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **params.generation,
        **options,
    )
    return [
        (sequence[len(prompt) :].tolist(), score)
        for sequence, score in zip(output.sequences, output.sequences_scores.tolist(), strict=True)
    ]


def assert_found(found: list[FoundHypothesis], expected: list[tuple[list[int], float]]) -> None:
    """Compares hypotheses. Where two are as likely within 1e-5, either may be there."""
    scores = [score for _, score in expected]
    np.testing.assert_allclose([hypothesis.score for hypothesis in found], scores, atol=1e-5, rtol=1e-5)
    for index, (hypothesis, (ids, score)) in enumerate(zip(found, expected, strict=True)):
        others = scores[:index] + scores[index + 1 :]
        is_tied = any(abs(other - score) < 1e-5 for other in others) or index == len(found) - 1 > 0
        assert is_tied or list(hypothesis.ids) == ids[: len(hypothesis.ids)]


def check(path: Path, loaded: LoadedModel, requests: list[Request], runner: Runner, *, together: int) -> None:
    for first in range(0, len(requests), together):
        group = requests[first : first + together]
        for request, found in zip(group, search(runner, group), strict=True):
            assert_found(found, generate(path, loaded, request))


def bundled_requests(loaded: LoadedModel, count: int) -> Iterator[Request]:
    family = FAMILIES["marian"]
    lines = DATA.read_text(encoding="utf-8").splitlines()[:count] if count > len(SENTENCES) else SENTENCES[:count]
    for number, line in enumerate(lines):
        yield validate_request(message(family, number, line.split("\t")[0]), loaded, "")


def test_the_bundled_model(bundled):
    requests = [*bundled_requests(bundled, len(SENTENCES))]
    check(bundled_model(), bundled, requests, slots_run(bundled, 24).runner, together=3)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="the sentences are not in the repository")
def test_200_sentences(bundled):
    requests = [*bundled_requests(bundled, 200)]
    check(bundled_model(), bundled, requests, slots_run(bundled, 32).runner, together=4)


NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize("name", NAMES)
def test_the_zoo(name, tmp_path):
    path = build_model(name, tmp_path)
    loaded = load(path)
    messages = [message(FAMILIES[name], number, SENTENCES[number][:40], max_new_tokens=9) for number in (0, 1, 2, 3)]
    requests = [validate_request(each, loaded, "") for each in messages]
    if name in IN_SLOTS:
        check(path, loaded, requests, slots_run(loaded, 16).runner, together=4)
    # The second request has a prefix, whose tokens `generate` lets see their future in FSMT's decoder.
    check(path, loaded, requests[2:], UnbatchedRunner(loaded, 16), together=2)


def test_stop_texts_end_hypotheses(bundled):
    """As `generate` with `stop_strings`: the text of a hypothesis is looked at, not its tokens."""
    request = pb.AttributeRequest(source=text.Text(text="My grandmother is still vigorous and likes to dance."))
    request.decoding.beam.CopyFrom(text.Beam(width=3, hypotheses=3))
    request.decoding.stop.extend(["mutter ist", "Oma"])
    validated = validate_request(request, bundled, "")
    (found,) = search(slots_run(bundled, 3).runner, [validated])
    tokenizer = bundled.tokenizer
    ids = torch.tensor([validated.source.ids])
    output = peers.load_model(bundled_model()).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=3,
        num_return_sequences=3,
        return_dict_in_generate=True,
        output_scores=True,
        stop_strings=["mutter ist", "Oma"],
        tokenizer=peers.load_tokenizer(bundled_model()),
    )
    rows, scores = output.sequences[:, 1:].tolist(), output.sequences_scores.tolist()
    expected = [*zip(rows, scores, strict=True)]
    assert_found(found, expected)
    assert "stop_text" in {hypothesis.stop_reason for hypothesis in found}
    stopped = next(hypothesis for hypothesis in found if hypothesis.stop_reason == "stop_text")
    assert any(stop in tokenizer.detokenize(stopped.ids).text for stop in ("mutter ist", "Oma"))


@torch.inference_mode()
def test_neighbours_keep_their_bits(bundled):
    """Greedy and drawn targets beside a beam search have the rows, to the bit, that they have beside other targets."""
    sources = [pb.AttributeRequest(source=text.Text(text=sentence)) for sentence in SENTENCES[:3]]
    sources[1].decoding.sampling.seed = 5
    sources[2].decoding.beam.width = 4
    requests = [validate_request(each, bundled, "") for each in sources]
    runs = [slots_run(bundled, 6) for _ in range(2)]
    outputs = []
    for run, group in zip(runs, (requests, requests[:2]), strict=True):
        sequences = run.add_all(group)
        run.finish()
        outputs.append([run.outputs[sequence] for sequence in sequences[:2]])
    for ours, theirs in zip(*outputs, strict=True):
        assert isinstance(ours[-1], Finished)
        assert ours[-1] == theirs[-1]
        for mine, other in zip(ours[1:-1], theirs[1:-1], strict=True):
            assert mine.token == other.token
            np.testing.assert_array_equal(mine.cross.values, other.cross.values)
