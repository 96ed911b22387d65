"""Encodes texts with a tokenizer of the tokenizers library (transformers: a fast tokenizer), which gives the offsets.

Also turns control tokens that a user typed back into tokens of plain text, where the library does not.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from .encoding import EncodedText
from .languages import Languages
from .offsets import Span
from .tokens import TextOptions
from .vocabulary import Vocabulary, byte_level_alphabet


class FastEncoder:
    """Encodes with one fast tokenizer. The tokenizer's lock protects it."""

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary, controls: Mapping[int, str]) -> None:
        """`controls` are the control tokens, by id."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._controls = controls
        self._text_tokens = functools.cache(self._find_text_tokens)

    def encode(self, text: str, options: TextOptions, languages: Languages, *, as_target: bool) -> EncodedText:
        """Encodes a text as a source, or as a target."""
        del languages  # the tokenizer's own settings hold the languages
        settings: dict[str, Any] = {
            "add_special_tokens": options.adds_special,
            "split_special_tokens": not options.parses_special,
            "return_offsets_mapping": True,
            "return_special_tokens_mask": True,
            "truncation": False,
            "verbose": False,
        }
        encoding = self._tokenizer(**{"text_target" if as_target else "text": text}, **settings)
        ids, spans, mask = (encoding[key] for key in ("input_ids", "offset_mapping", "special_tokens_mask"))
        of_text = [index for index, is_added in enumerate(mask) if not is_added]
        num_added = (of_text[0], len(ids) - 1 - of_text[-1]) if of_text else (0, len(ids))
        if not options.parses_special and any(ids[index] in self._controls for index in of_text):
            ids, spans = self._replace_controls(text, ids, spans, mask)
        return EncodedText(ids, spans, num_added)

    def _replace_controls(
        self, text: str, ids: Sequence[int], spans: Sequence[Span], mask: Sequence[int]
    ) -> tuple[list[int], list[Span]]:
        """Replaces control tokens that a user typed by tokens of plain text.

        If asked, the library keeps special tokens in texts as text. It does not do so for other tokens that a chat
        template may write, nor for special tokens that are in the vocabulary, such as in unigram models.
        """
        new_ids: list[int] = []
        new_spans: list[Span] = []
        for id_, (begin, end), is_added in zip(ids, spans, mask, strict=True):
            if is_added or id_ not in self._controls:
                new_ids.append(id_)
                new_spans.append((begin, end))
                continue
            is_exact = text[begin:end] == self._controls[id_]
            for text_id, first, last in self._text_tokens(id_):
                new_ids.append(text_id)
                new_spans.append((begin + first, begin + last) if is_exact else (begin, end))
        return new_ids, new_spans

    def _find_text_tokens(self, control_id: int) -> list[tuple[int, int, int]]:
        """Returns tokens for the characters of a control token, none of them a control token, with their spans in it.

        Of all ways to cut the characters in two, the cut with the fewest tokens is taken.
        """
        content = self._controls[control_id]
        model = self._tokenizer.backend_tokenizer.model
        best: list[tuple[int, int, int]] = []
        for cut in range(1, len(content)):
            tokens: list[tuple[int, int, int]] = []
            for begin, end in ((0, cut), (cut, len(content))):
                for token in model.tokenize(self._model_characters(content[begin:end])):
                    first, last = token.offsets if content.isascii() else (0, end - begin)
                    tokens.append((token.id, begin + first, begin + last))
            has_control = any(id_ in self._controls for id_, _, _ in tokens)
            if not has_control and (not best or len(tokens) < len(best)):
                best = tokens
        if not best and self._vocabulary.unknown_id is not None:
            best = [(self._vocabulary.unknown_id, 0, len(content))]
        return best

    def _model_characters(self, text: str) -> str:
        """Returns a text in the characters that the library's model takes."""
        if self._vocabulary.byte_encoding != "byte_level":
            return text
        characters = {byte: character for character, byte in byte_level_alphabet().items()}
        return "".join(characters[byte] for byte in text.encode())
