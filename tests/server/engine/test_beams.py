"""Beam searches through a real server: their streams, and how they share the slots with other requests."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import torch
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, serving, steps_of, stub, wait_until
from sidelight.client import AsyncClient, Beam, Capture, Client, Decoding
from sidelight.client.cli.main import main
from sidelight.server.engine import output_queue, preemption
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.engine.request_state import RequestState
from sidelight.server.runner import sequence
from sidelight.server.runner.decode_step import DecodeStep
from sidelight.server.runner.targets import target_pass
from sidelight.server.runner.targets.target_pass import TargetPass
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2 as text

SENTENCE = "My grandmother is still vigorous."
BEAM = text.Decoding(beam=text.Beam(width=4, hypotheses=3))


def ids_of(responses) -> list[int]:
    return [step.token.id for step in steps_of(responses)]


CAPTURES = (
    attention.Capture(),
    attention.Capture(kinds=[CROSS, DECODER_SELF, ENCODER_SELF], over_heads=attention.REDUCTION_MEAN),
    attention.Capture(kinds=[CROSS, DECODER_SELF], top_k=3, encoding=attention.ENCODING_FLOAT16),
    attention.Capture(kinds=[DECODER_SELF], steps=attention.StepSpan(begin=2, end=5)),
    attention.Capture(kinds=[DECODER_SELF], row=attention.ROW_READING),
    attention.Capture(kinds=[CROSS], special_tokens=attention.SPECIAL_TOKENS_RENORMALIZE),
    attention.Capture(kinds=[CROSS, DECODER_SELF], method=attention.METHOD_VALUE_NORMS),
    attention.Capture(kinds=[DECODER_SELF], method=attention.METHOD_ROLLOUT),
    attention.Capture(kinds=[CROSS, DECODER_SELF, ENCODER_SELF], special_tokens=attention.SPECIAL_TOKENS_RENORMALIZE),
)


def assert_same_rows(mine, other) -> None:
    """Compares the steps of two streams: as many numbers in each row, and none of them further away than 1e-5."""
    for ours, theirs in zip(mine, other, strict=True):
        assert (ours.index, ours.token.id) == (theirs.index, theirs.token.id)
        for kind in ("cross", "decoder_self"):
            row, same = getattr(ours, kind), getattr(theirs, kind)
            assert (row.shape, row.encoding, row.positions) == (same.shape, same.encoding, same.positions)
            dtype, tolerance = ("<f2", 1e-3) if row.encoding == attention.ENCODING_FLOAT16 else ("<f4", 1e-5)
            values, expected = (np.frombuffer(each.values, dtype) for each in (row, same))
            np.testing.assert_allclose(values, expected, atol=tolerance)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)


@pytest.mark.parametrize("capture", CAPTURES, ids=range(len(CAPTURES)))
def test_the_rows_are_those_of_a_given_target(bundled_server, capture):
    message = request(SENTENCE, decoding=BEAM)
    message.capture.CopyFrom(capture)
    with stub(bundled_server) as service:
        steps = steps_of(list(service.Attribute(message, timeout=60)))
        message.given.token_ids.ids.extend(step.token.id for step in steps)
        assert_same_rows(steps, steps_of(list(service.Attribute(message, timeout=60))))


def test_units_are_those_of_a_given_target(bundled_server):
    message = request(SENTENCE, [CROSS, DECODER_SELF], decoding=BEAM, resume_at=3)
    message.capture.grouping = attention.GROUPING_WORD
    with stub(bundled_server) as service:
        found = list(service.Attribute(message, timeout=60))
        message.given.token_ids.ids.extend(token.id for token in found[-1].finished.hypotheses[0].tokens)
        given = list(service.Attribute(message, timeout=60))
    units, expected = ([unit for response in each for unit in response.units.units] for each in (found, given))
    assert units
    for ours, theirs in zip(units, expected, strict=True):
        assert (ours.index, ours.span, ours.first_step) == (theirs.index, theirs.span, theirs.first_step)
        for row, same in ((ours.cross, theirs.cross), (ours.decoder_self, theirs.decoder_self)):
            values, others = (np.frombuffer(each.values, "<f4") for each in (row, same))
            np.testing.assert_allclose(values, others, atol=1e-5)


def count_passes(monkeypatch) -> list[int]:
    """Returns a list that gets an entry with each pass over a target."""
    run, passes = TargetPass._run, []

    def counting(target_pass, begin, end):
        passes.append(end)
        return run(target_pass, begin, end)

    monkeypatch.setattr(TargetPass, "_run", counting)
    return passes


def test_a_pass_runs_only_where_the_steps_lack_something(bundled, monkeypatch):
    passes = count_passes(monkeypatch)
    with serving(bundled) as address, stub(address) as service:

        def answer(**fields):
            del passes[:]
            return steps_of(list(service.Attribute(request(SENTENCE, decoding=BEAM, **fields), timeout=60)))

        steps = answer(capture=attention.Capture(kinds=[CROSS, DECODER_SELF]))
        assert not passes
        assert answer(capture=attention.Capture(none=True))
        assert not passes
        assert answer(scores=[1])[0].scores
        assert len(passes) == 1
        monkeypatch.setattr(sequence, "_MAX_ROW_BYTES", 3_000)  # rows of some steps
        assert_same_rows(answer(capture=attention.Capture(kinds=[CROSS, DECODER_SELF])), steps)
        assert len(passes) == 1


def test_rows_that_a_slow_reader_loses_come_from_a_pass(bundled, monkeypatch):
    """And nothing comes twice, though the pass has several parts."""
    monkeypatch.setattr(output_queue, "CAPACITY", 8192)
    monkeypatch.setattr(RequestState.is_slow, "__defaults__", (0.02,))
    monkeypatch.setattr(preemption, "_ATTENTION_BYTES", 1)
    monkeypatch.setattr(target_pass, "_PASS_TOKENS", 2)
    passes = count_passes(monkeypatch)
    message = request(SENTENCE, [CROSS, DECODER_SELF], decoding=BEAM)
    narrow = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    with serving(bundled) as address, stub(address) as service:
        expected = steps_of(list(service.Attribute(message, timeout=60)))
        with grpc.insecure_channel(address, options=narrow) as channel:
            slow = services.AttributionServiceStub(channel).Attribute(message, timeout=60)
            time.sleep(0.5)
            assert ids_of(list(service.Attribute(message, timeout=60)))
            assert not passes
            assert_same_rows(steps_of(list(slow)), expected)
            assert len(passes) > 1


@pytest.mark.parametrize("row", [attention.ROW_PREDICTING, attention.ROW_READING])
def test_the_steps_are_those_of_a_given_target(bundled_server, row):
    message = request(SENTENCE, [CROSS, DECODER_SELF, ENCODER_SELF], scores=[1, 3], decoding=BEAM)
    message.capture.row = row
    with stub(bundled_server) as service:
        responses = list(service.Attribute(message, timeout=60))
        steps, finished = steps_of(responses), responses[-1].finished
        message.given.token_ids.ids.extend(ids_of(responses))
        assert_same_rows(steps, steps_of(list(service.Attribute(message, timeout=60))))
    assert "".join(step.text for step in steps) == finished.text == finished.hypotheses[0].text
    assert [response.WhichOneof("event") for response in responses[:2]] == ["started", "encoder_self"]
    assert len(finished.hypotheses) == 3
    scores = [hypothesis.score for hypothesis in finished.hypotheses]
    assert scores == sorted(scores, reverse=True)
    assert [token.id for token in finished.hypotheses[0].tokens] == ids_of(responses)
    # The score of a hypothesis is the mean of what its steps say, as the length penalty is 1.
    assert scores[0] == pytest.approx(np.mean(np.log([step.scores[0] for step in steps])), abs=1e-5)


def test_later_steps_stop_texts_and_no_capture(bundled_server):
    with stub(bundled_server) as service:
        whole = list(service.Attribute(request(SENTENCE, decoding=BEAM), timeout=60))
        rest = list(service.Attribute(request(SENTENCE, decoding=BEAM, resume_at=3), timeout=60))
        assert [step.index for step in steps_of(rest)] == list(range(3, len(steps_of(whole))))
        assert [step.cross for step in steps_of(rest)] == [step.cross for step in steps_of(whole)[3:]]
        message = request(SENTENCE, decoding=BEAM)
        message.capture.none = True
        assert ids_of(list(service.Attribute(message, timeout=60))) == ids_of(whole)
        message.decoding.stop.append("mutter")
        assert list(service.Attribute(message, timeout=60))[-1].finished.text.endswith("mutter")


def test_offsets_of_hypotheses_are_in_the_unit_of_the_request(bundled_server):
    message = request(SENTENCE, decoding=BEAM, offset_unit=text.OFFSET_UNIT_UTF8)
    with stub(bundled_server) as service:
        responses = list(service.Attribute(message, timeout=60))
    for hypothesis in responses[-1].finished.hypotheses:
        data = hypothesis.text.encode()
        assert all(data[token.begin : token.end].decode() == token.text for token in hypothesis.tokens)
    assert [(t.begin, t.end) for t in responses[-1].finished.hypotheses[0].tokens] == [
        (step.token.begin, step.token.end) for step in steps_of(responses)
    ]


def test_wide_and_single_requests_all_get_their_turn(bundled):
    """Beside a stream of single requests, wide ones start; single ones start beside a stream of wide ones."""
    with serving(bundled, limits=EngineConfig(max_running=5)) as address, stub(address) as service:
        alone = [ids_of(list(service.Attribute(request(SENTENCE, decoding=d), timeout=60))) for d in (None, BEAM)]

        def ask(number: int) -> bool:
            decoding = BEAM if number % 3 == 0 else None
            ids = ids_of(list(service.Attribute(request(SENTENCE, decoding=decoding), timeout=60)))
            return ids == alone[number % 3 == 0]

        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(ask, range(48)))
        with pytest.raises(grpc.RpcError) as raised:
            list(service.Attribute(request(SENTENCE, decoding=text.Decoding(beam=text.Beam(width=6))), timeout=60))
        assert "decoding.beam.width" in raised.value.details()
        assert service.GetModel(pb.GetModelRequest()).model.limits.max_beam_width == 5


def test_a_search_that_is_not_wanted_frees_its_slots(bundled, engines):
    """By cancelling, and by its deadline."""
    long = text.Decoding(beam=text.Beam(width=4), ignore_eos=True, max_new_tokens=250)
    with serving(bundled, limits=EngineConfig(max_running=4)) as address, stub(address) as service:
        call = service.Attribute(request(SENTENCE, decoding=long), timeout=60)
        next(call)
        call.cancel()
        with pytest.raises(grpc.RpcError) as raised:
            list(service.Attribute(request(SENTENCE, decoding=long), timeout=0.3))
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: engines[0]._core._runner.num_free_slots == 4)
        assert ids_of(list(service.Attribute(request(SENTENCE, decoding=BEAM), timeout=60)))


def test_too_little_memory_for_a_whole_step(bundled, monkeypatch):
    """A step of half of the hypotheses, and then of the other half, gives the same ones."""
    plan_step, sizes = DecodeStep._plan_step, []

    def limited(step, batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return plan_step(step, batch)

    with serving(bundled) as address, stub(address) as service:
        expected = list(service.Attribute(request(SENTENCE, decoding=BEAM), timeout=60))
        monkeypatch.setattr(DecodeStep, "_plan_step", limited)
        responses = list(service.Attribute(request(SENTENCE, decoding=BEAM), timeout=60))
        assert max(sizes) > 2
        assert ids_of(responses) == ids_of(expected)
        ours, theirs = (
            [(h.text, pytest.approx(h.score, abs=1e-5)) for h in each[-1].finished.hypotheses]
            for each in (responses, expected)
        )
        assert ours == theirs


def test_slow_readers_of_hypotheses_hold_no_slots(bundled, engines, monkeypatch):
    """Their steps wait as those of given targets do; other requests run meanwhile, and nothing is lost."""
    monkeypatch.setattr(output_queue, "CAPACITY", 2048)
    monkeypatch.setattr(RequestState.is_slow, "__defaults__", (0.02,))
    message = request(SENTENCE, [CROSS, DECODER_SELF], decoding=BEAM)
    narrow = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    with serving(bundled, limits=EngineConfig(max_running=4)) as address, stub(address) as service:
        expected = ids_of(list(service.Attribute(message, timeout=60)))
        with grpc.insecure_channel(address, options=narrow) as channel:
            slow = [services.AttributionServiceStub(channel).Attribute(message, timeout=60) for _ in range(3)]
            time.sleep(0.5)
            assert ids_of(list(service.Attribute(message, timeout=60))) == expected
            wait_until(lambda: engines[0]._core._runner.num_free_slots == 4)
            assert all(ids_of(list(call)) == expected for call in slow)


def test_a_model_without_slots(zoo):
    with serving(zoo("fsmt"), limits=EngineConfig(max_running=4)) as address, stub(address) as service:
        message = request("The lazy dog.", [CROSS], decoding=text.Decoding(beam=text.Beam(width=3), max_new_tokens=5))
        responses = list(service.Attribute(message, timeout=60))
        assert len(steps_of(responses)) == 5
        assert responses[-1].finished.stop_reason == text.STOP_REASON_LENGTH


async def test_both_clients(bundled_server):
    decoding = Decoding(Beam(4, length_penalty=0.5, hypotheses=2, early_stopping="never"))
    with Client(bundled_server) as client:
        result = client.attribute(SENTENCE, decoding=decoding, capture=Capture(over_heads="mean")).result()
    async with AsyncClient(bundled_server) as client:
        again = await client.attribute(SENTENCE, decoding=decoding).result()
    assert result.hypotheses == again.hypotheses
    assert (len(result.hypotheses), result.hypotheses[0].text) == (2, result.text)
    assert result.hypotheses[0].stop_reason == result.stop_reason == "end_token"


def test_the_command_line(bundled_server, capsys):
    arguments = ["attribute", SENTENCE, "--address", bundled_server, "--quiet", "--beam", "4", "--hypotheses", "3"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert [line.split("  ")[-1] for line in lines[:2]] == [lines[0]] * 2
    with pytest.raises(SystemExit, match="2"):
        main(["attribute", SENTENCE, "--address", bundled_server, "--length-penalty", "2"])
    assert "need --beam" in capsys.readouterr().err
