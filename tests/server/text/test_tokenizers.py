"""What holds for texts and tokens with every kind of tokenizer, whatever the text."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from sidelight.server.text.tokenizer import Detokenizer, TextOptions, Token, Tokenizer
from tokenizer_zoo import TOKENIZERS, zoo_tokenizer

# Texts of public reports, and others that a tokenizer makes something else of.
STRETCHES = [
    *(
        "the",
        "dog",
        "Lazy",
        "Łódź",
        "casă",
        "東京",
        "你" * 40,
        "مرحبا",
        "한국",
        "नमस्ते",
        "Straße",
        "x",
        "Z",
        "3.5",
        "1 000",
    ),
    *(
        "😀",
        "👩‍👩‍👧",
        "🤖🏽",
        "e\u0301",
        "e\u0323\u0301",
        "\u1112\u1161\u11ab",
        "\u0301",
        "ﬁ",
        "½",
        "…",
        "ﷺ",
        "Å",
        "İ",
        "ß",
    ),
    *(
        "\x01",
        "\x10",
        "te\x10st",
        "\u200b",
        "\ufeff",
        "\u00ad",
        "\u202e",
        "\ufffd",
        "\x00",
        "\x7f",
        "\U000f0000",
        "\u2028",
    ),
    *(
        "'",
        '"',
        "ja,",
        '"ja",',
        "„Ja!“",
        "it's",
        "'ok'",
        "-",
        "e-mail",
        "(x)",
        "%",
        "&",
        "&amp;",
        "&apos;",
        "@-@",
        ".",
        "...",
    ),
    *("@@", "##", "▁", "Ġ", "Ċ", "</w>", "<0x41>", "a@@", "##b", "▁a", "</", "s>", "<"),
    *(
        "</s>",
        "<s>",
        "<pad>",
        "<unk>",
        "[SEP]",
        "[UNK]",
        ">>fra<<",
        "deu_Latn",
        "en_XX",
        "__en__",
        "__end__",
        "__unk__",
    ),
    *("<|start_header_id|>", "<|im_start|>", "<think>", "<extra_id_0>"),
]
SPACES = ["", "", " ", " ", "  ", "\n", "\t", "\n\n", "\u3000", "\u00a0", " \u200b "]

texts = st.one_of(
    st.lists(st.tuples(st.sampled_from(STRETCHES) | st.text(max_size=4), st.sampled_from(SPACES)), max_size=9).map(
        lambda parts: "".join(part + space for part, space in parts)
    ),
    st.text(st.sampled_from("the lazy dog, don't. 漢字é"), max_size=30),
).map(lambda text: text.encode("utf-8", "ignore").decode())


def check_spans(text: str, tokens: tuple[Token, ...]) -> None:
    """The contract's rule."""
    covered = bytearray(len(text))
    last = 0
    has_words = any(token.piece.strip("▁Ġ ") for token in tokens if not token.special)
    for token in tokens:
        assert 0 <= token.begin <= token.end <= len(text), token
        assert token.text == text[token.begin : token.end], token
        assert token.begin >= last, token
        last = token.begin
        assert token.text == token.text.strip() or not token.text.strip(), token
        if token.special:
            assert not token.text
            continue
        if token.piece and not token.piece.strip("▁Ġ ") and has_words:  # a text of marks alone has no other tokens
            assert not token.text
        covered[token.begin : token.end] = b"\1" * (token.end - token.begin)
    if any(not token.special for token in tokens):
        missing = [place for place, character in enumerate(text) if not character.isspace() and not covered[place]]
        assert not missing, (missing, tokens)


