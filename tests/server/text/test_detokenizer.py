"""A text that grows token by token is the text of all tokens decoded at once. It starts with its prefix."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import serving
from model_zoo import FAMILIES, SOURCE, UNUSUAL_TEXT
from sidelight.client import Client, Decoding, Greedy
from sidelight.server.models.loader import load
from sidelight.server.text.tokenizer import Detokenizer


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "fsmt"])
@pytest.mark.parametrize("sentence", [SOURCE, UNUSUAL_TEXT])
def test_text_that_grows_is_the_text_decoded_at_once(zoo, name, sentence):
    tokenizer = zoo(name).tokenizer
    ids = [id_ for id_ in tokenizer.encode_source(sentence).ids if not tokenizer.vocabulary.is_special(id_)]
    detokenizer = Detokenizer(tokenizer)
    deltas, tokens = zip(*(detokenizer.add(id_) for id_ in ids), strict=True)
    whole = "".join(deltas) + detokenizer.flush()
    assert whole == tokenizer.vocabulary.decode(ids)
    ends = [token.end for token in tokens]
    assert ends == sorted(ends)


def test_a_character_of_several_tokens_is_in_each_of_them(zoo):
    """Byte-level BPE cuts a robot in four: each token covers it, and the text grows when the last one is there."""
    tokenizer = zoo("gpt2").tokenizer
    ids = tokenizer.encode_source("a 🤖!").ids
    detokenizer = Detokenizer(tokenizer)
    grown = [detokenizer.add(id_) for id_ in ids]
    robots = [token for _, token in grown if (token.begin, token.end) == (2, 3)]
    assert len(robots) >= 2
    assert [delta for delta, token in grown if token in robots][:-1] == [""] * (len(robots) - 1)
    assert robots[-1].text == "🤖"
    assert detokenizer.text == "a 🤖!"


@pytest.fixture(scope="module")
def stories():
    path = Path(__file__).parents[4] / "shared" / "models" / "stories260K"
    if not path.exists():
        pytest.skip("../shared is not here")
    with serving(load(path)) as address, Client(address) as client:
        yield client


def test_a_prompt_may_end_in_the_middle_of_a_run_of_bytes(stories):
    decoding = Decoding(Greedy(), max_new_tokens=3)
    result = stories.attribute("日本語日本語日本", prefix="😀語 okay", decoding=decoding, timeout=60).result()
    assert result.text.startswith("😀語 okay")
    prefix = [(token.begin, token.end, token.text) for token in result.started.prefix]
    assert prefix[:7] == [(0, 1, "😀")] * 4 + [(1, 2, "語")] * 3


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_that_begins_in_the_source_ends_there(stories, cut):
    ids = [token.id for token in stories.attribute("a 😀", target="x", timeout=60).result().source]
    more = [token.id for token in stories.attribute("a", target=" and more", timeout=60).result().steps]
    result = stories.attribute(ids[:-cut], target=[*ids[-cut:], *more], timeout=60).result()
    assert result.text == " and more"
    assert result.steps[cut].text == "and"


def test_a_replacement_character_in_a_text_is_one(stories):
    steps = list(stories.attribute("a", target="x \ufffdy 日", timeout=60))
    assert "".join(step.text for step in steps) == "x \ufffdy 日"
    marks = [step for step in steps if step.token.text == "\ufffd"]
    assert len(marks) == 3
    assert [step.text for step in marks] == [" ", "", "\ufffd"]  # the space before it is there at once
    assert next(step.token for step in steps if step.token.text == "y").begin == 3


@pytest.mark.parametrize("prefix", ["Der", "Der faule", "東京", "Der,"])
def test_a_prefix_may_end_with_the_space_of_the_next_word(bundled_server, prefix):
    with Client(bundled_server) as client:
        options = {"decoding": Decoding(max_new_tokens=4), "timeout": 60}
        text = client.attribute("The lazy dog sleeps.", prefix=prefix, **options).result().text
        assert text[len(prefix)] == " "
        for space in (" ", "\n", "  "):
            result = client.attribute("The lazy dog sleeps.", prefix=prefix + space, **options).result()
            assert result.text == prefix + space + text[len(prefix) + 1 :]
            steps = list(client.attribute("The lazy dog sleeps.", prefix=prefix + space, **options))
            assert result.text == prefix + space + "".join(step.text for step in steps)
            for step in steps:
                assert step.token.text == result.text[step.token.begin : step.token.end]


def test_a_prefix_keeps_its_last_unknown_token(bundled, bundled_server):
    with Client(bundled_server) as client:
        options = {"decoding": Decoding(Greedy(), max_new_tokens=2), "timeout": 60}
        result = client.attribute("I like Tokyo.", prefix="Ich mag 東京", **options).result()
        assert result.started.prefix[-1].id == bundled.tokenizer._tokenizer.unk_token_id


@pytest.mark.parametrize("prefix", ["Ich mag 東京", "a </s>", "😀語", "東京", "Ich  mag", "Ich mag ﬁ", "Ich"])
def test_a_target_starts_with_its_prefix_whatever_is_unknown_in_it(bundled_server, prefix):
    with Client(bundled_server) as client:
        options = {"decoding": Decoding(Greedy(), max_new_tokens=4), "timeout": 60}
        result = client.attribute("I like Tokyo.", prefix=prefix, **options).result()
        assert result.text.startswith(prefix)
        steps = list(client.attribute("I like Tokyo.", prefix=prefix, **options))
        assert result.text == prefix + "".join(step.text for step in steps)
        covered = set()
        for token in result.started.prefix:
            assert token.text == prefix[token.begin : token.end]
            covered |= {*range(token.begin, token.end)}
        assert covered == {place for place, character in enumerate(prefix) if not character.isspace()}
        for token in result.steps:
            assert token.begin >= len(prefix.rstrip())
            assert token.text == result.text[token.begin : token.end]
        pieces = "".join(step.token.piece for step in steps if not step.token.special)
        assert result.text == prefix + pieces.replace("▁", " ").replace("<unk>", "")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_a_language_model_goes_on_from_starts_its_text(zoo, name):
    with serving(zoo(name)) as address, Client(address) as client:
        options = {"decoding": Decoding(Greedy(), max_new_tokens=2), "timeout": 60}
        for prefix in (" dog 東京", " a </s>", "\n\n", " 😀語 "):
            result = client.attribute("The lazy", prefix=prefix, **options).result()
            steps = list(client.attribute("The lazy", prefix=prefix, **options))
            assert result.text == prefix + "".join(step.text for step in steps)
            tokens = result.started.prefix
            assert all(token.text == prefix[token.begin : token.end] for token in tokens)
            assert [token.begin for token in tokens] == sorted(token.begin for token in tokens)
            covered = {place for token in tokens for place in range(token.begin, token.end)}
            assert covered >= {place for place, character in enumerate(prefix) if not character.isspace()}


def test_a_line_break_is_a_token_of_a_language_model(zoo):
    with serving(zoo("gpt2")) as address, Client(address) as client:
        options = {"decoding": Decoding(Greedy(), max_new_tokens=2), "timeout": 60}
        assert client.attribute("a", target="\n", timeout=60).result().text == "\n"
        assert client.attribute("a", prefix="\n", **options).result().text.startswith("\n")
        assert client.attribute("\n", **options).result().source[-1].text == "\n"
