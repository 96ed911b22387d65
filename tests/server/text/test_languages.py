"""Languages choose the codes that a model reads and writes. A language that a model needs is asked for."""

from __future__ import annotations

import pytest
import transformers
from further_families import FURTHER_FAMILIES
from harness import serving
from model_zoo import FAMILIES, SOURCE, build_model
from sidelight.client import Client, Decoding, Greedy, InvalidArgumentError
from sidelight.server.models.loader import load


@pytest.mark.parametrize("name", ["mbart", "m2m100", "nllb"])
def test_languages_choose_the_codes(zoo, name):
    family, loaded = FAMILIES[name], zoo(name)
    codes = (family.source_language, family.target_language)
    assert set(codes) <= set(loaded.tokenizer.languages)
    with serving(loaded) as address, Client(address) as client:
        options = {"decoding": Decoding(Greedy(), max_new_tokens=4), "timeout": 60}
        for source, target in (codes, codes[::-1]):
            result = client.attribute(SOURCE, source_language=source, target_language=target, **options).result()
            assert any(source in token.piece for token in result.source if token.special)
            # What the decoder reads first, or writes first: mBART's code takes the start token's place.
            first = result.started.prefix[0] if name == "mbart" else result.steps[0]
            assert target in first.piece
            assert first.special
            given = client.attribute(
                SOURCE, target="Hund", source_language=source, target_language=target, timeout=60
            ).result()
            assert target in (given.started.prefix[0] if name == "mbart" else given.steps[0]).piece
        for field in ("source_language", "target_language"):
            with pytest.raises(InvalidArgumentError) as raised:
                client.attribute(SOURCE, **{field: "xx_Nowhere"}, **options).result()
            assert raised.value.field == field


def test_a_language_that_nothing_names_is_asked_for(tmp_path):
    path = build_model("nllb", tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.tgt_lang = None
    tokenizer.init_kwargs.pop("tgt_lang", None)
    tokenizer.save_pretrained(path)
    with serving(load(path)) as address, Client(address) as client:
        for options in ({}, {"target": "Hund"}, {"prefix": "Hund"}):
            with pytest.raises(InvalidArgumentError) as raised:
                client.attribute(SOURCE, timeout=60, **options).result()
            assert raised.value.field == "target_language"


@pytest.mark.slow  # its vocabulary is large
def test_madlad_takes_its_language_in_the_source(tmp_path):
    path = build_model("madlad", tmp_path, FURTHER_FAMILIES["madlad"])
    loaded = load(path)
    assert loaded.tokenizer.languages == ("de", "en")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    with serving(loaded) as address, Client(address) as client:
        for language in ("de", "en"):
            result = client.attribute(SOURCE, target_language=language, timeout=60).result()
            assert [token.id for token in result.source] == tokenizer(f"<2{language}> {SOURCE}").input_ids
            assert (result.source[0].piece, result.source[0].special) == (f"<2{language}>", True)
            assert result.started.source_text == SOURCE


def test_a_multilingual_marian_takes_its_language_in_the_source(tmp_path):
    import json
    import shutil

    path = build_model("marian", tmp_path)
    vocabulary = json.loads((path / "vocab.json").read_text(encoding="utf-8"))
    replaced = {(">>deu<<" if id_ == 4999 else piece): id_ for piece, id_ in vocabulary.items()}
    shutil.copytree(path, tmp_path / "many")
    (tmp_path / "many" / "vocab.json").write_text(json.dumps(replaced), encoding="utf-8")
    loaded = load(tmp_path / "many")
    assert loaded.tokenizer.languages == ("deu",)
    encoded = loaded.tokenizer.encode_source("A dog.", loaded.tokenizer.resolve_languages("", "deu"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "many")
    assert encoded.ids == tokenizer(">>deu<< A dog.").input_ids
    assert encoded.text == "A dog."
    assert encoded.tokens[0].special


def test_what_source_ids_leave_unheard_is_refused(zoo):
    with serving(zoo("nllb"), zoo("gpt2")) as address, Client(address) as client:
        ids = zoo("nllb").tokenizer.encode_source("a b").ids
        with pytest.raises(InvalidArgumentError) as raised:
            client.attribute(ids, source_language="eng_Latn", target_language="deu_Latn", timeout=60).result()
        assert raised.value.field == "source_language"
        decoding = Decoding(Greedy(), max_new_tokens=2)
        assert client.attribute(ids, target_language="deu_Latn", decoding=decoding, timeout=60).result().steps
        padding = zoo("nllb").tokenizer.padding_id
        with pytest.raises(InvalidArgumentError) as raised:
            client.attribute([*ids, padding, padding], target_language="deu_Latn", timeout=60).result()
        assert raised.value.field == f"source.token_ids.ids[{len(ids)}]"
