"""Encodes texts with a tokenizer that is written in Python (transformers: a slow tokenizer), which gives no offsets.

The offsets come from SentencePiece where the tokenizer leaves a text to SentencePiece, from the bytes where each token
is a byte, and otherwise from an alignment of the pieces with the text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from . import sentencepieces
from .encoding import EncodedText
from .languages import Languages
from .offsets import Span, align_pieces
from .tokens import TextOptions
from .vocabulary import Vocabulary

# How many words' pieces are cached, for tokenizers whose pieces are aligned with the text.
_CACHED_WORDS = 4096

# A text whose tokens show what a tokenizer puts around texts.
_PROBE = "a"

# Texts whose pieces show whether a tokenizer leaves all of a text to SentencePiece.
_SAMPLES = ("The dog, the cat.", " it's  Łódź\n漢字 x", "e\u0301 １２ …")


class SlowEncoder:
    """Encodes with one slow tokenizer. The tokenizer's lock protects it."""

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._frames: dict[tuple[Languages, bool], tuple[list[int], list[int]]] = {}
        self._pieces_of_word = functools.lru_cache(_CACHED_WORDS)(self._tokenize)
        self._processors = self._find_processors()

    def encode(self, text: str, options: TextOptions, languages: Languages, *, as_target: bool) -> EncodedText:
        """Encodes a text as a source, or as a target."""
        ids, spans = self._encode_bare(text, options.parses_special, as_target)
        if not options.adds_special:
            return EncodedText(ids, spans)
        before, behind = self._frame(languages, as_target)
        text_end = (len(text), len(text))
        spans = [(0, 0)] * len(before) + spans + [text_end] * len(behind)
        return EncodedText([*before, *ids, *behind], spans, (len(before), len(behind)))

    def _find_processors(self) -> tuple[Any, Any] | None:
        """Returns SentencePiece's processors for sources and targets; None if the tokenizer does anything besides."""
        source, target = (sentencepieces.find_processor(self._tokenizer, as_target=side) for side in (False, True))
        if source is None or target is None:
            return None
        leaves_all = all(self._tokenize(text) == source.encode(text, out_type=str) for text in _SAMPLES)
        return (source, target) if leaves_all else None

    def _tokenize(self, text: str) -> list[str]:
        """Returns a text's pieces. Unknown pieces are as in the text. Control tokens in the text are plain text."""
        return self._tokenizer.tokenize(text, split_special_tokens=True)

    def _encode_bare(self, text: str, parses_special: bool, as_target: bool) -> tuple[list[int], list[Span]]:
        """Encodes a text without special tokens around it."""
        pieces: list[str] = []
        spans: list[Span] = []
        offset = 0
        for part, is_control in self._split_at_controls(text, parses_special):
            part_pieces, part_spans = [part], [(0, len(part))]
            if not is_control:
                part_pieces, part_spans = self._encode_plain(part, as_target)
            pieces += part_pieces
            spans += [(offset + begin, offset + end) for begin, end in part_spans]
            offset += len(part)
        ids: list[int] = self._tokenizer.convert_tokens_to_ids(pieces)
        unknown_id = self._vocabulary.unknown_id
        if not parses_special and unknown_id is not None:  # a piece of plain text may look like a control token
            ids = [unknown_id if self._vocabulary.is_special(id_) else id_ for id_ in ids]
        return ids, spans

    def _split_at_controls(self, text: str, parses_special: bool) -> list[tuple[str, bool]]:
        """Splits a text at its control tokens. Returns each part, and whether the part is a control token."""
        if not parses_special:
            return [(text, False)]
        controls = {*self._tokenizer.added_tokens_encoder, *self._tokenizer.all_special_tokens}
        parts: list[tuple[str, bool]] = []
        for part in self._tokenizer.tokens_trie.split(text):
            if part not in controls and hasattr(self._tokenizer, "remove_language_code"):  # Marian's, such as ">>fra<<"
                codes, part = self._tokenizer.remove_language_code(part)
                parts += [(code, True) for code in codes]
            if part:
                parts.append((part, part in controls))
        return parts

    def _encode_plain(self, text: str, as_target: bool) -> tuple[list[str], list[Span]]:
        """Returns the pieces of a text without control tokens, and the spans that the pieces come from."""
        if self._processors is not None:
            pieces, spans = sentencepieces.encode(self._processors[as_target], text)
            return pieces, spans if spans is not None else align_pieces(text, pieces)
        pieces = self._tokenize(text)
        if self._vocabulary.byte_encoding == "bytes":
            places = [place for place, character in enumerate(text) for _ in character.encode()]
            return pieces, [(place, place + 1) for place in places]
        # Words are aligned one by one if each word alone becomes the same pieces: an error then stays in its word.
        words = [(match.start(), match.group()) for match in re.finditer(r"\S+", text)]
        by_word = [self._pieces_of_word(word) for _, word in words]
        if [piece for word_pieces in by_word for piece in word_pieces] != pieces:
            return pieces, align_pieces(text, self._clear_unknown(pieces))
        spans = []
        for (offset, word), word_pieces in zip(words, by_word, strict=True):
            word_spans = align_pieces(word, self._clear_unknown(word_pieces))
            spans += [(offset + begin, offset + end) for begin, end in word_spans]
        return pieces, spans

    def _clear_unknown(self, pieces: Sequence[str]) -> list[str]:
        """Returns the pieces, with "" for the unknown token: it shares no characters with the text."""
        return ["" if piece == self._tokenizer.unk_token else piece for piece in pieces]

    def _frame(self, languages: Languages, as_target: bool) -> tuple[list[int], list[int]]:
        """Returns the tokens that the tokenizer puts before a text and behind it."""
        key = (languages, as_target)
        if key not in self._frames:
            text = {"text_target" if as_target else "text": _PROBE}
            framed: list[int] = self._tokenizer(**text).input_ids
            bare: list[int] = self._tokenizer(**text, add_special_tokens=False).input_ids
            num_added = len(framed) - len(bare)
            starts = (start for start in range(num_added + 1) if framed[start : start + len(bare)] == bare)
            begin = next(starts, 0)
            self._frames[key] = framed[:begin], framed[begin + len(bare) :]
        return self._frames[key]
