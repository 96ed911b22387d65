"""A wrong request ends with a status that names the field, over a real socket."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, serving, stub
from model_zoo import build_model
from sidelight.server.models.loader import LoadedModel, load
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

INVALID, UNIMPLEMENTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED
GOOD = text.Text(text="A dog.")


def capture(**fields) -> pb.AttributeRequest:
    return pb.AttributeRequest(source=GOOD, capture=attention.Capture(**fields))


def decoding(**fields) -> pb.AttributeRequest:
    return pb.AttributeRequest(source=GOOD, decoding=text.Decoding(**fields))


def rollout(**fields) -> pb.AttributeRequest:
    return capture(method=attention.METHOD_ROLLOUT, **fields)


def heads(*pairs) -> attention.HeadSelection:
    return attention.HeadSelection(list=attention.HeadList(heads=[attention.Head(layer=a, head=b) for a, b in pairs]))


def layers(*numbers) -> attention.HeadSelection:
    return attention.HeadSelection(layers=attention.LayerList(layers=numbers))


def weighted(weight) -> attention.HeadSelection:
    return attention.HeadSelection(list=attention.HeadList(heads=[attention.Head(layer=0, head=1, weight=weight)]))


BAD = [
    (pb.AttributeRequest(), "source", INVALID),
    (pb.AttributeRequest(source=text.Text()), "source", INVALID),
    (pb.AttributeRequest(source=text.Text(text="")), "source.text", INVALID),
    (pb.AttributeRequest(source=text.Text(text=" \n ")), "source.text", INVALID),
    (pb.AttributeRequest(source=text.Text(text="dog " * 300)), "source.text", INVALID),
    (pb.AttributeRequest(source=text.Text(text="dog " * 300_000)), "source.text", INVALID),
    (pb.AttributeRequest(source=text.Text(token_ids=text.TokenIds())), "source.token_ids.ids", INVALID),
    (
        pb.AttributeRequest(source=text.Text(token_ids=text.TokenIds(ids=[5, 6001]))),
        "source.token_ids.ids[1]",
        INVALID,
    ),
    (pb.AttributeRequest(source=text.Text(chat=text.Chat())), "source.chat", INVALID),
    (pb.AttributeRequest(source=GOOD, model="../etc/passwd"), "model", grpc.StatusCode.NOT_FOUND),
    (pb.AttributeRequest(source=GOOD, request_id="x" * 129), "request_id", INVALID),
    (pb.AttributeRequest(source=GOOD, request_id="x" * 100_000), "request_id", INVALID),
    (pb.AttributeRequest(source=GOOD, request_id="a\nb"), "request_id", INVALID),
    (
        pb.AttributeRequest(source=GOOD, decoding=text.Decoding(sampling=text.Sampling()), resume_at=3),
        "decoding.sampling.seed",
        INVALID,
    ),
    (pb.AttributeRequest(source=GOOD, source_language="eng_Latn"), "source_language", INVALID),
    (pb.AttributeRequest(source=GOOD, target_language="deu_Latn"), "target_language", INVALID),
    (pb.AttributeRequest(source=GOOD, given=text.Text()), "given", INVALID),
    (pb.AttributeRequest(source=GOOD, given=text.Text(text="  ")), "given.text", INVALID),
    (pb.AttributeRequest(source=GOOD, given=text.Text(text="\u200b")), "given.text", INVALID),
    (pb.AttributeRequest(source=GOOD, given=text.Text(text="Hund " * 300)), "given.text", INVALID),
    (pb.AttributeRequest(source=GOOD, given=GOOD, prefix=GOOD), "prefix", INVALID),
    (pb.AttributeRequest(source=GOOD, prefix=text.Text(text="Hund " * 255)), "prefix", INVALID),
    (pb.AttributeRequest(source=GOOD, scores=[0]), "scores[0]", INVALID),
    (pb.AttributeRequest(source=GOOD, scores=[1, 99]), "scores[1]", INVALID),
    (pb.AttributeRequest(source=GOOD, scores=[1, 1]), "scores[1]", INVALID),
    (pb.AttributeRequest(source=GOOD, score_top_p=0.5), "score_top_p", INVALID),  # no score uses it
    (pb.AttributeRequest(source=GOOD, scores=[6], score_top_p=1.5), "score_top_p", INVALID),
    (decoding(max_new_tokens=0), "decoding.max_new_tokens", INVALID),
    (decoding(max_new_tokens=256), "decoding.max_new_tokens", INVALID),
    (decoding(max_new_tokens=4, min_new_tokens=5), "decoding.min_new_tokens", INVALID),
    (decoding(repetition_penalty=0), "decoding.repetition_penalty", INVALID),
    (decoding(stop=[".", ""]), "decoding.stop[1]", INVALID),
    (decoding(sampling=text.Sampling(temperature=0)), "decoding.sampling.temperature", INVALID),
    (decoding(sampling=text.Sampling(temperature=float("nan"))), "decoding.sampling.temperature", INVALID),
    (decoding(sampling=text.Sampling(temperature=1e-30)), "decoding.sampling.temperature", INVALID),
    (decoding(repetition_penalty=float("inf")), "decoding.repetition_penalty", INVALID),
    (decoding(sampling=text.Sampling(top_p=0)), "decoding.sampling.top_p", INVALID),
    (decoding(beam=text.Beam()), "decoding.beam.width", INVALID),
    (decoding(beam=text.Beam(width=1)), "decoding.beam.width", INVALID),
    (decoding(beam=text.Beam(width=17)), "decoding.beam.width", INVALID),
    (decoding(beam=text.Beam(width=4, hypotheses=5)), "decoding.beam.hypotheses", INVALID),
    (decoding(beam=text.Beam(width=4, length_penalty=5.1)), "decoding.beam.length_penalty", INVALID),
    (decoding(beam=text.Beam(width=4, length_penalty=float("nan"))), "decoding.beam.length_penalty", INVALID),
    (decoding(beam=text.Beam(width=4, early_stopping=4)), "decoding.beam.early_stopping", INVALID),
    (capture(kinds=[0]), "capture.kinds[0]", INVALID),
    (capture(kinds=[CROSS, 77]), "capture.kinds[1]", INVALID),
    (capture(kinds=[CROSS, CROSS]), "capture.kinds[1]", INVALID),
    (capture(heads=attention.HeadSelection()), "capture.heads", INVALID),
    (capture(heads=layers()), "capture.heads.layers.layers", INVALID),
    (capture(heads=layers(0, 3)), "capture.heads.layers.layers[1]", INVALID),
    (capture(heads=layers(1, 1)), "capture.heads.layers.layers[1]", INVALID),
    (capture(heads=heads()), "capture.heads.list.heads", INVALID),
    (capture(heads=heads((0, 0), (3, 0))), "capture.heads.list.heads[1].layer", INVALID),
    (capture(heads=heads((0, 0), (2, 4))), "capture.heads.list.heads[1].head", INVALID),
    (capture(heads=heads((0, 0), (0, 0))), "capture.heads.list.heads[1]", INVALID),
    (capture(heads=attention.HeadSelection(preset="summaries")), "capture.heads.preset", INVALID),
    (capture(heads=attention.HeadSelection(preset="alignment"), kinds=[2]), "capture.heads.preset", INVALID),
    (capture(over_layers=1), "capture.over_layers", INVALID),
    (capture(over_heads=1, over_layers=1, heads=heads((0, 0))), "capture.over_layers", INVALID),
    (capture(over_heads=42), "capture.over_heads", INVALID),
    (capture(row=9), "capture.row", INVALID),
    (capture(none=True, over_heads=1), "capture.over_heads", INVALID),
    (capture(steps=attention.StepSpan(begin=2, end=2)), "capture.steps.end", INVALID),
    (capture(encoding=9), "capture.encoding", INVALID),
    (capture(heads=weighted(1.0)), "capture.heads.list.heads[0].weight", INVALID),
    (capture(heads=weighted(1.0), over_heads=attention.REDUCTION_MAX), "capture.heads.list.heads[0].weight", INVALID),
    (capture(heads=weighted(-1.0), over_heads=attention.REDUCTION_SUM), "capture.heads.list.heads[0].weight", INVALID),
    (capture(heads=weighted(float("nan")), over_heads=1), "capture.heads.list.heads[0].weight", INVALID),
    (capture(heads=weighted(0.0), over_heads=attention.REDUCTION_MEAN), "capture.heads.list.heads", INVALID),
    (capture(method=9), "capture.method", INVALID),
    (capture(special_tokens=9), "capture.special_tokens", INVALID),
    (rollout(over_heads=attention.REDUCTION_MAX), "capture.over_heads", INVALID),
    (rollout(over_heads=1, over_layers=1), "capture.over_layers", INVALID),
    (rollout(heads=heads((0, 0))), "capture.heads.list", INVALID),
    (capture(none=True, method=attention.METHOD_ROLLOUT), "capture.method", INVALID),
    (capture(none=True, special_tokens=attention.SPECIAL_TOKENS_KEEP), "capture.special_tokens", INVALID),
]


def refusal(address: str, message: pb.AttributeRequest) -> grpc.RpcError:
    with stub(address) as service, pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(message, timeout=60))
    return raised.value


def violated(error: grpc.RpcError) -> list[str]:
    """The fields that the status' details blame."""
    status = rpc_status.from_call(error)
    assert status is not None
    bad = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(bad):
            return [violation.field for violation in bad.field_violations]
    return []


