"""The tokens of a batch are the tokens of each request alone: those of transformers' processors, and of `generate`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_zoo import FAMILIES, SENTENCES, build_model
from peers import generate_ids
from sidelight.server.models.loader import LoadedModel, load
from sidelight.server.request import DecodingParams
from sidelight.server.sampling import Sampler, SamplerOutput, logits_ops
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LogitsProcessorList, TopPLogitsWarper

SLOTS, LENGTH = 4, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module", params=["nllb", "gpt2"])
def small(request, folder) -> LoadedModel:
    return load(build_model(request.param, folder), packed=False)


# ---- the reference: transformers' own processors ---------------------------------------------------------------------


class ReferenceSampler:
    """One request alone, sampled by transformers' processors and torch's multinomial."""

    def __init__(
        self, loaded: LoadedModel, decoding: DecodingParams, context: list[int], source: list[int] | None
    ) -> None:
        model: Any = loaded.model
        config, _ = model._prepare_generation_config(None)
        for name, value in decoding.generation.items():
            setattr(config, name, value)
        config.do_sample = decoding.do_sample
        config.num_beams = 1
        config.max_length = len(context) + decoding.max_new_tokens
        if decoding.ignore_eos:
            config.forced_eos_token_id = None
        self.ids = torch.tensor([context])
        model._prepare_special_tokens(config, True)
        self.processors = model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=len(context),
            encoder_input_ids=self.ids if source is None else torch.tensor([source]),
            logits_processor=LogitsProcessorList(),
            model_kwargs={},
        )
        self.generator = torch.Generator().manual_seed(decoding.seed or 0) if decoding.do_sample else None

    def step(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the numbers behind the choice, `[1, vocabulary]`, and the token; no token where numbers are NaN."""
        scores = self.processors(self.ids, logits[None].to(torch.float32, copy=True))
        if self.generator is None:
            return scores, None if scores.isnan().any() else scores.argmax(-1)
        probabilities = scores.softmax(-1)
        state = self.generator.get_state()
        token = None if probabilities.isnan().any() else torch.multinomial(probabilities, 1, generator=self.generator)
        self.generator.set_state(state)
        return probabilities / torch.empty_like(probabilities).exponential_(generator=self.generator), token

    def append(self, token: Tensor) -> None:
        self.ids = torch.cat([self.ids, token.view(1, 1)], dim=-1)


@contextmanager
def argmax_inputs() -> Iterator[list[Tensor]]:
    """Keeps the numbers that tokens are chosen by."""
    inputs: list[Tensor] = []
    argmax = logits_ops.argmax

    def keep(numbers: Tensor) -> Tensor:
        inputs.append(numbers.clone())
        return argmax(numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logits_ops, "argmax", keep)
        yield inputs


@dataclass
class Batch:
    """A sampler, and a reference sampler for each of its requests."""

    loaded: LoadedModel

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.loaded, SLOTS, LENGTH)
        self.references: dict[int, ReferenceSampler] = {}
        self.draws: dict[int, bool] = {}

    def add(self, slot: int, decoding: DecodingParams, context: list[int], source: list[int] | None) -> None:
        self.sampler.add(slot, decoding, context, source)
        self.references[slot] = ReferenceSampler(self.loaded, decoding, context, source)
        self.draws[slot] = decoding.do_sample

    def remove(self, slot: int) -> None:
        self.sampler.remove(slot)
        del self.references[slot]

    def step(self, logits: Tensor, active: list[int]) -> None:
        """Samples, and compares each active slot with its reference."""
        before = logits.clone()
        with argmax_inputs() as inputs:
            output = self.sampler.sample(logits, active)
        errors = dict(self.sampler.errors)
        torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
        assert output.tokens.shape == output.is_finite.shape == (len(logits),)
        assert output.tokens.dtype == torch.int64
        # The argmax of greedy slots sees all rows; that of drawing slots sees their rows, in the order of the slots.
        drawn = [slot for slot in sorted(active) if self.draws[slot]]
        for slot in active:
            if (error := errors.pop(slot, None)) is not None:  # some processors do not take NaN
                with pytest.raises(type(error), match=re.escape(str(error))):
                    self.references[slot].step(logits[slot])
                self.remove(slot)
                continue
            expected, token = self.references[slot].step(logits[slot])
            numbers = inputs[-1][drawn.index(slot)] if self.draws[slot] else inputs[0][slot]
            torch.testing.assert_close(numbers.float(), expected[0], rtol=0, atol=0, equal_nan=True)
            assert output.is_finite[slot].item() == (token is not None)
            if token is not None:
                assert output.tokens[slot].item() == token.item()
            self.references[slot].append(output.tokens[slot])
        assert not errors


