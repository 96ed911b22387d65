"""What single tokens of a vocabulary stand for, and the text of several.

Knows tokenizers; nothing of models, messages or texts that grow.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from tokenizers import decoders
from tokenizers.pre_tokenizers import ByteLevel

from .offsets import SPACE, Role
from .sentencepieces import BYTE

# At the end of a piece, in some vocabularies: of a word that is complete.
WORD_END = "</w>"

# How many tokens' texts are remembered.
_REMEMBERED = 65536

# Strings in which a tokenizer's way with bytes shows.
_PROBES = ("é", "the 漢字 café", "naïve 🤖🏽 don't (x) , y")

ByteVocabulary = Literal["byte_level", "bytes", "byte_fallback"]
"""Vocabularies with tokens that are parts of characters: byte-level BPE, ByT5's, and SentencePiece's byte fallback."""


class Pieces:
    """A tokenizer's vocabulary. Safe to use from several threads."""

    def __init__(self, tokenizer: Any, codes: Iterable[int] = ()) -> None:
        """`codes` are language codes: special tokens, whatever the tokenizer says of them."""
        self._tokenizer = tokenizer
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        self._added = {id_: token.content for id_, token in added.items()}
        # Llama 3's tokens around a header are special, but no attribute of the tokenizer names them.
        marked = (id_ for id_, token in added.items() if token.special)
        self._special: set[int] = {*tokenizer.all_special_ids, *codes, *marked}
        self._unknown: int | None = tokenizer.unk_token_id
        # A tokenizer is asked for one token's text again and again, and tokenizers in Python are slow.
        self._decode_one = functools.lru_cache(_REMEMBERED)(lambda id_: self._decode([id_]))
        self.piece = functools.lru_cache(_REMEMBERED)(self._piece)
        self.bytes_of = functools.lru_cache(_REMEMBERED)(self._bytes_of)
        self.role = functools.lru_cache(_REMEMBERED)(self._role)
        self.text_behind_others = functools.lru_cache(_REMEMBERED)(self._text_behind_others)
        self._byte_ids: dict[int, int] = {}
        self._all_byte_ids: frozenset[int] = frozenset()
        self.byte_vocabulary = self._find_byte_vocabulary()
        self._anchor = None if tokenizer.is_fast else self._find_anchor()

    @property
    def unknown(self) -> int | None:
        """The id of the unknown token."""
        return self._unknown

    def is_special(self, id_: int) -> bool:
        """Whether a token stands for no characters. The unknown token is not special: it stands for some."""
        return id_ in self._special and id_ != self._unknown

    def is_silent(self, id_: int) -> bool:
        """Whether a token is left out of texts: special ones are, and most tokenizers leave out the unknown one too."""
        return id_ in self._special

    def _piece(self, id_: int) -> str:
        """The vocabulary's own form of a token; empty for ids that only pad the embedding."""
        try:
            return self._tokenizer.convert_ids_to_tokens(id_) or ""
        except (IndexError, OverflowError):
            return ""

    def _role(self, id_: int) -> Role:
        """What a token stands for."""
        if self.is_special(id_):
            return "special"
        text = self._shown(id_)
        return "space" if text and not text.strip(" ") else "word"

    def is_blank(self, id_: int) -> bool:
        """Whether a token stands for nothing but white space, or for nothing."""
        return self.is_special(id_) or self._shown(id_).isspace()

    def _shown(self, id_: int) -> str:
        own = self.bytes_of(id_)
        return self.piece(id_).replace(SPACE, " ") if own is None else own.decode("utf-8", "replace")

    # ---- bytes ------------------------------------------------------------------------------------------------------

    def _find_byte_vocabulary(self) -> ByteVocabulary | None:
        tokenizer = self._tokenizer
        probe = _PROBES[0]
        if not tokenizer.is_fast:
            pieces = tokenizer.tokenize(probe, split_special_tokens=True)
            if pieces == [chr(byte) for byte in probe.encode()]:
                return "bytes"
        elif isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
            self.byte_vocabulary = "byte_level"
            for text in _PROBES:
                ids = tokenizer(text, add_special_tokens=False).input_ids
                if self.decode(ids) != self._decode(ids):
                    break
            else:
                return "byte_level"
            self.bytes_of.cache_clear()
        ids = {byte: tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in range(256)}
        if all(id_ is not None and self.piece(id_) == f"<0x{byte:02X}>" for byte, id_ in ids.items()):
            self._byte_ids, self._all_byte_ids = ids, frozenset(ids.values())
            if self._decode([ids[byte] for byte in probe.encode()]) == probe:  # some write the pieces as they are
                return "byte_fallback"
        return None

    def _bytes_of(self, id_: int) -> bytes | None:
        """The bytes that a token stands for, where the vocabulary says; None for tokens that are characters."""
        piece = self.piece(id_)
        if self.byte_vocabulary == "byte_fallback":
            match = None if id_ in self._added else BYTE.fullmatch(piece)
            return None if match is None else bytes([int(match[1], 16)])
        if self.byte_vocabulary is None:
            return None
        if id_ in self._special:
            return b""
        if self.byte_vocabulary == "bytes":
            if id_ in self._added:
                return piece.encode()
            return bytes([ord(piece)]) if len(piece) == 1 and ord(piece) < 256 else b""
        known = _byte_level()
        if all(character in known for character in piece):
            return bytes(known[character] for character in piece)
        return piece.encode()

    def model_text(self, text: str) -> str:
        """A text in the characters that the tokenizer's model is given."""
        if self.byte_vocabulary != "byte_level":
            return text
        characters = {byte: character for character, byte in _byte_level().items()}
        return "".join(characters[byte] for byte in text.encode())

    # ---- texts ------------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, special ones left out.

        Bytes that are no character are U+FFFD, one for each part of a character that cannot go on to be one: as Unicode
        recommends, and as `bytes.decode` with "replace" has it. The tokenizers library makes of a run of byte tokens
        that is not UTF-8 throughout one U+FFFD for each byte, of its whole characters too; but these have been sent
        when a later byte turns out to be broken.
        """
        shown = [id_ for id_ in ids if not self.is_silent(id_)]
        if self.byte_vocabulary in ("byte_level", "bytes"):
            return b"".join(self.bytes_of(id_) or b"" for id_ in shown).decode("utf-8", "replace")
        if self.byte_vocabulary == "byte_fallback":
            shown = self._repaired(shown)
        return self._decode_one(shown[0]) if len(shown) == 1 else self._decode(shown)

    def decode_before_letters(self, ids: Sequence[int]) -> str:
        """The text of some tokens where letters follow it: some tokenizers drop a space at a text's end."""
        last = next((id_ for id_ in reversed(ids) if not self.is_silent(id_)), None)
        if last is None or self.role(last) != "space" or self._letters is None:
            return self.decode(ids)
        return self.decode([*ids, self._letters]).removesuffix(self.piece(self._letters))

    def stand_in(self, id_: int) -> int:
        """For the unknown token, one that adds letters, as it would if the tokenizer knew them; others as they are.

        Texts leave the unknown token out, and what follows it would then be decoded as if nothing stood before it.
        """
        return self._word if id_ == self._unknown and self._word is not None else id_

    @functools.cached_property
    def _word(self) -> int | None:
        """A token that is letters, and the end of a word where the vocabulary marks ends; None where there is none."""
        plain = {id_: self.piece(id_) for id_ in range(len(self._tokenizer)) if id_ not in self._added}
        ends = (id_ for id_, piece in plain.items() if piece.endswith(WORD_END) and piece[: -len(WORD_END)].isalpha())
        words = (id_ for id_, piece in plain.items() if piece.isalpha() and not self.is_special(id_))
        return next(ends, None) or self._letters or next(words, None)

    @functools.cached_property
    def _letters(self) -> int | None:
        """A token that adds letters to any text, and no space before them; None where there is none."""
        for id_ in range(len(self._tokenizer)):
            piece = self.piece(id_)
            if piece.isalpha() and id_ not in self._added and self.decode([id_, id_]) == piece + piece:
                return id_
        return None

    def _repaired(self, ids: Sequence[int]) -> list[int]:
        """The tokens, with U+FFFD for bytes that are no character: one of them would spoil a run of bytes."""
        if self._all_byte_ids.isdisjoint(ids):
            return [*ids]
        repaired: list[int] = []
        for is_run, run in itertools.groupby(ids, lambda id_: self.bytes_of(id_) is not None):
            tokens = [*run]
            if is_run:
                data = b"".join(self.bytes_of(id_) or b"" for id_ in tokens)
                whole = data.decode("utf-8", "replace").encode()
                if whole != data:
                    tokens = [self._byte_ids[byte] for byte in whole]
            repaired += tokens
        return repaired

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _text_behind_others(self, id_: int) -> str | None:
        """What a token adds to any text that does not end in an incomplete character; None if that depends on the text.

        It is known of pieces of SentencePiece, for tokenizers in Python: where a token adds to one text what its piece
        says, it adds this to all. The texts of tokens that stand for bytes, or for nothing known, are not their pieces.
        """
        text = self.piece(id_).replace(SPACE, " ")
        if self._anchor is None or not text or text != text.rstrip() or self.is_special(id_):
            return None
        if self.bytes_of(id_) is not None:
            return None
        return text if self._decode([self._anchor, id_]) == self._decode_one(self._anchor) + text else None

    def _find_anchor(self) -> int | None:
        """A token that is a word; None where there is none that is marked as such."""
        for id_ in range(len(self._tokenizer)):
            piece = self.piece(id_)
            if piece[:1] == SPACE and piece[1:].isalpha() and self._decode_one(id_) == piece[1:]:
                return id_
        return None


@functools.cache
def _byte_level() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes: printable ones for themselves, and others from U+0100 on."""
    alphabet = set(ByteLevel.alphabet())
    printable = [byte for byte in range(256) if chr(byte) in alphabet]
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + place): byte for place, byte in enumerate(others)},
    }
