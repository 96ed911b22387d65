from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from sidelight.server.models import LoadedModel
from sidelight.server.offsets import align, trim
from sidelight.server.tokenization import Detokenizer

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
        ("a 漢字 b", ["▁a", None, "▁b"], [(0, 1), (2, 4), (5, 6)]),  # unknown: what is left over
        ("ab", ["▁", "ab"], [(0, 0), (0, 2)]),
        ("Hello", ["hello</w>"], [(0, 5)]),  # case is folded
        ("high@@ way", ["high@@", "way"], [(0, 4), (7, 10)]),
        ("", [], []),
        ("x", [None, None], [(0, 1), (0, 1)]),
    ],
)
def test_pieces_are_found_in_their_text(text, pieces, spans):
    assert align(text, pieces) == spans


@pytest.mark.parametrize("text", TEXTS)
def test_offsets_agree_with_sentencepiece(bundled: LoadedModel, text):
    """SentencePiece knows where its pieces come from, up to white space: the peer for Marian's tokens."""
    processor = bundled.codec._tokenizer.spm_source
    # SentencePiece counts bytes of UTF-8.
    raw = text.encode()
    expected = [
        trim(text, (len(raw[: piece.begin].decode()), len(raw[: piece.end].decode())))
        for piece in processor.encode(text, return_type="proto").pieces
    ]
    tokens = [token for token in bundled.codec.encode_source(text).tokens if not token.special]
    assert len(tokens) == len(expected)
    for token, (begin, end) in zip(tokens, expected, strict=True):
        # Of a character that became several pieces SentencePiece gives the later ones nothing; here all get it.
        if text[begin:end].strip():
            assert (token.begin, token.end) == (begin, end), token


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60))
def test_offsets_are_in_order_and_inside_whatever_the_text(bundled: LoadedModel, text):
    tokens = bundled.codec.encode_source(text).tokens
    for token in tokens:
        assert 0 <= token.begin <= token.end <= len(text)
        assert token.text == text[token.begin : token.end]
    ends = [token.end for token in tokens]
    assert ends == sorted(ends)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60))
def test_text_that_grows_is_the_text_decoded_at_once(bundled: LoadedModel, text):
    codec = bundled.codec
    ids = codec.encode_target(text).ids
    detokenizer = Detokenizer(codec)
    deltas, tokens = zip(*(detokenizer.add(id_) for id_ in ids), strict=True)
    whole = "".join(deltas) + detokenizer.flush()
    assert whole == detokenizer.text == codec.decode(ids)
    for token in tokens:
        assert token.text == whole[token.begin : token.end]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_text_grows_as_it_does_where_nothing_is_known_of_tokens(bundled: LoadedModel, data):
    """Tokens in an order that no text has, too: marks of spaces alone, unknown and special ones."""
    codec = bundled.codec
    lone = [codec._tokenizer.convert_tokens_to_ids(piece) for piece in ("▁", "<unk>", "</s>", ",")]
    ids = data.draw(st.lists(st.sampled_from(lone) | st.integers(0, bundled.vocabulary_size - 1), max_size=20))
    knowing, asking = Detokenizer(codec), Detokenizer(_Asking(codec))
    assert [knowing.add(id_) for id_ in ids] == [asking.add(id_) for id_ in ids]
    assert knowing.flush() == asking.flush()
    assert knowing.text == asking.text == codec.decode(ids)


def test_the_text_of_most_tokens_is_known(bundled: LoadedModel):
    codec = bundled.codec
    known = [id_ for id_ in range(bundled.vocabulary_size) if codec.text_behind_others(id_) is not None]
    assert len(known) > 0.9 * bundled.vocabulary_size


class _Asking:
    """A codec that knows the text of no token, and decodes each beside the one before it."""

    def __init__(self, codec):
        self._codec = codec

    def __getattr__(self, name):
        return getattr(self._codec, name)

    def text_behind_others(self, id_):  # noqa: ARG002
        return None