# ---- random batches --------------------------------------------------------------------------------------------------

# Few tokens, so that tokens and n-grams occur again. The end tokens of both models are among them.
TOKENS = st.sampled_from([0, 2, 3, 4, 5, 6, 7, 8])
TOKEN_LISTS = st.lists(TOKENS, min_size=1, max_size=3)

COMMON = {
    "repetition_penalty": st.floats(0.25, 4),
    "no_repeat_ngram_size": st.integers(1, 4) | st.integers(0, 12),
    "bad_words_ids": st.lists(TOKENS.map(lambda id_: [id_]), min_size=1, max_size=3),
    "min_length": st.integers(0, 8),
    "min_new_tokens": st.integers(0, 6),
    "forced_bos_token_id": TOKENS,
    "forced_eos_token_id": TOKENS | TOKEN_LISTS,
    "suppress_tokens": TOKEN_LISTS | st.just([3, 10**6]),
    "begin_suppress_tokens": TOKEN_LISTS,
    "temperature": st.floats(0.1, 5),
    "top_k": st.integers(0, 12) | st.just(10**6),
    "top_p": st.floats(0.05, 1) | st.just(0.0),
    "renormalize_logits": st.booleans(),
}
# Options that only transformers' own processors can apply.
RARE = {
    "bad_words_ids": st.lists(TOKEN_LISTS, min_size=1, max_size=4),
    "encoder_no_repeat_ngram_size": st.integers(1, 3),
    "encoder_repetition_penalty": st.floats(0.5, 2),
    # Not the first token: older versions of transformers refuse its number, 0.
    "sequence_bias": st.lists(
        st.tuples(st.lists(TOKENS.filter(bool), min_size=1, max_size=3), st.floats(-3, 3)).map(list),
        min_size=1,
        max_size=3,
    ),
    "exponential_decay_length_penalty": st.just((2, 1.5)),
    "remove_invalid_values": st.just(True),
    "min_p": st.floats(0, 0.5),
    "typical_p": st.floats(0.2, 0.9),
    "epsilon_cutoff": st.floats(0.001, 0.1),
    "eta_cutoff": st.floats(0.001, 0.1),
    "top_h": st.floats(0.1, 1),
}


def subsets(options: dict[str, st.SearchStrategy], max_size: int) -> st.SearchStrategy[dict[str, Any]]:
    names = st.lists(st.sampled_from(sorted(options)), max_size=max_size, unique=True)
    return names.flatmap(lambda subset: st.fixed_dictionaries({name: options[name] for name in subset}))


GENERATION = subsets(COMMON, 6) | st.tuples(subsets(COMMON, 4), subsets(RARE, 2)).map(lambda both: both[0] | both[1])


@st.composite
def decodings(draw: st.DrawFn) -> DecodingParams:
    do_sample = draw(st.booleans())
    generation = PLAIN | draw(GENERATION)
    return DecodingParams(
        max_new_tokens=draw(st.integers(1, 8)),
        do_sample=do_sample,
        seed=draw(st.integers(0, 2**63 - 1)) if do_sample else None,
        ignore_eos=draw(st.booleans()),
        generation=generation,
    )


