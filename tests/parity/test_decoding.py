"""The tokens are the tokens of transformers' `generate`. Generated and given targets have the same steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness import CROSS, DECODER_SELF, request, steps_of, stub
from sidelight.server.models.loader import LoadedModel
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

SENTENCES = [
    "I don't want to be your friend.",
    "My grandmother is still vigorous at 82 years old.",
    "Where is the nearest train station?",
    "She said that she would come tomorrow, but nobody believed her.",
]


def attribute(address: str, message: pb.AttributeRequest) -> list[pb.AttributeResponse]:
    with stub(address) as service:
        return list(service.Attribute(message, timeout=120))


def ids_of(responses) -> list[int]:
    return [step.token.id for step in steps_of(responses)]


def generated(bundled: LoadedModel, sentence: str, **options) -> list[int]:
    ids = torch.tensor([bundled.tokenizer.encode_source(sentence).ids])
    return bundled.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, 1:].tolist()


@pytest.mark.parametrize("sentence", SENTENCES)
def test_greedy_is_generate(bundled, bundled_server, sentence):
    assert ids_of(attribute(bundled_server, request(sentence))) == generated(bundled, sentence)


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_sampling_is_generate_with_the_same_seed(bundled, bundled_server, sentence, seed):
    options = {"temperature": 1.3, "top_k": 40, "top_p": 0.95}
    message = request(sentence, decoding=text.Decoding(sampling=text.Sampling(seed=seed, **options)))
    torch.manual_seed(seed)
    # The message has float32 numbers. `generate` gets the same numbers.
    rounded = {name: float(np.float32(value)) if name != "top_k" else value for name, value in options.items()}
    assert ids_of(attribute(bundled_server, message)) == generated(bundled, sentence, do_sample=True, **rounded)


def test_a_seed_of_the_server_is_in_the_answer_and_draws_the_same_again(bundled_server):
    sampling = text.Sampling(temperature=2.0)
    first = attribute(bundled_server, request(SENTENCES[0], decoding=text.Decoding(sampling=sampling)))
    sampling.seed = first[-1].finished.usage.seed
    assert first[0].started.seed == sampling.seed
    again = attribute(bundled_server, request(SENTENCES[0], decoding=text.Decoding(sampling=sampling)))
    assert ids_of(again) == ids_of(first)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"max_new_tokens": 3}, {"max_new_tokens": 3}),
        ({"min_new_tokens": 15}, {"min_new_tokens": 15}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"no_repeat_ngram_size": 1, "max_new_tokens": 40}, {"no_repeat_ngram_size": 1, "max_new_tokens": 40}),
    ],
)
def test_decoding_fields_are_options_of_generate(bundled, bundled_server, fields, options):
    responses = attribute(bundled_server, request(SENTENCES[1], decoding=text.Decoding(**fields)))
    assert ids_of(responses) == generated(bundled, SENTENCES[1], **options)


def test_stop_reasons(bundled_server):
    def stop(**fields):
        responses = attribute(bundled_server, request(SENTENCES[0], decoding=text.Decoding(**fields)))
        return responses[-1].finished.stop_reason, responses[-1].finished.text

    assert stop() == (text.STOP_REASON_END_TOKEN, "Ich will nicht dein Freund sein.")
    # The model's config forces the end token at the last position, for `generate` too: the model did not want it.
    assert stop(max_new_tokens=3) == (text.STOP_REASON_LENGTH, "Ich will")
    assert stop(max_new_tokens=3, beam=text.Beam(width=2)) == (text.STOP_REASON_LENGTH, "Ich will")
    assert stop(max_new_tokens=2, ignore_eos=True) == (text.STOP_REASON_LENGTH, "Ich will")
    assert stop(stop=["nicht", "Freund"]) == (text.STOP_REASON_STOP_TEXT, "Ich will nicht")
    # A stop text in the prefix does not count.
    prefixed = request(SENTENCES[0], decoding=text.Decoding(stop=["Ich"]), prefix=text.Text(text="Ich will"))
    assert attribute(bundled_server, prefixed)[-1].finished.stop_reason == text.STOP_REASON_END_TOKEN
    reason, _ = stop(ignore_eos=True, max_new_tokens=20)
    assert reason == text.STOP_REASON_LENGTH


def test_offsets_and_texts_of_steps_make_the_text(bundled_server):
    for sentence in SENTENCES:
        responses = attribute(bundled_server, request(sentence))
        steps, whole = steps_of(responses), responses[-1].finished.text
        assert "".join(step.text for step in steps) == whole
        assert [step.index for step in steps] == list(range(len(steps)))
        for step in steps:
            assert step.token.text == whole[step.token.begin : step.token.end]
        words = [step.token.text for step in steps if step.token.text]
        assert "".join(words) == whole.replace(" ", "")
        assert steps[-1].token.special


def numbers(message: attention.Attention) -> np.ndarray:
    dtype = {attention.ENCODING_FLOAT32: "<f4", attention.ENCODING_FLOAT16: "<f2"}[message.encoding]
    return np.frombuffer(message.values, dtype).reshape(message.shape)


def assert_same_steps(left: list[pb.Step], right: list[pb.Step]) -> None:
    assert [step.token for step in left] == [step.token for step in right]
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(numbers(a.cross), numbers(b.cross), atol=1e-5)
        np.testing.assert_allclose(numbers(a.decoder_self), numbers(b.decoder_self), atol=1e-5)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("row", [attention.ROW_PREDICTING, attention.ROW_READING])
@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_given_target_has_the_attention_of_its_generation(bundled_server, sentence, row):
    """One forward pass over all tokens gives the same rows and scores as one token after the other with a cache."""
    capture = attention.Capture(kinds=[CROSS, DECODER_SELF], row=row)
    fields = {"capture": capture, "scores": range(1, 7)}
    responses = attribute(bundled_server, request(sentence, **fields))
    by_text = attribute(bundled_server, request(sentence, given=text.Text(text=responses[-1].finished.text), **fields))
    ids = text.Text(token_ids=text.TokenIds(ids=ids_of(responses)))
    by_ids = attribute(bundled_server, request(sentence, given=ids, **fields))
    assert_same_steps(steps_of(responses), steps_of(by_ids))
    assert_same_steps(steps_of(responses), steps_of(by_text))
    assert by_text[-1].finished.text == by_ids[-1].finished.text == responses[-1].finished.text
    assert by_text[-1].finished.stop_reason == text.STOP_REASON_GIVEN


def test_the_row_that_reads_a_token_predicts_the_next(bundled_server):
    def steps(row):
        capture = attention.Capture(kinds=[CROSS, DECODER_SELF], row=row)
        return steps_of(attribute(bundled_server, request(SENTENCES[0], capture=capture)))

    predicting, reading = steps(attention.ROW_PREDICTING), steps(attention.ROW_READING)
    assert [s.token for s in predicting] == [s.token for s in reading]
    for later, earlier in zip(predicting[1:], reading[:-1], strict=True):
        np.testing.assert_array_equal(numbers(later.cross), numbers(earlier.cross))
        np.testing.assert_array_equal(numbers(later.decoder_self), numbers(earlier.decoder_self))
    assert [step.decoder_self.shape[0] for step in reading] == [index + 2 for index in range(len(reading))]


def test_a_prefix_is_context_and_has_no_steps(bundled_server):
    whole = attribute(bundled_server, request(SENTENCES[0]))
    rest = attribute(bundled_server, request(SENTENCES[0], prefix=text.Text(text="Ich will nicht")))
    assert [token.text for token in rest[0].started.prefix] == ["", "Ich", "will", "nicht"]
    assert rest[-1].finished.text == whole[-1].finished.text
    for a, b in zip(steps_of(whole)[3:], steps_of(rest), strict=True):
        assert a.token == b.token
        np.testing.assert_allclose(numbers(a.cross), numbers(b.cross), atol=1e-5)
    assert "".join(step.text for step in steps_of(rest)) == " dein Freund sein."


def test_a_stream_can_be_resumed(bundled_server):
    whole = steps_of(attribute(bundled_server, request(SENTENCES[1], kinds=[CROSS, DECODER_SELF])))
    for target in ({}, {"given": text.Text(token_ids=text.TokenIds(ids=[step.token.id for step in whole]))}):
        message = request(SENTENCES[1], kinds=[CROSS, DECODER_SELF], resume_at=4, **target)
        assert_same_steps(whole[4:], steps_of(attribute(bundled_server, message)))


@pytest.mark.parametrize("row", [attention.ROW_PREDICTING, attention.ROW_READING])
@pytest.mark.parametrize("given", [False, True])
def test_only_the_captured_steps_have_attention(bundled_server, row, given):
    capture = attention.Capture(steps=attention.StepSpan(begin=2, end=4), row=row)
    target = {"given": text.Text(text="Ich will nicht dein Freund sein.")} if given else {}
    steps = steps_of(attribute(bundled_server, request(SENTENCES[0], capture=capture, scores=[1], **target)))
    assert [step.HasField("cross") for step in steps] == [index in (2, 3) for index in range(len(steps))]
    assert all(len(step.scores) == 1 for step in steps)


def test_capture_none_gives_no_attention(bundled_server):
    responses = attribute(bundled_server, request(SENTENCES[0], capture=attention.Capture(none=True)))
    assert not any(step.HasField("cross") or step.HasField("decoder_self") for step in steps_of(responses))
    assert responses[-1].finished.usage.attention_bytes == 0
    assert responses[-1].finished.text == "Ich will nicht dein Freund sein."


def test_float16_is_float32_rounded(bundled_server):
    def steps(encoding):
        capture = attention.Capture(kinds=[CROSS], encoding=encoding)
        return steps_of(attribute(bundled_server, request(SENTENCES[0], capture=capture)))

    for wide, half in zip(steps(attention.ENCODING_FLOAT32), steps(attention.ENCODING_FLOAT16), strict=True):
        np.testing.assert_array_equal(numbers(wide.cross).astype(np.float16), numbers(half.cross))


def test_the_header_says_what_follows(bundled_server):
    heads = attention.HeadSelection(layers=attention.LayerList(layers=[2, 0]))
    capture = attention.Capture(kinds=[CROSS, DECODER_SELF], heads=heads, over_heads=attention.REDUCTION_MAX)
    responses = attribute(bundled_server, request(SENTENCES[0], capture=capture, scores=[3, 1], request_id="r1"))
    started = responses[0].started
    assert started.request_id == "r1"
    assert started.model == "tatoeba-en-de"
    assert list(started.scores) == [3, 1]
    assert started.source_text == SENTENCES[0]
    assert [list(layout.axes) for layout in started.layouts] == [[attention.AXIS_LAYER]] * 2
    assert [list(layout.layers) for layout in started.layouts] == [[2, 0]] * 2
    assert started.capture.row == attention.ROW_PREDICTING
    assert started.capture.encoding == attention.ENCODING_FLOAT32
    for step in steps_of(responses):
        assert list(step.cross.shape) == [len(started.source), 2]
        assert list(step.decoder_self.shape) == [len(started.prefix) + step.index, 2]


def test_usage_counts(bundled_server):
    responses = attribute(bundled_server, request(SENTENCES[0], kinds=[CROSS]))
    usage, steps = responses[-1].finished.usage, steps_of(responses)
    assert usage.source_tokens == len(responses[0].started.source)
    assert usage.target_tokens == len(steps)
    assert usage.attention_bytes == sum(len(step.cross.values) for step in steps)
    assert usage.total_time.ToNanoseconds() >= usage.time_to_first_step.ToNanoseconds() > 0
