"""Tokens stand in the text where their offsets say, and text that a user types never becomes a control token."""

from __future__ import annotations

import pytest
from harness import serving
from model_zoo import FAMILIES, SOURCE, UNUSUAL_TEXT
from sidelight.client import Client, Decoding, Greedy, InvalidArgumentError


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sentence", [SOURCE, UNUSUAL_TEXT, " x ", "a"])
def test_tokens_stand_where_they_say(zoo, name, sentence):
    tokenizer = zoo(name).tokenizer
    tokens = tokenizer.encode_source(sentence).tokens
    for token in tokens:
        assert 0 <= token.begin <= token.end <= len(sentence)
        assert token.text == sentence[token.begin : token.end]
        assert token.text == token.text.strip() or not token.text.strip()
        assert not (token.special and token.text)
    if sentence == SOURCE:
        covered = {place for token in tokens for place in range(token.begin, token.end)}
        assert covered >= {place for place, character in enumerate(sentence) if not character.isspace()}


def test_a_continuation_is_tokenized_with_its_prompt(zoo):
    tokenizer = zoo("llama").tokenizer
    prompt = tokenizer.encode_source("The lazy dog")
    continuation = tokenizer.encode_continuation(prompt, " does not want")
    assert [*prompt.ids, *continuation.ids] == tokenizer.encode_source("The lazy dog does not want").ids
    assert next(token.text for token in continuation.tokens if token.text) == "does"
    # Here the seam would fall inside a token; the prompt keeps its own.
    inside = tokenizer.encode_continuation(tokenizer.encode_source("The la"), "zy dog")
    assert tokenizer.vocabulary.decode(inside.ids) == "zy dog"


def test_a_prefix_and_a_given_text_are_the_same_tokens(zoo):
    """Decoder-only: what continues a prompt is tokenized with it, whether it is read or attributed."""
    loaded = zoo("llama")
    with serving(loaded) as address, Client(address) as client:
        decoding = Decoding(Greedy(), max_new_tokens=2)
        prefixed = client.attribute("The lazy", prefix=" dog", decoding=decoding, timeout=60).result()
        given = client.attribute("The lazy", target=" dog", timeout=60).result()
        assert [token.id for token in prefixed.started.prefix] == [token.id for token in given.steps]
        assert prefixed.text.startswith(" dog")
        by_ids = client.attribute("The lazy", target=[token.id for token in given.steps], timeout=60).result()
        assert by_ids.steps == given.steps
        assert by_ids.text == given.text == " dog"


def test_what_somebody_types_is_text(zoo):
    typed = {
        "nllb": "a deu_Latn </s> b",
        "mbart": "a de_DE <pad> b",
        "bart": "a </s><s> b",
        "t5": "a </s> b",
        "fsmt": "</s>",
    }
    for name, sentence in typed.items():
        tokenizer = zoo(name).tokenizer
        plain = [token.id for token in tokenizer.encode_source("a b").tokens if token.special]
        encoded = tokenizer.encode_source(sentence)
        assert [token.id for token in encoded.tokens if token.special] == plain
        assert all(token.begin <= token.end for token in encoded.tokens)
    with serving(zoo("bart")) as address, Client(address) as client:
        options = {"decoding": Decoding(Greedy(), max_new_tokens=1), "timeout": 60}
        tokenizer = zoo("bart").tokenizer._tokenizer
        for ways, ids in (
            ({}, tokenizer("a </s> b", split_special_tokens=True).input_ids),
            ({"special_tokens_in_text": "text"}, tokenizer("a </s> b", split_special_tokens=True).input_ids),
            ({"special_tokens_in_text": "parse"}, tokenizer("a </s> b").input_ids),
            (
                {"special_tokens_in_text": "parse", "add_special_tokens": False},
                tokenizer("a </s> b", add_special_tokens=False).input_ids,
            ),
        ):
            result = client.attribute("a </s> b", **ways, **options).result()
            assert [token.id for token in result.source] == ids
        for ways, field in (
            ({"special_tokens_in_text": "parse"}, "special_tokens_in_text"),
            ({"add_special_tokens": False}, "add_special_tokens"),
        ):
            with pytest.raises(InvalidArgumentError) as raised:
                client.attribute([4, 5, 6], **ways, **options).result()
            assert raised.value.field == field
        with pytest.raises(InvalidArgumentError):
            client.attribute("a", special_tokens_in_text="nothing").result()


def test_tokens_around_a_header_are_special():
    """Llama 3's are, though no attribute of its tokenizer names them."""
    from tokenizer_zoo import zoo_tokenizer

    tokenizer = zoo_tokenizer("byte-level")
    assert tokenizer.vocabulary.is_special(tokenizer._tokenizer.convert_tokens_to_ids("<|start_header_id|>"))
    assert not tokenizer.vocabulary.is_special(tokenizer._tokenizer.convert_tokens_to_ids("<think>"))


def test_a_source_that_comes_to_nothing_is_refused(bundled_server):
    with Client(bundled_server) as client:
        for source in ("\u200b", "\ufeff", "\x01", " ", "\n", ""):
            with pytest.raises(InvalidArgumentError) as raised:
                client.attribute(source, timeout=60).result()
            assert raised.value.field == "source.text"
        for prefix in ("\u200b", "\x01\x02"):
            with pytest.raises(InvalidArgumentError) as raised:
                client.attribute("A dog.", prefix=prefix, timeout=60).result()
            assert raised.value.field == "prefix.text"