@st.composite
def batch_logits(draw: st.DrawFn, rows: int, vocabulary: int) -> Tensor:
    """Logits of a step: with ties, with infinities, in a narrow type; never with NaN."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(rows, vocabulary, generator=generator) * draw(st.sampled_from([1.0, 4.0, 30.0]))
    # The tokens that options name are often likely.
    logits[:, :9] += draw(st.sampled_from([0.0, 3.0]))
    if draw(st.booleans()):
        logits = logits.round()
    if draw(st.booleans()):
        logits = logits.masked_fill(torch.rand(logits.shape, generator=generator) < 0.3, -math.inf)
    logits = logits.to(draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])))
    if draw(st.booleans()):  # strided, as a model's logits of the last position are
        logits = torch.stack([logits, logits], dim=1)[:, -1]
    return logits


# Zoo models write at least 6 tokens and may force the last token. These options let a batch leave logits unchanged.
PLAIN = {"min_new_tokens": 0, "forced_eos_token_id": None}

NAN_ROWS = ["all", "one", "none", "none"]


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, *HealthCheck])
@torch.inference_mode()
def test_slots_are_as_if_alone(small, data):
    batch = Batch(small)
    lengths: dict[int, int] = {}
    for _ in range(data.draw(st.integers(1, 12), "steps")):
        for slot in data.draw(st.lists(st.integers(0, SLOTS - 1), max_size=3), "moves"):
            if slot in batch.references:
                batch.remove(slot)
                del lengths[slot]
            else:
                context = data.draw(st.lists(TOKENS, min_size=1, max_size=5), "context")
                source = data.draw(st.lists(TOKENS, min_size=1, max_size=5), "source")
                batch.add(slot, data.draw(decodings(), "decoding"), context, source)
                lengths[slot] = len(context)
        unfinished = [slot for slot in batch.references if lengths[slot] < LENGTH]
        active = data.draw(st.lists(st.sampled_from(unfinished), unique=True) if unfinished else st.just([]), "active")
        rows = data.draw(st.integers(max(active, default=-1) + 1, SLOTS), "rows")
        logits = data.draw(batch_logits(rows, small.vocabulary_size), "logits")
        for slot in range(rows):
            broken = "all" if slot not in active else data.draw(st.sampled_from(NAN_ROWS), "broken")
            if broken != "none":
                logits[slot, slice(None) if broken == "all" else slice(11, 12)] = math.nan
        batch.step(logits, active)
        for slot in active:
            lengths[slot] += 1


@pytest.mark.parametrize("name", [*COMMON, *RARE])
@given(data=st.data())
@settings(max_examples=5, deadline=None, suppress_health_check=[*HealthCheck])
@torch.inference_mode()
def test_each_option_is_as_if_alone(small, name, data):
    """One option, in one slot and beside other slots, from the first step to the step that forces the end token."""
    options = COMMON | RARE
    batch = Batch(small)
    for slot in range(3):
        generation = PLAIN | ({name: data.draw(options[name], name)} if slot else {})
        decoding = DecodingParams(6, data.draw(st.booleans()), slot, generation=generation)
        batch.add(slot, decoding, data.draw(st.lists(TOKENS, min_size=1, max_size=5)), [4, 5, 2])
    for _ in range(6):
        batch.step(data.draw(batch_logits(3, small.vocabulary_size)), [0, 1, 2])


@pytest.mark.parametrize("drop", [logits_ops.drop_in_order, logits_ops.drop_below_threshold])
@pytest.mark.parametrize("kind", ["apart", "tied", "few", "infinite", "not numbers"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_the_likeliest_tokens_of_a_real_vocabulary(drop, kind, share):
    torch.manual_seed(0)
    scores = torch.randn(3, 58_101) * 3
    if kind == "tied":
        scores = scores.bfloat16().float()
    elif kind == "few":
        scores = scores.masked_fill(scores < scores.topk(50).values[:, -1:], -math.inf)
    elif kind == "infinite":
        scores[0], scores[1, 7], scores[2, ::2] = -math.inf, math.inf, -0.0
    elif kind == "not numbers":
        scores[0], scores[1, 7] = math.nan, math.nan
    shares = [share, share / 2, share]
    expected = torch.cat(
        [TopPLogitsWarper(p)(torch.empty(0), row[None]) for p, row in zip(shares, scores, strict=True)]
    )
    drop(scores, torch.tensor([[1 - p] for p in shares]))
    torch.testing.assert_close(scores, expected, rtol=0, atol=0, equal_nan=True)


def test_argmax_of_ties_nan_and_infinities():
    logits = torch.tensor([[1.0, 3.0, 3.0], [float("nan"), 1.0, 2.0], [-math.inf, -math.inf, -math.inf]])
    for dtype in (torch.float32, torch.bfloat16):
        assert logits_ops.argmax(logits.to(dtype)).tolist() == [1, 0, 0]


# ---- slots in reuse, options at their limits -------------------------------------------------------------------------


def sample(sampler: Sampler, logits: Tensor, active: list[int]) -> list[int]:
    return sampler.sample(logits, active).tokens[active].tolist()


def test_a_slot_keeps_nothing_of_its_former_request(small):
    sampler = Sampler(small, 1, LENGTH)
    logits = torch.zeros(1, small.vocabulary_size)
    logits[0, 5:8] = torch.tensor([3.0, 2.0, 1.0])
    plain = DecodingParams(4, False, generation=PLAIN)
    banning = {"bad_words_ids": [[5]], "suppress_tokens": [6], "no_repeat_ngram_size": 1, "forced_eos_token_id": 9}
    for _ in range(2):
        sampler.add(0, plain, [3], [4])
        assert [sample(sampler, logits, [0]) for _ in range(4)] == [[5]] * 4
        sampler.remove(0)
        sampler.add(0, DecodingParams(3, False, generation=banning | {"min_new_tokens": 0}), [3], [4])
        steps = [sample(sampler, logits, [0]) for _ in range(3)]
        assert steps[0] == [7]
        assert steps[1] not in ([5], [6], [7])
        assert steps[2] == [9]
        sampler.remove(0)


def test_an_inactive_slot_waits(small):
    """The length, the tokens and the random generator of an inactive slot do not change."""
    options = {"no_repeat_ngram_size": 2, "min_new_tokens": 3, "forced_eos_token_id": 2}
    decodings = [DecodingParams(5, False, generation=options), DecodingParams(5, True, 7, generation=options)]
    steps = [torch.randn(2, small.vocabulary_size) for _ in range(5)]
    together, one_by_one = Sampler(small, 2, LENGTH), Sampler(small, 2, LENGTH)
    for sampler in (together, one_by_one):
        for slot, decoding in enumerate(decodings):
            sampler.add(slot, decoding, [3], [4])
    expected = [sample(together, logits, [0, 1]) for logits in steps]
    first = [sample(one_by_one, logits, [0])[0] for logits in steps]
    second = [sample(one_by_one, logits, [1])[0] for logits in steps]
    assert [list(pair) for pair in zip(first, second, strict=True)] == expected


@torch.inference_mode()
def test_the_batch_may_have_more_rows_in_one_step_than_in_another(small):
    batch = Batch(small)
    batch.add(0, DecodingParams(8, True, 1, generation=PLAIN | {"top_k": 5}), [3], [4])
    for rows in (1, 3, 1, 2):
        batch.step(torch.randn(rows, small.vocabulary_size), [0])


@torch.inference_mode()
def test_the_end_is_forced_where_the_first_token_is_the_last(small):
    batch = Batch(small)
    batch.add(
        0, DecodingParams(1, False, generation={"forced_bos_token_id": 5, "forced_eos_token_id": [6, 7]}), [3], [4]
    )
    batch.step(torch.randn(1, small.vocabulary_size), [0])


@torch.inference_mode()
def test_both_minimal_lengths_count(small):
    batch = Batch(small)
    for slot, (min_length, min_new_tokens) in enumerate([(6, 1), (1, 6)]):
        options = {"min_length": min_length, "min_new_tokens": min_new_tokens, "eos_token_id": 5}
        batch.add(slot, DecodingParams(8, False, generation=options), [3], [4])
    logits = torch.randn(2, small.vocabulary_size)
    logits[:, 5] = 50
    for _ in range(7):
        batch.step(logits, [0, 1])


class SearchedLogits:
    """An LM head whose queries find the largest logits of rows that are not banned."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def argmax_query(self, num_rows: int, banned: Tensor, first_row: int) -> Any:
        assert num_rows == len(self.logits)
        masked = self.logits.clone()
        masked.view(-1)[banned - first_row * masked.shape[1]] = -math.inf
        return SimpleNamespace(first_row=first_row, found=lambda: (masked.argmax(-1), masked.amax(-1)))