def grown(tokenizer: Tokenizer, ids: list[int], context: tuple[int, ...] = ()) -> tuple[str, list[Token]]:
    detokenizer = Detokenizer(tokenizer, context)
    deltas, tokens = [], []
    for id_ in ids:
        delta, token = detokenizer.add(id_)
        deltas.append(delta)
        tokens.append(token)
    rest = detokenizer.flush() if not tokens else ""
    if tokens:
        rest, tokens[-1] = detokenizer.finish(tokens[-1])
    text = "".join(deltas) + rest
    assert text == detokenizer.text
    return text, tokens


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=30)
@given(text=texts)
@example(text="casă a fost, I like 東京. T\x10his te\x10st")
@example(text="Hello " + 40 * "你" + " world, how are you?")
@example(text="x مرحبا بالعالم y, Łódź zloty, it's 'ok' ## @@ a@@ ##b")
@example(text='er sagt: "ja", und geht. the lazy dog')
@example(text="a </s> b <pad> deu_Latn [SEP] en_XX __en__ <|im_start|> <think> x")
@example(text=">>fra<< Hello")
@example(text="a\ufffdb \ufffd\ufffd c\ufffd")
def test_tokens_stand_where_the_rule_says(name, text):
    tokenizer = zoo_tokenizer(name)
    encoded = tokenizer.encode_source(text)
    check_spans(text, encoded.tokens)
    # Nothing that somebody types is a control token.
    framing = tokenizer.encode_source("the dog")
    assert [token.id for token in encoded.tokens if token.special] == [
        token.id for token in framing.tokens if token.special
    ]
    check_spans(text, tokenizer.encode_target(text).tokens)
    # The ids alone are that text as the tokenizer decodes it, and their tokens stand in it by the same rule.
    ids = encoded.ids
    decoded = tokenizer.detokenize(ids)
    assert decoded.ids == ids
    assert decoded.text == tokenizer.vocabulary.decode(ids)
    check_spans(decoded.text, decoded.tokens)
    # Parsed, it is what the tokenizer itself makes of it.
    parsed = tokenizer.encode_source(text, options=TextOptions(parses_special=True))
    if name != "bytes":  # ByT5's warns of an end token that is there already, and does not add another
        assert parsed.ids == tokenizer._tokenizer(text).input_ids
    assert all(one.begin <= two.begin <= two.end <= len(text) for one, two in itertools.pairwise(parsed.tokens))


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=30)
@given(text=texts, cut=st.integers(0, 20))
@example(text='er sagt: "ja", und geht. the lazy dog', cut=3)
@example(text="日本語日本語日本😀語 okay", cut=4)
@example(text="a\ufffdb \ufffd\ufffd c\ufffd", cut=0)
def test_text_that_grows_is_the_text_decoded_at_once(name, text, cut):
    tokenizer = zoo_tokenizer(name)
    vocabulary = tokenizer.vocabulary
    ids = [id_ for id_ in tokenizer.encode_source(text).ids if not vocabulary.is_special(id_)]
    whole, tokens = grown(tokenizer, ids)
    assert whole == vocabulary.decode(ids)
    assert whole == tokenizer._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    last = 0
    for token in tokens:
        assert last <= token.begin <= token.end <= len(whole)
        assert token.text in ("", whole[token.begin : token.end]) or whole[token.begin : token.end].startswith(
            token.text
        )
        last = token.begin
    if tokenizer.decoder_class.__name__ in ("ByteDecoder", "WindowDecoder"):
        known = tuple(
            Token(token.id, token.piece, token.begin, token.end, token.special, whole[token.begin : token.end])
            for token in tokens
        )
        check_spans(whole, known)
    if tokenizer.decoder_class.__name__ not in ("ByteDecoder", "WindowDecoder") or cut >= len(ids):
        return
    # A text that continues another, from inside a character too, is what the other lacks of both.
    begun = grown(tokenizer, ids[:cut])[0]
    going_on, _ = grown(tokenizer, ids[cut:], tuple(ids[:cut]))
    if name == "blenderbot-small" and begun + going_on != whole:  # a word that goes on is marked at a text's end
        begun = begun.removesuffix("@@")
    assert begun + going_on == whole or "\ufffd" in begun
    if "\ufffd" in begun and "\ufffd" not in whole:
        assert whole.endswith(going_on)
        assert len(begun) + len(going_on) == len(whole)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=30)
@given(prefix=texts, later=texts)
@example(prefix="the 東京", later="the dog")
@example(prefix="a </s>", later="the")
@example(prefix="😀語", later="the lazy")
@example(prefix="the dog ", later="lazy, dog")
@example(prefix='er sagt: "', later='ja", und geht.')
@example(prefix="\x08", later="the")
@example(prefix="\x08 ", later="a")
def test_a_target_starts_with_its_prefix_as_it_was_given(name, prefix, later):
    tokenizer = zoo_tokenizer(name)
    vocabulary = tokenizer.vocabulary
    encoded = tokenizer.encode_prefix(tokenizer.encode_source("the"), prefix, tokenizer.resolve_languages("", ""))
    assert encoded.text == prefix
    check_spans(prefix, encoded.tokens)
    ids = [id_ for id_ in tokenizer.encode_source(later).ids if not vocabulary.is_special(id_)]
    detokenizer = Detokenizer(tokenizer, prefix=encoded)
    assert detokenizer.text == prefix
    deltas, tokens = [], []
    for id_ in ids:
        delta, token = detokenizer.add(id_)
        deltas.append(delta)
        tokens.append(token)
    if tokens:
        rest, tokens[-1] = detokenizer.finish(tokens[-1])
        deltas.append(rest)
    added = "".join(deltas)
    assert detokenizer.text == prefix + added
    if not added.strip():
        assert not vocabulary.decode(ids).strip()
        return
    # What comes behind it is what the decoder makes of both, but for what it makes of the prefix.
    known = [vocabulary.replace_unknown(id_) for id_ in encoded.ids if not vocabulary.is_special(id_)]
    whole, before = vocabulary.decode([*known, *ids]), vocabulary.decode(known)
    assert whole.endswith(added)
    begun = whole[: len(whole) - len(added)]
    shown = [id_ for id_ in known if not vocabulary.is_skipped(id_)]
    mark = "@@" if shown and vocabulary.piece(shown[-1]).endswith("@@") else ""  # of a word that goes on
    assert "".join(begun.split()) == "".join(before.removesuffix(mark).split())
    # A space that separates words is kept, and one that is the prefix's own is not written again.
    expected = before
    if shown and vocabulary.role(shown[-1]) == "space" and (letters := vocabulary._letter_token) is not None:
        expected = vocabulary.decode([*known, letters]).removesuffix(vocabulary.piece(letters))
        assert whole.startswith(expected)
    if whole.startswith(expected) and not mark:
        # The space that the prefix ends with, and that its tokens may lack, is not written again either.
        own = prefix.strip() and prefix[-1].isspace() and not expected[-1:].isspace() and whole[len(expected)] == " "
        assert begun == expected + " " * bool(own)
    last = max((token.begin for token in encoded.tokens), default=0)
    for token in tokens:
        assert last <= token.begin <= token.end <= len(detokenizer.text)
        last = token.begin
        assert token.end == token.begin or token.begin >= len(prefix)


