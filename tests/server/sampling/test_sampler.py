"""The tokens of a batch are the tokens of each request alone: those of transformers' processors, and of `generate`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from combinations import slow_except
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_zoo import FAMILIES, SENTENCES, build_model
from peers import generate_ids
from reference_sampler import LENGTH, PLAIN, SLOTS, Batch, sample
from sidelight.server.models.loader import load
from sidelight.server.request import DecodingParams
from sidelight.server.sampling import Sampler
from sidelight.server.sampling import sampler as sampler_module
from torch import Tensor

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


NAN_ROWS = ["all", "one", "none", "none"]


@pytest.mark.slow
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


@pytest.mark.covering(1)
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


@torch.inference_mode()
@pytest.mark.parametrize("taken", range(1, 5))
def test_a_request_behind_an_equal_one_is_as_if_alone(small, taken):
    """The new request is in another phase of the options, and the plan does not hold any more."""
    ends = {"min_new_tokens": 2, "forced_eos_token_id": 2, "suppress_tokens": [5], "begin_suppress_tokens": [6]}
    decoding = DecodingParams(5, False, generation=PLAIN | ends)
    batch = Batch(small)
    batch.add(0, decoding, [3], [4])
    batch.add(1, decoding, [3], [4])
    for step in range(5):
        if step == taken:
            batch.remove(1)
            batch.add(1, decoding, [3], [4])
        logits = torch.randn(2, small.vocabulary_size)
        logits[:, :9] += 5  # the tokens that the options name are often likely
        batch.step(logits, [0, 1])


def test_a_plan_outlives_a_request_behind_which_an_equal_one_comes(small, monkeypatch):
    plans: list[object] = []
    build_plan = sampler_module.build_plan
    monkeypatch.setattr(sampler_module, "build_plan", lambda *args: plans.append(args) or build_plan(*args))
    sampler = Sampler(small, 1, LENGTH)
    logits = torch.zeros(1, small.vocabulary_size)
    for generation in (PLAIN, PLAIN, PLAIN | {"suppress_tokens": [0]}, PLAIN):
        sampler.add(0, DecodingParams(4, False, generation=generation), [3], [4])
        first = int("suppress_tokens" in generation)
        assert [sample(sampler, logits, [0]) for _ in range(2)] == [[first]] * 2
        sampler.remove(0)
    assert len(plans) == 3


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


MIX: list[dict[str, Any]] = [
    {},
    {"seed": 3},
    {"seed": 4, "temperature": 1.5, "top_k": 20, "top_p": 0.9},
    {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
    {"seed": 5, "top_p": 0.5, "repetition_penalty": 0.8},
    {"no_repeat_ngram_size": 1, "min_new_tokens": 9},
]


GENERATED = [name for name in FAMILIES if name != "fsmt"]


@pytest.mark.parametrize("name", slow_except(GENERATED, {"mt5", "nllb", "gpt2"}))
@torch.inference_mode()
def test_tokens_are_those_of_generate(name, zoo_folder):
    """A family's own generation config, different options side by side, late requests and slots in reuse."""
    path = build_model(name, zoo_folder)
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