@torch.inference_mode()
def test_an_accepted_argmax_is_what_sample_chooses(small):
    """Bans and forced tokens, also of a token that is banned at the same time, and NaN in a row with a forced token."""
    options = [
        {"forced_bos_token_id": 6},
        {"forced_eos_token_id": [8, 7]},
        {"forced_bos_token_id": 6, "suppress_tokens": [6]},
        {"forced_eos_token_id": [8, 7], "suppress_tokens": [7], "bad_words_ids": [[5]], "min_new_tokens": 3},
    ]
    searching, sampling = Sampler(small, 5, LENGTH), Sampler(small, 5, LENGTH)
    for sampler in (searching, sampling):
        for slot, generation in enumerate(options, 1):
            sampler.add(slot, DecodingParams(4, False, generation=PLAIN | generation), [3], [4])
    active = [1, 2, 3, 4]
    for _ in range(4):
        logits = torch.randn(4, small.vocabulary_size)
        logits[1:, 5] = 9
        logits[0, 11] = math.nan
        query = searching.argmax_query(SearchedLogits(logits), 1, 5, active)  # pyright: ignore[reportArgumentType]
        assert query is not None
        found, expected = searching.accept_argmax(query, active), sampling.sample(logits, active, first=1)
        assert found.tokens[active].tolist() == expected.tokens[active].tolist()
        assert found.is_finite[active].tolist() == expected.is_finite[active].tolist()


