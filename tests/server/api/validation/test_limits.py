"""Texts and values that are too long are refused before they are tokenized, and in short messages."""

from __future__ import annotations

import grpc
import pytest
from harness import request, serving, stub
from hostile_clients import INVALID, reason_of_aio
from model_zoo import build_model
from sidelight.server.models.loader import load
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text


def refusal(service, message) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(message, timeout=60))
    return raised.value


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    loaded = load(build_model("llama", tmp_path_factory.mktemp("zoo")))
    loaded.tokenizer._tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    return loaded


def chat(*contents: str) -> pb.AttributeRequest:
    message = pb.AttributeRequest()
    for content in contents:
        message.source.chat.messages.add(role="user", content=content)
    return message


def test_a_request_is_refused_before_it_is_tokenized(bundled, chat_model, monkeypatch):
    """By bytes, by letters that normalization makes many of, and by what can be counted; as GetModel says."""
    tokenized = []
    with serving(bundled, chat_model) as address, stub(address) as service:
        limits = service.GetModel(pb.GetModelRequest(), timeout=60).model.limits
        chats = service.GetModel(pb.GetModelRequest(name="llama"), timeout=60).model.limits
        assert (limits.max_request_bytes, limits.max_source_bytes) == (4 * 1024**2, 256 * 64)
        assert [model.limits for model in service.ListModels(pb.ListModelsRequest(), timeout=60).models].count(limits)
        stops, many = ["x" * limits.max_stop_bytes] * limits.max_stop_texts, 350_000
        refused = [
            (request("\ufdfa" * 16_384), "source.text"),
            (request("\ufdfa" * 2_000), "source.text"),
            (request("x" * (limits.max_source_bytes + 1)), "source.text"),
            (request("x", prefix=text.Text(text="y" * (limits.max_target_bytes + 1))), "prefix.text"),
            (request("x", given=text.Text(text="\ufdfa" * 16_384)), "given.text"),
            (request("x", decoding=text.Decoding(stop=[*stops, "y"])), "decoding.stop"),
            (request("x", decoding=text.Decoding(stop=["y"] * many)), "decoding.stop"),
            (request("x", decoding=text.Decoding(stop=["y" * (limits.max_stop_bytes + 1)])), "decoding.stop[0]"),
            (chat("x" * 3_000_000), "source.chat"),
            (chat(*["\ufdfa" * 100] * 100), "source.chat"),
            (chat(*[""] * (chats.max_chat_messages + 1)), "source.chat.messages"),
        ]
        for message, field in refused:
            message.model = "llama" if "chat" in field else ""
            with monkeypatch.context() as patch:
                if "source" in field:
                    for loaded in (bundled, chat_model):
                        patch.setattr(loaded.tokenizer, "_encode", lambda *_, **__: tokenized.append(1) or 1 / 0)
                error = refusal(service, message)
            assert (error.code(), error.details().split(": ")[0]) == (INVALID, field)
        assert not tokenized


def test_a_prompt_that_a_chat_template_makes_too_long_is_not_tokenized(chat_model, monkeypatch):
    template = "{% for m in messages %}{% for i in range(m['content'] | int) %}abcdefgh{% endfor %}{% endfor %}"
    with monkeypatch.context() as patch, serving(chat_model) as address, stub(address) as service:
        patch.setattr(chat_model.tokenizer._tokenizer, "chat_template", template)
        max_bytes = service.GetModel(pb.GetModelRequest(), timeout=60).model.limits.max_source_bytes
        tokenized = []
        patch.setattr(chat_model.tokenizer, "_encode", lambda *_, **__: tokenized.append(1) or 1 / 0)
        error = refusal(service, chat(str(max_bytes // 8 + 1)))
        assert (error.code(), reason_of_aio(error)) == (INVALID, "TEXT_TOO_LONG")
        assert error.details().startswith("source.chat: becomes ")
        assert not tokenized


@pytest.mark.parametrize("name", ["bundled", "gpt2", "t5", "nllb"])
def test_every_text_that_fits_the_model_is_within_the_limits(name, zoo):
    """The longest pieces of the vocabulary, as many as there may be."""
    loaded = zoo(name)
    tokenizer = loaded.tokenizer._tokenizer
    pieces = sorted(tokenizer.get_vocab(), key=lambda piece: len(piece.encode()))[-20:]
    for piece in pieces:
        letters = tokenizer.convert_tokens_to_string([piece])
        assert len((letters * loaded.max_source_tokens).encode()) <= loaded.tokenizer.max_bytes(
            loaded.max_source_tokens
        )


@pytest.mark.parametrize("length", [3000, 1_000_000])
def test_values_are_cut_in_messages(zoo, length):
    """gRPC's clients refuse trailers above 8 KiB, by lot or always: the status would be another."""
    letters = {"ascii": "x", "percent-encoded": "字", "astral": "😀", "a control": "\n"}
    with serving(zoo("nllb")) as address, stub(address) as service:
        for letter in letters.values():
            many = letter * (length // len(letter.encode()))
            message = request("A dog.", request_id="字" * 128, source_language="eng_Latn", target_language=many)
            error = refusal(service, message)
            assert error.code() == INVALID
            assert error.details().startswith("target_language: ")
            assert sum(len(key) + 4 * len(value) // 3 for key, value in error.trailing_metadata()) < 4096
            assert len(error.details().encode()) * 3 < 2048
            message.source_language = many
            assert refusal(service, message).code() == INVALID
            assert refusal(service, request("A dog.", model=many)).code() == grpc.StatusCode.NOT_FOUND
