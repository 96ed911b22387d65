"""Texts that are too long lose tokens where the request says so; padding is masked where the request says so."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import torch
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, serving, stub
from sidelight.server.api.validation.truncation import cut_text
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

LEFT, RIGHT = text.TRUNCATION_LEFT, text.TRUNCATION_RIGHT
WORDS = ["the", "quick", "dog", "does", "not", "care", "😀"]


def many(count: int) -> str:
    return " ".join(WORDS[index % len(WORDS)] for index in range(count))


@pytest.fixture(scope="module")
def address(zoo, bundled) -> Iterator[str]:
    with serving(bundled, zoo("bart"), zoo("nllb"), zoo("llama"), zoo("gpt2")) as address:
        yield address


def answer(address: str, message: pb.AttributeRequest) -> tuple[pb.Started, list[pb.Step], pb.Finished]:
    with stub(address) as service:
        events = list(service.Attribute(message, timeout=60))
    return events[0].started, [step for event in events for step in event.steps.steps], events[-1].finished


def refused(address: str, message: pb.AttributeRequest) -> tuple[grpc.StatusCode, str]:
    with stub(address) as service, pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(message, timeout=60))
    return raised.value.code(), raised.value.details().partition(":")[0]


def check_texts(tokens, whole: str) -> None:
    assert all(token.text == whole[token.begin : token.end] for token in tokens)
    begins = [token.begin for token in tokens]
    assert begins == sorted(begins)


# ---- truncation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["", "bart", "nllb"])
@pytest.mark.parametrize("side", [LEFT, RIGHT])
@pytest.mark.parametrize("count", [400, 60_000])  # the second has more bytes than are tokenized
def test_a_source_keeps_one_end_and_its_special_tokens(address, zoo, bundled, model, side, count):
    loaded = zoo(model) if model else bundled
    source = many(count)
    message = request(source, model=model, truncate=side)
    message.capture.none = True
    message.decoding.max_new_tokens = 2
    if model == "nllb":
        message.source_language, message.target_language = "eng_Latn", "deu_Latn"
    started, steps, _ = answer(address, message)
    tokens = started.source
    assert started.source_text == source
    assert len(tokens) == loaded.max_source_tokens
    assert started.source_tokens_left_out > 0
    check_texts(tokens, source)
    short = answer(address, request("dog", model=model, capture=message.capture, **languages(message)))[0].source
    special = [token.id for token in short if token.special]
    assert [token.id for token in tokens if token.special] == special
    plain = [token for token in tokens if not token.special]
    if side == LEFT:
        assert plain[-1].end == len(source)
        assert plain[0].begin > 0
    else:
        assert plain[0].begin == 0
        assert tokens[-1].begin == max(token.end for token in plain) < len(source)
    if count == 400:
        message.ClearField("truncate")
        assert refused(address, message) == (grpc.StatusCode.INVALID_ARGUMENT, "source.text")
        whole = loaded.tokenizer.encode_source(source, loaded.tokenizer.resolve_languages("", ""))
        assert len(tokens) + started.source_tokens_left_out == len(whole.tokens)
    # What the model reads is exactly these tokens.
    alone = request("", model=model, capture=message.capture, decoding=message.decoding)
    alone.source.token_ids.ids.extend(token.id for token in tokens)
    alone.target_language = message.target_language if model == "nllb" else ""
    assert [step.token.id for step in answer(address, alone)[1]] == [step.token.id for step in steps]


def languages(message: pb.AttributeRequest) -> dict[str, str]:
    return {"source_language": message.source_language, "target_language": message.target_language}


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_token_ids_lose_tokens_too(address, bundled, side):
    ids = [5 + index % 90 for index in range(700)] + [bundled.tokenizer._tokenizer.eos_token_id]
    message = request("", truncate=side)
    message.source.token_ids.ids.extend(ids)
    message.capture.none = True
    message.decoding.max_new_tokens = 1
    started = answer(address, message)[0]
    size = bundled.max_source_tokens
    expected = ids[-size:] if side == LEFT else [*ids[: size - 1], ids[-1]]
    assert [token.id for token in started.source] == expected
    assert started.source_tokens_left_out == len(ids) - size
    message.source.token_ids.ids[3] = 10**6
    assert refused(address, message) == (grpc.StatusCode.INVALID_ARGUMENT, "source.token_ids.ids[3]")


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_a_given_target_and_a_prefix_lose_tokens(address, bundled, side):
    long = many(400)
    message = request("dog", truncate=side)
    message.capture.none = True
    message.given.text = long
    started, steps, finished = answer(address, message)
    tokens = [step.token for step in steps]
    assert len(tokens) == bundled.max_target_tokens - 1  # and the start token
    whole = bundled.tokenizer.encode_target(long)
    assert started.target_tokens_left_out == len(whole.tokens) - len(tokens)
    assert tokens[-1].special
    check_texts(tokens, finished.text)
    added = "".join(step.text for step in steps)
    if side == LEFT:
        assert finished.text == long
        assert long.endswith(added)
        assert len(added) == len(long) - tokens[0].begin
    else:
        assert long.startswith(finished.text)
        assert added == finished.text
        assert len(added) < len(long)

    message = request("dog", truncate=side)
    message.capture.none = True
    message.prefix.text = long
    message.decoding.max_new_tokens = 7
    message.decoding.ignore_eos = True
    started, steps, finished = answer(address, message)
    assert len(steps) == 7
    assert len(started.prefix) == bundled.max_target_tokens - 7
    assert started.target_tokens_left_out > 0
    check_texts(started.prefix, finished.text)
    prefix = finished.text.removesuffix("".join(step.text for step in steps))
    assert prefix == long if side == LEFT else long.startswith(prefix) and prefix != long


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("side", [LEFT, RIGHT])
@pytest.mark.parametrize(
    ("num_source", "num_target", "kind"),
    [(400, 0, "decoding"), (400, 10, "given"), (10, 400, "given"), (400, 400, "given"), (400, 10, "prefix")],
)
def test_a_prompt_leaves_room_for_its_continuation(address, zoo, model, side, num_source, num_target, kind):
    limit = zoo(model).max_target_tokens
    message = request(many(num_source), model=model, truncate=side)
    message.capture.none = True
    if kind == "given":
        message.given.text = many(num_target)
    else:
        message.decoding.max_new_tokens = 9
        message.decoding.ignore_eos = True
    if kind == "prefix":
        message.prefix.text = many(num_target)
    started, steps, _ = answer(address, message)
    total = len(started.source) + len(started.prefix) + len(steps)
    assert total == limit
    assert kind == "given" or len(steps) == 9
    assert (started.source_tokens_left_out > 0) == (num_source > 10)
    assert (started.target_tokens_left_out > 0) == (num_target > 10)
    if num_source == num_target:
        assert abs(len(started.source) - len(steps)) <= 1
    check_texts(started.source, many(num_source))


def test_wrong_truncation_and_padding_is_refused(address, bundled):
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    chat = pb.AttributeRequest(model="llama", truncate=LEFT)
    chat.source.chat.messages.add(role="user", content="a")
    assert refused(address, chat) == (invalid, "truncate")
    assert refused(address, request("dog", truncate=9)) == (invalid, "truncate")
    assert refused(address, request("dog", offset_unit=4)) == (invalid, "offset_unit")
    assert refused(address, request("dog", padding=text.PADDING_MASK)) == (invalid, "padding")
    assert refused(address, request("dog", padding=3)) == (invalid, "padding")
    asked = request(many(400), model="llama", truncate=LEFT)
    asked.decoding.max_new_tokens = 10_000
    assert refused(address, asked) == (invalid, "decoding.max_new_tokens")
    padding = bundled.tokenizer.padding_id
    assert padding is not None
    ids = pb.AttributeRequest(source=text.Text(token_ids=text.TokenIds(ids=[padding] * 3)), padding=text.PADDING_MASK)
    assert refused(address, ids) == (invalid, "source.token_ids.ids")
    ids.source.token_ids.ids[0] = 7
    ids.padding = text.PADDING_REFUSE
    assert refused(address, ids) == (invalid, "source.token_ids.ids[1]")
    for field in ("given", "prefix"):
        message = request("dog", **{field: text.Text(token_ids=text.TokenIds(ids=[7, padding]))})
        assert refused(address, message) == (invalid, f"{field}.token_ids.ids[1]")
    message = request("dog", given=text.Text(token_ids=text.TokenIds(ids=[7])), scores=[attention.SCORE_PCXMI])
    message.contrast.given.token_ids.ids.extend([padding])
    assert refused(address, message) == (invalid, "contrast.given.token_ids.ids[0]")


@pytest.mark.parametrize("letter", ["a", "é", "😀", "\ufdfa"])
def test_a_text_is_cut_at_about_the_limit(letter):
    whole = "".join(chr(ord(letter) + index % 2) for index in range(3000))
    size = len(whole.encode())
    assert cut_text(whole, 20 * size, "left") == whole
    left, right = cut_text(whole, size // 3, "left"), cut_text(whole, size // 3, "right")
    assert whole.endswith(left)
    assert whole.startswith(right)
    for part in (left, right):
        assert 64 <= len(part) <= 1000
        assert len(part) > 900 or letter == "\ufdfa"


# ---- padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["", "bart", "llama", "gpt2"])
def test_masked_padding_is_not_read(address, zoo, bundled, model):
    """As a request without padding, and as transformers with an attention mask."""
    loaded = zoo(model) if model else bundled
    padding = loaded.tokenizer.padding_id
    if padding is None:
        message = pb.AttributeRequest(model=model, padding=text.PADDING_MASK)
        message.source.token_ids.ids.append(5)
        assert refused(address, message) == (grpc.StatusCode.INVALID_ARGUMENT, "padding")
        return
    ids = loaded.tokenizer.encode_source("The quick dog does not care.").ids
    kinds = [CROSS, ENCODER_SELF] if loaded.is_encoder_decoder else [DECODER_SELF]
    message = pb.AttributeRequest(model=model, padding=text.PADDING_MASK)
    message.capture.kinds.extend(kinds)
    message.decoding.max_new_tokens = 4
    message.decoding.ignore_eos = True
    padded = [*ids, *[padding] * 5]
    message.source.token_ids.ids.extend(padded)
    started, steps, _ = answer(address, message)
    assert [token.id for token in started.source] == ids
    message.ClearField("padding")
    del message.source.token_ids.ids[len(ids) :]
    _, alone, _ = answer(address, message)
    assert steps == alone
    # The steps of a given target are those without the padding.
    message.given.token_ids.ids.extend(step.token.id for step in steps)
    _, given, _ = answer(address, message)
    message.given.token_ids.ids.extend([padding] * 3)
    message.padding = text.PADDING_MASK
    assert answer(address, message)[1] == given
    if loaded.is_encoder_decoder:
        mask = torch.tensor([[1] * len(ids) + [0] * 5])
        decoder_ids = torch.tensor([[*[token.id for token in started.prefix], *[step.token.id for step in steps[:-1]]]])
        implementation = loaded.model.config._attn_implementation
        loaded.model.set_attn_implementation("eager")
        try:
            with torch.no_grad():
                output = loaded.model(
                    input_ids=torch.tensor([padded]),
                    attention_mask=mask,
                    decoder_input_ids=decoder_ids,
                    output_attentions=True,
                )
        finally:
            loaded.model.set_attn_implementation(implementation)
        rows = torch.stack(output.cross_attentions)[:, 0, :, :, : len(ids)]  # [layers, heads, queries, positions]
        for index, step in enumerate(steps):
            values = np.frombuffer(step.cross.values, "<f4").reshape(step.cross.shape)
            expected = rows[:, :, len(started.prefix) - 1 + index].permute(2, 0, 1).numpy()
            assert np.abs(values - expected).max() < 1e-5