def test_end_ids(small):
    sampler = Sampler(small, 2, LENGTH)
    sampler.add(0, DecodingParams(4, False), [3], [4])
    sampler.add(1, DecodingParams(4, False, generation={"eos_token_id": [5, 6]}), [3], [4])
    assert sampler.end_ids(0) == {small.model.generation_config.eos_token_id}
    assert sampler.end_ids(1) == {5, 6}


def test_a_processor_that_fails_fails_its_own_slot(small):
    """A processor finds a bad word outside the vocabulary in the first step only."""
    batch = Batch(small)
    batch.add(0, DecodingParams(4, False), [3], [4])
    batch.add(2, DecodingParams(4, True, 5), [3], [4])
    batch.sampler.add(1, DecodingParams(4, True, 6, generation={"bad_words_ids": [[10**6]]}), [3], [4])
    for _ in range(3):
        logits = torch.randn(3, small.vocabulary_size)
        with torch.inference_mode():
            output = batch.sampler.sample(logits, [0, 1, 2])
        assert list(batch.sampler.errors) == [1]
        assert isinstance(batch.sampler.errors[1], ValueError)
        for slot in (0, 2):
            token = batch.references[slot].step(logits[slot])[1]
            assert token is not None
            assert output.tokens[slot].item() == token.item()
            batch.references[slot].append(token)
    batch.sampler.remove(1)
    batch.step(torch.randn(3, small.vocabulary_size), [0, 2])


def test_contradictory_options_refuse_a_request(small):
    sampler = Sampler(small, 2, LENGTH)
    sampler.add(0, DecodingParams(4, False), [3], [4])
    with pytest.raises(ValueError, match="temperature"):
        sampler.add(1, DecodingParams(4, True, 1, generation={"temperature": 0.0}), [3], [4])
    assert len(sample(sampler, torch.randn(1, small.vocabulary_size), [0])) == 1