# Tokenizers that put no space before a word in the middle of a text, or whose decoder leaves none.
WITHOUT_SPACES = {"bpe-python-verbatim", "gemma", "byte-level", "byte-level-untrimmed", "byte-level-nfc", "bytes"}


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name not in {*WITHOUT_SPACES, "unigram-bytes"}])
@pytest.mark.parametrize("prefix", ["東京", "東京 語", "the 東京", "東", "漢字漢字 , 語"])
def test_a_word_behind_unknown_characters_is_apart(name, prefix):
    """A text leaves out the unknown token: what follows would begin the text, without a space."""
    tokenizer = zoo_tokenizer(name)
    encoded = tokenizer.encode_prefix(tokenizer.encode_source("the"), prefix, tokenizer.resolve_languages("", ""))
    detokenizer = Detokenizer(tokenizer, prefix=encoded)
    for token in tokenizer.encode_source("the dog").tokens:
        if not token.special:
            detokenizer.add(token.id)
    detokenizer.flush()
    assert detokenizer.text == f"{prefix} the dog"


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_broken_characters_are_the_same_however_they_come(name, data):
    """Bytes that are no character, half a surrogate at the end, and tokens without text between bytes."""
    tokenizer = zoo_tokenizer(name)
    vocabulary = tokenizer.vocabulary
    if vocabulary.byte_encoding is None:
        return
    single = {own: id_ for id_ in range(len(tokenizer._tokenizer)) if len(own := vocabulary.bytes_of(id_) or b"") == 1}
    byte = {own[0]: id_ for own, id_ in single.items()}
    fixed = [[0xED, 0xA8], [0x41, 0xED, 0xA8], [0xED, 0xA8, 0x41], [0xDE, -1, 0x90], [0xDE, -1, 0x90, 0x85]]
    fixed += [[0xF4, 0xF0, 0x90, -2], [0xF0, -2, 0xED, -2], [0xDE, 0x90, 0xDE, -2], [0x41, 0xF0, 0x9F, 0x98, 0xF0, -2]]
    drawn = st.lists(st.sampled_from([0x41, 0x20, 0xDE, 0x90, 0x85, 0xED, 0xA8, 0xF0, 0x9F, 0x98, -1, -2]), max_size=9)
    special = tokenizer._tokenizer.eos_token_id
    for marks in (*fixed, data.draw(drawn)):
        if vocabulary.unknown_id is None and -1 in marks:
            continue
        ids = [{-1: vocabulary.unknown_id, -2: special}.get(mark, byte.get(mark)) for mark in marks]
        whole, tokens = grown(tokenizer, ids)
        assert whole == vocabulary.decode(ids)
        # As Unicode has it, and Python: one U+FFFD for each part of a character that cannot go on to be one.
        expected = bytes(mark for mark in marks if mark >= 0).decode("utf-8", "replace")
        if vocabulary.byte_encoding == "byte_fallback":  # of which some decoders strip a space
            assert whole in (expected, expected.removeprefix(" "))
        else:
            assert whole == expected
        begins = [token.begin for token in tokens]
        assert begins == sorted(begins)
        assert all(token.end <= len(whole) for token in tokens)
        covered = {place for token in tokens for place in range(token.begin, token.end)}
        assert covered >= {place for place, character in enumerate(whole) if not character.isspace()}
        if marks and marks[-1] == -2:
            assert len(whole.rstrip()) <= begins[-1] <= len(whole)
        decoded = tokenizer.detokenize(ids)
        assert decoded.text == whole
        for cut in range(len(ids)):
            begun, rest = vocabulary.decode(ids[:cut]), grown(tokenizer, ids[cut:], tuple(ids[:cut]))[0]
            if "\ufffd" not in begun:
                assert begun + rest == whole or vocabulary.byte_encoding == "byte_fallback"