@pytest.mark.parametrize(("message", "field", "code"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_a_bad_request_names_its_field(bundled_server, message, field, code):
    error = refusal(bundled_server, message)
    assert error.code() == code
    assert violated(error) == [field]
    assert error.details().startswith(field)
    for secret in ("Traceback", "Error(", ".py", "sidelight.", "torch", "site-packages"):
        assert secret not in error.details()


def test_the_limit_is_in_the_message(bundled_server):
    error = refusal(bundled_server, request("dog " * 300))
    assert "301 tokens" in error.details()
    assert "at most 256" in error.details()


def test_the_request_id_comes_back_in_the_error(bundled_server):
    status = rpc_status.from_call(refusal(bundled_server, request("", request_id="mine-7")))
    info = error_details_pb2.RequestInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.request_id == "mine-7"


@pytest.fixture(scope="module")
def raw(bundled_server):
    """The method as bytes, for messages that no library would build."""
    with grpc.insecure_channel(bundled_server) as channel:
        yield channel.unary_stream("/sidelight.v1.AttributionService/Attribute")


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"\x12\x02\xff\xfe", "model"),
        (b"\x1a\x04\x0a\x02\xff\xfe", "source.text"),
        (b"\x1a\x03\x0a\x01a\x32\x07\x2a\x01a\x2a\x02\xc3\x28", "decoding.stop[1]"),
    ],
)
def test_text_that_is_not_utf8_is_named(raw, data, field):
    with pytest.raises(grpc.RpcError) as raised:
        list(raw(data, timeout=60))
    assert raised.value.code() == INVALID
    assert violated(raised.value) == [field]


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x1a\x50abc", b"\x12"])
def test_bytes_that_are_no_message_are_refused_without_class_names(raw, data):
    with pytest.raises(grpc.RpcError) as raised:
        list(raw(data, timeout=60))
    assert raised.value.code() == INVALID
    assert raised.value.details() == "the request is not a valid protobuf message"