@torch.inference_mode()
def test_a_context_may_have_tokens_without_logits(small, monkeypatch):
    """Some models can read more tokens than they can write."""
    head = small.model.get_output_embeddings()
    monkeypatch.setattr(head, "out_features", small.vocabulary_size - 10)
    batch = Batch(small)
    options = {"repetition_penalty": 2.0, "no_repeat_ngram_size": 1}
    context = [small.vocabulary_size - 1, 5]
    batch.add(0, DecodingParams(5, False, generation=options), context, [4])
    batch.add(1, DecodingParams(5, True, 1, generation=options), [5, 6], [4])
    for _ in range(5):
        # Older versions of transformers fail for such a token: then sampler and reference fail in the same way.
        batch.step(torch.randn(2, small.vocabulary_size - 10), sorted(batch.references))
    assert 1 in batch.references


@torch.inference_mode()
def test_tokens_after_the_longest_target_are_not_kept(small):
    """A request that reads its last token runs one more step, which samples a token too."""
    sampler = Sampler(small, 2, LENGTH)
    options = {"repetition_penalty": 2.0, "no_repeat_ngram_size": 2}
    for slot in (0, 1):
        sampler.add(slot, DecodingParams(LENGTH - 1, bool(slot), 3, generation=options), [3], [4])
    for _ in range(LENGTH + 3):
        output = sampler.sample(torch.randn(2, small.vocabulary_size), [0, 1])
    assert isinstance(output, SamplerOutput)


# ---- generate itself -------------------------------------------------------------------------------------------------

MIX: list[dict[str, Any]] = [
    {},
    {"seed": 3},
    {"seed": 4, "temperature": 1.5, "top_k": 20, "top_p": 0.9},
    {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
    {"seed": 5, "top_p": 0.5, "repetition_penalty": 0.8},
    {"no_repeat_ngram_size": 1, "min_new_tokens": 9},
]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "fsmt"])
@torch.inference_mode()
def test_tokens_are_those_of_generate(name, folder):
    """A family's own generation config, different options side by side, late requests and slots in reuse."""
    path = build_model(name, folder)
    loaded = load(path, packed=False)
    requests = [
        (loaded.tokenizer.encode_source(sentence).ids, options)
        for sentence, options in zip(SENTENCES, MIX, strict=True)
    ]
    forced = {"forced_bos_token_id": 5} if name in ("nllb", "m2m100", "mbart") else {}
    sampler, count = Sampler(loaded, 3, 400), 12
    waiting, running = list(range(len(requests))), dict[int, int]()
    fed: dict[int, list[int]] = {}
    written: dict[int, list[int]] = {number: [] for number in waiting}
    while waiting or running:
        for slot in {0, 1, 2} - set(running):
            if waiting:
                number = running[slot] = waiting.pop(0)
                source, options = requests[number]
                context = [*loaded.tokenizer.start_ids(loaded.tokenizer.resolve_languages("", ""))]
                fed[slot] = context if loaded.is_encoder_decoder else [*source]
                generation = forced | {option: value for option, value in options.items() if option != "seed"}
                decoding = DecodingParams(count, "seed" in options, options.get("seed"), generation=generation)
                sampler.add(slot, decoding, fed[slot], source if loaded.is_encoder_decoder else None)
        logits = torch.full((3, loaded.vocabulary_size), math.nan)
        for slot, number in running.items():
            inputs = {"input_ids": torch.tensor([requests[number][0] if loaded.is_encoder_decoder else fed[slot]])}
            if loaded.is_encoder_decoder:
                inputs["decoder_input_ids"] = torch.tensor([fed[slot]])
            logits[slot] = loaded.model(**inputs, use_cache=False).logits[0, -1]
        tokens = sampler.sample(logits, list(running)).tokens.tolist()
        for slot, number in list(running.items()):
            written[number].append(tokens[slot])
            fed[slot] = [*fed[slot], tokens[slot]]
            if tokens[slot] in sampler.end_ids(slot) or len(written[number]) == count:
                sampler.remove(slot)
                del running[slot]
    for number, (source, options) in enumerate(requests):
        assert written[number] == generate_ids(path, source, max_new_tokens=count, **forced | options), options


