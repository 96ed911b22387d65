from __future__ import annotations

import inspect
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from sentencepiece import SentencePieceProcessor
from sidelight.server.models.loader import LoadedModel
from sidelight.server.text.offsets import align_pieces, normalize_spans, trim_span
from sidelight.server.text.tokenizer import Detokenizer

TEXTS = [
    "I don't want to be your friend.",
    " lead and  two   spaces ",
    "Schön, ﬁne １２３ … Straße",
    "Tom: „Ja!“ (nein?)",
    "naïve cafe\u0301 ÅNGSTRÖM",
    "tab\tand\nnewline",
]


@pytest.mark.parametrize(
    ("text", "pieces", "spans"),
    [
        ("ab cd", ["▁ab", "▁c", "d"], [(0, 2), (3, 4), (4, 5)]),
        ("ﬁne", ["▁f", "ine"], [(0, 1), (0, 3)]),  # a ligature in two tokens is in both
        ("a 漢字 b", ["▁a", "", "▁b"], [(0, 1), (2, 4), (5, 6)]),  # unknown: what is left over
        ("Hello", ["hello</w>"], [(0, 5)]),  # case is folded
        ("high@@ way", ["high@@", "way"], [(0, 6), (7, 10)]),  # what no piece accounts for goes to the one before it
        (
            "it's 'ok'",
            ["it</w>", "&apos;s</w>", "&apos;", "ok</w>", "&apos;"],
            [(0, 2), (2, 4), (5, 6), (6, 8), (8, 9)],
        ),
        (
            "„Ja“ - e-mail",
            ['"</w>', "ja</w>", '"', "-", "e", "@-@", "mail"],
            [(0, 1), (1, 3), (3, 4), (5, 6), (7, 8), (8, 9), (9, 13)],
        ),
        ("a ## b", ["a", "#@@", "#", "b"], [(0, 1), (2, 3), (3, 4), (5, 6)]),
        ("a @@", ["a", "@@@", "@"], [(0, 1), (2, 3), (3, 4)]),
        ("", [], []),
        ("x", ["", ""], [(0, 1), (0, 1)]),
        ("y" * 300 + " dog", [*("y" * 300), "dog"], [*((place, place + 1) for place in range(300)), (301, 304)]),
        ("zz dog", ["", "dog"], [(0, 2), (3, 6)]),
    ],
)
def test_pieces_are_found_in_their_text(text, pieces, spans):
    assert normalize_spans(text, align_pieces(text, pieces), ["word"] * len(pieces)) == spans


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("casă a fost", {"<unk>": (3, 4), "▁a": (5, 6)}),
        ("I like 東京", {"<unk>": (7, 9)}),
        ("Hello " + 40 * "你" + " world, how are you?", {"<unk>": (6, 46), "▁world": (47, 52), "▁you": (62, 65)}),
        ("T\x10his is a te\x10st", {"▁This": (0, 5), "▁test": (11, 16)}),
        ("x مرحبا y", {"<unk>": (2, 7), "y": (8, 9)}),
        ("ﬁne …", {"▁fine": (0, 3)}),
    ],
)
def test_sentencepiece_says_where_its_pieces_come_from(bundled: LoadedModel, text, spans):
    """Values of public reports: matching strings was wrong here."""
    tokens = {token.piece: (token.begin, token.end) for token in bundled.tokenizer.encode_source(text).tokens}
    assert {piece: tokens[piece] for piece in spans} == spans


@pytest.mark.skipif(
    "return_type" not in inspect.signature(SentencePieceProcessor.Encode).parameters,
    reason="SentencePiece 0.2.1 has no such account",
)
def test_sentencepiece_itself_says_the_same(bundled: LoadedModel):
    """Its other account of a text is the peer: bytes of UTF-8, and nothing for all but one piece of a character."""
    processor = bundled.tokenizer._tokenizer.spm_source
    for text in TEXTS:
        raw = text.encode()
        pieces = processor.encode(text, return_type="proto").pieces
        tokens = [token for token in bundled.tokenizer.encode_source(text).tokens if not token.special]
        assert len(tokens) == len(pieces)
        for token, piece in zip(tokens, pieces, strict=True):
            begin, end = trim_span(text, (len(raw[: piece.begin].decode()), len(raw[: piece.end].decode())))
            if text[begin:end].strip():
                assert (token.begin, token.end) == (begin, end), token


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60))
def test_offsets_are_in_order_and_inside_whatever_the_text(bundled: LoadedModel, text):
    tokens = bundled.tokenizer.encode_source(text).tokens
    for token in tokens:
        assert 0 <= token.begin <= token.end <= len(text)
        assert token.text == text[token.begin : token.end]
    ends = [token.end for token in tokens]
    assert ends == sorted(ends)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60))
def test_text_that_grows_is_the_text_decoded_at_once(bundled: LoadedModel, text):
    tokenizer = bundled.tokenizer
    ids = tokenizer.encode_target(text).ids
    detokenizer = Detokenizer(tokenizer)
    deltas, tokens = zip(*(detokenizer.add(id_) for id_ in ids), strict=True)
    whole = "".join(deltas) + detokenizer.flush()
    assert whole == detokenizer.text == tokenizer.vocabulary.decode(ids)
    for token in tokens:
        assert token.text == whole[token.begin : token.end]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_text_grows_as_it_does_where_nothing_is_known_of_tokens(bundled: LoadedModel, data):
    """Tokens in an order that no text has, too: marks of spaces alone, unknown and special ones."""
    tokenizer = bundled.tokenizer
    lone = [tokenizer._tokenizer.convert_tokens_to_ids(piece) for piece in ("▁", "<unk>", "</s>", ",")]
    ids = data.draw(st.lists(st.sampled_from(lone) | st.integers(0, bundled.vocabulary_size - 1), max_size=20))
    unknowing = SimpleNamespace(
        vocabulary=_WithoutFixedTexts(tokenizer.vocabulary), decoder_class=tokenizer.decoder_class
    )
    knowing, asking = Detokenizer(tokenizer), Detokenizer(unknowing)
    assert [knowing.add(id_) for id_ in ids] == [asking.add(id_) for id_ in ids]
    assert knowing.flush() == asking.flush()
    assert knowing.text == asking.text == tokenizer.vocabulary.decode(ids)


def test_the_text_of_most_tokens_is_known(bundled: LoadedModel):
    tokenizer = bundled.tokenizer
    known = [id_ for id_ in range(bundled.vocabulary_size) if tokenizer.vocabulary.fixed_text(id_) is not None]
    assert len(known) > 0.9 * bundled.vocabulary_size


class _WithoutFixedTexts:
    """A vocabulary that knows the text of no token alone, so that each token is decoded with the tokens before it."""

    def __init__(self, vocabulary):
        self._vocabulary = vocabulary

    def __getattr__(self, name):
        return getattr(self._vocabulary, name)

    def fixed_text(self, id_):  # noqa: ARG002
        return None
