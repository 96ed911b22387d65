"""Whisper: features of a recording are the source; rows and tokens are the model's own, in slots beside neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import peers
import pytest
from harness import serving
from model_rows import check_rows
from sidelight.client import Attribution, Beam, Capture, Client, Contrast, Decoding, Greedy, InvalidArgumentError, save
from sidelight.server.models.loader import LoadedModel, load
from speech_zoo import NUM_BINS, NUM_FRAMES, WHISPER, build_whisper, recording
from transformers import AutoTokenizer

KINDS = ("cross", "decoder_self", "encoder_self")
WRITES = Decoding(Greedy(), max_new_tokens=9, min_new_tokens=9)


@dataclass(frozen=True)
class Served:
    """A Whisper, its folder, and a client of its server."""

    path: Path
    loaded: LoadedModel
    client: Client

    def attribute(self, **options) -> list[Attribution]:
        """Attributions of four recordings, which run side by side."""
        options.setdefault("capture", Capture(kinds=KINDS))
        streams = [self.client.attribute(recording(number), timeout=120, **options) for number in range(4)]
        return [stream.result() for stream in streams]


@pytest.fixture(scope="module", params=[True, False], ids=["multilingual", "english"])
def served(request, tmp_path_factory) -> Iterator[Served]:
    path = build_whisper(tmp_path_factory.mktemp("zoo"), is_multilingual=request.param)
    loaded = load(path)
    with serving(loaded) as address, Client(address) as client:
        yield Served(path, loaded, client)


def languages_of(served: Served) -> dict[str, str]:
    return {"source_language": "de"} if served.loaded.tokenizer.languages else {}


def test_decoded_beside_neighbours(served):
    assert (served.loaded.backend is not None) == WHISPER.in_slots
    assert served.loaded.attention_layers.captures_rows == WHISPER.captures_rows
    assert list(served.loaded.attention_layers.methods) == WHISPER.methods
    written = []
    for number, ours in enumerate(served.attribute(decoding=WRITES, **languages_of(served))):
        prompt = [token.id for token in ours.context]
        written.append([token.id for token in ours.steps])
        options = {"max_new_tokens": 9, "min_new_tokens": 9}
        assert written[-1] == peers.generate_speech_ids(served.path, recording(number), prompt, **options)
        check_rows(ours, served.path, recording(number))
        assert ours.cross.shape == (NUM_FRAMES // 2, 9, 3, 2)
        assert (ours.source, ours.started.source_text) == ((), "")
        assert ours.started.source_position_count == ours.usage.source_tokens == NUM_FRAMES // 2
    assert len({tuple(ids) for ids in written}) > 1
    assert max(len(set(ids)) for ids in written) > 2


@pytest.mark.parametrize("width", [2, 4])
def test_beam_searches_beside_each_other(served, width):
    """Tokens are those of `generate`, and rows those of the model over the best hypothesis."""
    decoding = replace(WRITES, strategy=Beam(width, hypotheses=2))
    found = served.attribute(decoding=decoding, **languages_of(served))
    for number, ours in enumerate(found):
        prompt = [token.id for token in ours.context]
        options = {"max_new_tokens": 9, "min_new_tokens": 9, "num_beams": width}
        ids = [token.id for token in ours.steps]
        assert ids == peers.generate_speech_ids(served.path, recording(number), prompt, **options)
        assert len(ours.hypotheses) == 2
        assert ids == [token.id for token in ours.hypotheses[0].tokens]
        check_rows(ours, served.path, recording(number))


@pytest.mark.parametrize("row", ["predicting", "reading"])
def test_given(served, row):
    tokenizer = AutoTokenizer.from_pretrained(served.path)
    text = tokenizer("Der Hund", add_special_tokens=False).input_ids
    options = {"target": "Der Hund", "capture": Capture(kinds=KINDS, row=row), **languages_of(served)}
    for number, ours in enumerate(served.attribute(**options)):
        assert [token.id for token in ours.steps] == [*text, tokenizer.eos_token_id]
        assert (ours.text, ours.steps[1].text) == ("Der Hund", "Hund")
        check_rows(ours, served.path, recording(number))


def test_the_prompt_says_language_and_task(served):
    def prompt(**options: str) -> list[str]:
        result = served.client.attribute(recording(0), capture=Capture(none=True), decoding=WRITES, **options).result()
        return [token.piece.strip("<|>") for token in result.context]

    start, end = "startoftranscript", "notimestamps"
    if not served.loaded.tokenizer.languages:
        assert prompt() == [start, end]
        assert refused_field(served, source_language="en") == "source_language"
        return
    assert prompt() == [start]
    assert prompt(source_language="de") == [start, "de", "transcribe", end]
    assert prompt(source_language="de", target_language="de") == [start, "de", "transcribe", end]
    assert prompt(source_language="de", target_language="en") == [start, "de", "translate", end]
    assert prompt(source_language="en", target_language="en") == [start, "en", "transcribe", end]
    assert refused_field(served, source_language="xx") == "source_language"
    assert refused_field(served, target_language="en") == "target_language"
    assert refused_field(served, source_language="en", target_language="de") == "target_language"


def refused_field(served: Served, **options) -> str:
    with pytest.raises(InvalidArgumentError) as raised:
        served.client.attribute(recording(0), **options).result()
    return raised.value.field


def test_a_prompt_may_be_given_as_tokens(served):
    """A multilingual Whisper without a language gets the rest of its prompt from the client: with time stamps, say."""
    if not served.loaded.tokenizer.languages:
        pytest.skip("its prompt is always the same")
    tokenizer = AutoTokenizer.from_pretrained(served.path)
    rest = tokenizer.convert_tokens_to_ids(["<|fr|>", "<|transcribe|>", "<|0.00|>"])
    for number, ours in enumerate(served.attribute(prefix=rest, decoding=WRITES)):
        assert [token.id for token in ours.context][1:] == rest
        check_rows(ours, served.path, recording(number))


def test_the_client_is_told_the_shape(served):
    model = served.client.get_model()
    assert (model.feature_shape, model.max_source_tokens) == ((NUM_BINS, NUM_FRAMES), NUM_FRAMES // 2)
    # A shorter limit of texts leaves recordings as long as they are.
    assert load(served.path, max_length=20, packed=False).max_source_tokens == NUM_FRAMES // 2


def test_another_recording_is_a_contrast(served):
    languages = languages_of(served)
    options = {"target": "Der Hund", "scores": ["probability"], "capture": Capture(none=True), **languages}
    alone = [served.client.attribute(recording(number), **options).result() for number in (0, 1)]
    options |= {"scores": ["contrast_prob"], "contrast": Contrast(source=recording(1))}
    both = served.client.attribute(recording(0), **options).result()
    np.testing.assert_allclose(both.scores["contrast_prob"], alone[1].scores["probability"], atol=1e-6)
    assert np.abs(alone[0].scores["probability"] - alone[1].scores["probability"]).max() > 1e-4
    wrong = Contrast(source=recording(1)[:, 1:])
    assert refused_field(served, **options | {"contrast": wrong}) == "contrast.source.features.shape"


def test_formats_without_a_place_for_recordings_refuse_them(served, tmp_path):
    result = served.client.attribute(recording(0), decoding=WRITES, **languages_of(served)).result()
    save(result, tmp_path / "a.npz")
    for name in ("a.json", "a.html"):
        with pytest.raises(ValueError, match="a source that is a recording"):
            save(result, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_no_recording_changes_a_bit_of_another_in_int8(served):
    if not served.loaded.tokenizer.languages:
        pytest.skip("the same layers")
    with serving(load(served.path, dtype="int8")) as address, Client(address) as client:
        options = {"capture": Capture(kinds=("cross",)), "decoding": WRITES, "source_language": "de", "timeout": 60}
        alone = client.attribute(recording(0), **options).result()
        streams = [client.attribute(recording(number), **options) for number in (1, 0, 2)]
        beside = [stream.result() for stream in streams][1]
    assert [token.id for token in alone.steps] == [token.id for token in beside.steps]
    np.testing.assert_array_equal(alone.cross, beside.cross)