# ---- no waits --------------------------------------------------------------------------------------------------------


class RefuseReads(TorchFunctionMode):
    """Refuses Python's ways to read a number from a tensor."""

    NAMES = ("item", "tolist", "cpu", "numpy", "nonzero")
    NAMES = (*NAMES, *(f"__{name}__" for name in ("bool", "int", "float", "index", "contains")))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert not any(func is getattr(torch.Tensor, name) for name in self.NAMES), func
        return func(*args, **(kwargs or {}))


class RefuseWaits(TorchDispatchMode):
    """Refuses torch operations that wait for a GPU, and lists all others."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        assert name not in {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"}, name
        assert not name.startswith(("unique", "_unique")), name
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        assert not any(index is not None and index.dtype == torch.bool for index in indices), name
        self.operations.append(name)
        return func(*args, **(kwargs or {}))


EVERYTHING = {
    "repetition_penalty": 1.5,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": [[5]],
    "min_new_tokens": 3,
    "forced_bos_token_id": 6,
    "forced_eos_token_id": 2,
    "suppress_tokens": [7],
    "begin_suppress_tokens": [8],
    "renormalize_logits": True,
}


def operations(small: LoadedModel, decodings: list[DecodingParams], steps: int) -> list[list[str]]:
    sampler = Sampler(small, len(decodings), LENGTH)
    for slot, decoding in enumerate(decodings):
        sampler.add(slot, decoding, [3], [4])
    by_step: list[list[str]] = []
    for _ in range(steps):
        logits = torch.randn(len(decodings), small.vocabulary_size)
        # On a CPU NumPy finds an argmax. On a GPU, where reading a number is a wait, torch does.
        with torch.inference_mode(), pytest.MonkeyPatch.context() as patch, RefuseReads(), RefuseWaits() as waits:
            patch.setattr(logits_ops, "argmax", lambda scores: scores.argmax(-1))
            sampler.sample(logits, range(len(decodings)))
        by_step.append(waits.operations)
    return by_step


def test_a_step_never_waits(small, monkeypatch):
    monkeypatch.setattr(logits_ops, "drop_below_threshold", logits_ops.drop_in_order)  # as on a GPU
    sampling = {"temperature": 0.7, "top_k": 20, "top_p": 0.9}
    for count in (1, 2):  # slots of each
        greedy = [DecodingParams(6, False, generation=EVERYTHING)] * count
        plain = [DecodingParams(6, False), DecodingParams(6, True, 1)] * count
        drawn = [DecodingParams(6, True, 3, generation=EVERYTHING | sampling)] * count
        for decodings in (greedy, plain, drawn, [*drawn, *plain, *greedy]):
            assert all(operations(small, decodings, 6))


def test_an_unused_option_costs_nothing(small):
    """A plain greedy batch is one argmax, and a check of the logit found; a bad word is one addition to a copy."""
    plain = DecodingParams(6, False, generation=PLAIN)
    bad = DecodingParams(6, False, generation=plain.generation | {"bad_words_ids": [[5]]})
    for decoding, expected in ((plain, []), (bad, ["to", "index_add_"])):
        names = operations(small, [decoding] * 8, 3)[-1]
        work = [name for name in names if name not in ("alias", "detach", "select", "view", "empty_strided")]
        assert work == [*expected, "argmax", "unsqueeze", "gather", "lt"]


def test_reads_and_waits_are_refused():
    x = torch.arange(3.0)
    for read in (x.tolist, x.numpy, lambda: bool(x[0]), lambda: x[x > 1]):
        with pytest.raises(AssertionError), RefuseReads(), RefuseWaits():
            read()
