"""ModelInfer answers as Attribute answers the same request, in the forms of the protocol."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, serving, stub, wait_until
from hostile_clients import SENTENCE
from inference_stubs import MODEL, infer_request, inference_stub, tensors_of
from sidelight.open_inference import grpc_service_pb2 as oip
from sidelight.server.api.enums import SCORES, STOP_REASONS
from sidelight.server.api.inference_protocol.outputs import OUTPUTS
from sidelight.server.request import CONTRAST_SCORES
from sidelight.v1 import attention_pb2, text_pb2
from sidelight.v1 import attribution_service_pb2 as pb

LONG = {"min_new_tokens": 250, "max_new_tokens": 250}
TEXTS = [SENTENCE, "A dog.", "Where is the nearest train station?"]
SCORES_WANTED = ["probability", "entropy"]
ATTENTION = {"cross_attention": "cross", "decoder_self_attention": "decoder_self"}


def attribute(address: str, text: str, **fields) -> tuple[pb.Started, list[pb.Step], pb.Finished, pb.EncoderSelf]:
    """What Attribute answers, with attention reduced over heads and layers, and with links."""
    message = request(text, [CROSS, DECODER_SELF, ENCODER_SELF], **fields)
    message.capture.over_heads = message.capture.over_layers = attention_pb2.REDUCTION_MEAN
    message.scores.extend([attention_pb2.SCORE_PROBABILITY, attention_pb2.SCORE_ENTROPY])
    message.link_options.SetInParent()
    with stub(address) as service:
        events = list(service.Attribute(message, timeout=60))
    steps = [step for event in events for step in event.steps.steps]
    (encoder_self,) = [event.encoder_self for event in events if event.HasField("encoder_self")]
    return events[0].started, steps, events[-1].finished, encoder_self


def infer(address: str, *texts: str, **fields) -> dict:
    with inference_stub(address) as service:
        return tensors_of(service.ModelInfer(infer_request(*texts, **fields), timeout=60))


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("is_given", [False, True])
def test_outputs_are_those_of_attribute(bundled_server, raw, is_given):
    given = ["Meine Oma ist noch rüstig.", "Ein Hund.", "Wo ist der nächste Bahnhof?"] if is_given else []
    wanted = [name for name, output in OUTPUTS.items() if output.score in (None, *SCORES_WANTED)]
    found = infer(bundled_server, *TEXTS, raw=raw, targets=given, outputs=wanted)
    for index, text in enumerate(TEXTS):
        fields = {"given": text_pb2.Text(text=given[index])} if is_given else {}
        started, steps, finished, encoder_self = attribute(bundled_server, text, **fields)
        num_source, num_steps = len(started.source), len(steps)
        assert found["text_output"][index] == finished.text
        assert found["stop_reason"][index] == ("given" if is_given else "end_token")
        assert (found["source_lengths"][index], found["target_lengths"][index]) == (num_source, num_steps)
        for side, tokens in (("source", started.source), ("target", [step.token for step in steps])):
            count = len(tokens)
            assert found[f"{side}_tokens"][index][:count] == [token.piece for token in tokens]
            assert not any(found[f"{side}_tokens"][index][count:])
            assert found[f"{side}_token_ids"][index][:count].tolist() == [token.id for token in tokens]
            assert (found[f"{side}_token_ids"][index][count:] == -1).all()
            spans = [[token.begin, token.end] for token in tokens]
            assert found[f"{side}_offsets"][index][:count].tolist() == spans
            words = [[word.begin, word.end] for word in getattr(finished.alignment, side)]
            assert found[f"{side}_word_offsets"][index][: len(words)].tolist() == words
        for name, kind in ATTENTION.items():
            for step, row in zip(steps, found[name][index][:num_steps], strict=True):
                expected = np.frombuffer(getattr(step, kind).values, "<f4")
                np.testing.assert_allclose(row[: expected.size], expected, atol=1e-5)
                assert not row[expected.size :].any()
            assert not found[name][index][num_steps:].any()
        expected = np.frombuffer(encoder_self.attention.values, "<f4").reshape(num_source, num_source)
        np.testing.assert_allclose(
            found["encoder_self_attention"][index][:num_source, :num_source], expected, atol=1e-5
        )
        for place, name in enumerate(SCORES_WANTED):
            np.testing.assert_allclose(
                found[name][index][:num_steps], [step.scores[place] for step in steps], atol=1e-4
            )
        assert found["links"][index] == finished.alignment.pharaoh
        links = finished.alignment.links
        assert found["link_pairs"][index][: len(links)].tolist() == [[link.source, link.target] for link in links]
        assert (found["link_pairs"][index][len(links) :] == -1).all()
        np.testing.assert_allclose(found["link_scores"][index][: len(links)], [link.score for link in links], atol=1e-5)


def test_only_what_is_asked_for_comes_in_its_order(bundled_server):
    assert list(infer(bundled_server, "A dog.", outputs=["links", "text_output"])) == ["links", "text_output"]
    default = infer(bundled_server, "A dog.")
    assert list(default) == [name for name, output in OUTPUTS.items() if output.is_default]
    assert "cross_attention" not in default


def test_tensors_have_the_types_and_shapes_that_the_metadata_says(bundled_server):
    with inference_stub(bundled_server) as service:
        model = service.ModelMetadata(oip.ModelMetadataRequest(name=MODEL, version="1"), timeout=60)
        names = [output.name for output in model.outputs]
        response = service.ModelInfer(infer_request(*TEXTS, outputs=names), timeout=60)
    assert (model.name, list(model.versions), model.platform) == (MODEL, ["1"], "sidelight")
    assert [each.name for each in model.inputs] == ["text_input", "target_input", "stream"]
    assert set(names) == set(OUTPUTS)
    assert {name for name in OUTPUTS if OUTPUTS[name].score} == set(SCORES.numbers) - set(CONTRAST_SCORES)
    for said, given in zip(model.outputs, response.outputs, strict=True):
        assert (said.name, said.datatype, len(said.shape)) == (given.name, given.datatype, len(given.shape))
        assert all(expected in (-1, length) for expected, length in zip(said.shape, given.shape, strict=True))
        assert given.shape[0] == len(TEXTS)


def test_a_model_without_an_encoder_has_no_cross_attention_and_no_links(zoo):
    loaded = zoo("gpt2")
    with serving(loaded) as address, inference_stub(address) as service:
        model = service.ModelMetadata(oip.ModelMetadataRequest(), timeout=60)
        names = {output.name for output in model.outputs}
        assert not names & {"links", "cross_attention", "encoder_self_attention"}
        message = infer_request("a b c", "a", outputs=["decoder_self_attention", "source_lengths"], max_new_tokens=3)
        message.model_name = loaded.name
        found = tensors_of(service.ModelInfer(message, timeout=60))
        rows, lengths = found["decoder_self_attention"], found["source_lengths"]
        for row, length in zip(rows, lengths, strict=True):
            for step in range(3):
                assert row[step, : length + step].sum() == pytest.approx(1, abs=1e-4)
                assert not row[step, length + step :].any()


def test_parameters_are_the_fields_of_attribute(bundled_server):
    sampled = infer(bundled_server, SENTENCE, seed=3, temperature=1.5, top_k=20, max_new_tokens=3)
    decoding = text_pb2.Decoding(max_new_tokens=3)
    decoding.sampling.seed, decoding.sampling.temperature, decoding.sampling.top_k = 3, 1.5, 20
    _, _, finished, _ = attribute(bundled_server, SENTENCE, decoding=decoding)
    assert sampled["text_output"] == [finished.text]
    assert sampled["stop_reason"] == [STOP_REASONS[finished.stop_reason]]
    assert infer(bundled_server, SENTENCE, max_new_tokens=2)["target_lengths"].tolist() == [2]

    found = infer(
        bundled_server,
        SENTENCE,
        outputs=["cross_attention"],
        heads_preset="alignment",
        over_heads="max",
        special_tokens="renormalize",
    )
    message = request(SENTENCE, [CROSS])
    message.capture.heads.preset, message.capture.over_heads = "alignment", attention_pb2.REDUCTION_MAX
    message.capture.special_tokens = attention_pb2.SPECIAL_TOKENS_RENORMALIZE
    with stub(bundled_server) as service:
        steps = [step for event in service.Attribute(message, timeout=60) for step in event.steps.steps]
    rows = np.stack([np.frombuffer(step.cross.values, "<f4") for step in steps])
    np.testing.assert_allclose(found["cross_attention"][0], rows, atol=1e-5)


def test_a_beam_search_has_no_links_by_default(bundled_server):
    found = infer(bundled_server, SENTENCE, beam_width=2)
    decoding = text_pb2.Decoding()
    decoding.beam.width = 2
    with stub(bundled_server) as service:
        events = list(service.Attribute(request(SENTENCE, decoding=decoding), timeout=60))
    assert found["text_output"] == [events[-1].finished.text]
    assert "links" not in found


def test_a_number_may_be_a_text_as_from_a_client_that_has_no_doubles(bundled_server):
    texts = [
        infer(bundled_server, SENTENCE, seed=5, temperature=value)["text_output"] for value in (1.7, "1.7", "0.001")
    ]
    assert texts[0] == texts[1] != texts[2]


def test_an_axis_for_a_batch_is_taken(bundled_server):
    message = infer_request("A dog.", "A cat.", outputs=["text_output"])
    with inference_stub(bundled_server) as service:
        flat = service.ModelInfer(message, timeout=60)
        message.inputs[0].shape[:] = [2, 1]
        assert service.ModelInfer(message, timeout=60) == flat


def test_the_texts_of_a_request_run_together(observed):
    """Sixteen texts take hardly more steps of the engine than the longest of them alone."""

    def count_steps() -> float:
        lines = observed.read_metrics().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("sidelight_step_seconds_count"))

    alone = count_steps()
    infer(observed.address, SENTENCE, outputs=["text_output"])
    together = count_steps()
    infer(observed.address, *[SENTENCE] * 16, outputs=["text_output"])
    assert 0 < count_steps() - together <= 2 * (together - alone)


def test_a_call_is_cancelled_by_its_id(bundled, engines):
    message = infer_request(*[SENTENCE] * 32, **LONG, outputs=["text_output"])
    message.id = "to-cancel"
    with serving(bundled) as address, inference_stub(address) as service, stub(address) as ours:
        call = service.ModelInfer.future(message, timeout=60)

        wait_until(lambda: engines[0].metrics.read_load().num_running)
        answer = ours.CancelAttribution(pb.CancelAttributionRequest(request_id="to-cancel"), timeout=60)
        assert answer.cancelled == 1
        assert call.code() is grpc.StatusCode.CANCELLED


def test_a_client_that_goes_leaves_nothing_behind(bundled, engines):
    with serving(bundled) as address, inference_stub(address) as service:
        call = service.ModelInfer.future(infer_request(*[SENTENCE] * 8, **LONG), timeout=60)
        wait_until(lambda: engines[0].metrics.read_load().num_running)
        call.cancel()
        wait_until(lambda: not engines[0].metrics.read_load().num_running)


def test_a_deadline_in_microseconds_ends_a_request(bundled_server):
    message = infer_request(*[SENTENCE] * 32, timeout=1)
    with inference_stub(bundled_server) as service, pytest.raises(grpc.RpcError) as raised:
        service.ModelInfer(message, timeout=60)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