def test_a_deadline_in_the_past_ends_at_once(bundled_server):
    with stub(bundled_server) as service, pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(request("A dog."), timeout=-1))
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("kind", [CROSS, ENCODER_SELF])
def test_a_decoder_only_model_has_no_attention_onto_a_source(decoder_only, kind):
    with serving(decoder_only) as address:
        error = refusal(address, request("Once", kinds=[DECODER_SELF, kind]))
    assert error.code() == INVALID
    assert violated(error) == ["capture.kinds[1]"]


@pytest.fixture
def decoder_only(zoo) -> LoadedModel:
    return zoo("gpt2")


def test_a_fault_inside_tells_nothing_and_harms_nobody(bundled, monkeypatch):
    from sidelight.server.runner import decode_step

    def explode(*_: object) -> None:
        raise RuntimeError("secret path /etc/passwd")

    with serving(bundled) as address:
        with monkeypatch.context() as patch:
            patch.setattr(decode_step, "step_scores", explode)
            error = refusal(address, request("A dog.", scores=[1]))
        assert error.code() == grpc.StatusCode.INTERNAL
        assert "secret" not in error.details()
        with stub(address) as service:
            assert list(service.Attribute(request("A dog."), timeout=60))[-1].HasField("finished")


def test_numbers_that_are_not_finite_end_the_request_with_a_status(bundled, monkeypatch):
    step = type(bundled.backend).decode

    def broken(layout, tokens, slots, sought=None):
        made = step(layout, tokens, slots).fill_(np.nan)
        if sought is not None:
            sought.search(made, sought.masked)
        return made

    with serving(bundled) as address:
        with monkeypatch.context() as patch:
            patch.setattr(type(bundled.backend), "decode", broken)
            error = refusal(address, request("A dog."))
        with stub(address) as service:
            assert list(service.Attribute(request("A dog."), timeout=60))[-1].HasField("finished")
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "finite" in error.details()


@pytest.mark.parametrize("fields", [{"source": "a <image>"}, {"prefix": "<image>"}, {"given": "a <image>"}])
def test_a_token_that_the_model_has_no_numbers_for_is_refused(zoo_folder, tmp_path, fields):
    path = Path(shutil.copytree(build_model("llama", zoo_folder), tmp_path / "model"))
    tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    id_ = json.loads((path / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    token = {"id": id_, "content": "<image>", "special": False, "normalized": False}
    tokenizer["added_tokens"].append(token | dict.fromkeys(("single_word", "lstrip", "rstrip"), False))
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    message = request(fields.get("source", "a"))
    if "prefix" in fields:
        message.prefix.text = fields["prefix"]
    if "given" in fields:
        message.given.text = fields["given"]
    with serving(load(path, packed=False)) as address:
        error = refusal(address, message)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"{id_} is outside the vocabulary of {id_} tokens" in error.details()
