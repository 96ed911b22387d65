"""What single tokens of a vocabulary stand for, and the text of several tokens decoded together."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from tokenizers import decoders
from tokenizers.pre_tokenizers import ByteLevel

from .offsets import SPACE, Role
from .sentencepieces import BYTE

# In some vocabularies, the end of each piece that completes a word.
WORD_END = "</w>"

# How many tokens' texts are cached.
_CACHED_TOKENS = 65536

# Texts that show how a tokenizer encodes bytes.
_PROBES = ("é", "the 漢字 café", "naïve 🤖🏽 don't (x) , y")

ByteEncoding = Literal["byte_level", "bytes", "byte_fallback"]
"""How tokens stand for parts of characters: byte-level BPE, ByT5's bytes, or SentencePiece's byte fallback."""


class Vocabulary:
    """The vocabulary of one tokenizer. Every thread may use it.

    Attributes:
        byte_encoding: How tokens stand for parts of characters; None if each token stands for whole characters.
        piece: The vocabulary's own form of a token; empty for ids that only pad the embedding.
        bytes_of: The bytes that a token stands for; None if the token stands for characters.
        role: Whether a token stands for characters, for spaces only, or for no text.
        fixed_text: What a token adds to any text that does not end in an incomplete character; None if that depends on
            the text.
    """

    def __init__(self, tokenizer: Any, code_ids: Iterable[int] = ()) -> None:
        """`code_ids` are the language codes. They are special tokens, whatever the tokenizer says about them."""
        self._tokenizer = tokenizer
        self.size = len(tokenizer)
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        self._added = {id_: token.content for id_, token in added.items()}
        # Llama 3's tokens around a header are special, but no attribute of the tokenizer names them.
        marked = (id_ for id_, token in added.items() if token.special)
        self._special: set[int] = {*tokenizer.all_special_ids, *code_ids, *marked}
        self.unknown_id: int | None = tokenizer.unk_token_id
        # The text of one token is needed again and again, and tokenizers in Python are slow.
        self._decode_one = functools.lru_cache(_CACHED_TOKENS)(lambda id_: self._decode([id_]))
        self.piece = functools.lru_cache(_CACHED_TOKENS)(self._piece)
        self.bytes_of = functools.lru_cache(_CACHED_TOKENS)(self._bytes_of)
        self.role = functools.lru_cache(_CACHED_TOKENS)(self._role)
        self.fixed_text = functools.lru_cache(_CACHED_TOKENS)(self._fixed_text)
        self._byte_ids: dict[int, int] = {}
        self._all_byte_ids: frozenset[int] = frozenset()
        self.byte_encoding = self._find_byte_encoding()
        self._word_start = None if tokenizer.is_fast else self._find_word_start()
        if self.unknown_id is not None:  # the first call looks at the whole vocabulary
            self.replace_unknown(self.unknown_id)

    def is_special(self, id_: int) -> bool:
        """Whether a token stands for no characters. The unknown token is not special: it stands for some characters."""
        return id_ in self._special and id_ != self.unknown_id

    def is_skipped(self, id_: int) -> bool:
        """Whether texts leave a token out: special tokens, and for most tokenizers the unknown token."""
        return id_ in self._special

    def is_blank(self, id_: int) -> bool:
        """Whether a token stands for white space or for nothing."""
        return self.is_special(id_) or self._own_text(id_).isspace()

    def surface(self, id_: int) -> str:
        """Returns the piece of a token that stands for characters; empty for special tokens and the unknown token."""
        return "" if self.is_special(id_) or id_ == self.unknown_id else self.piece(id_)

    def _piece(self, id_: int) -> str:
        try:
            return self._tokenizer.convert_ids_to_tokens(id_) or ""
        except (IndexError, OverflowError):
            return ""

    def _role(self, id_: int) -> Role:
        if self.is_special(id_):
            return "special"
        text = self._own_text(id_)
        return "space" if text and not text.strip(" ") else "word"

    def _own_text(self, id_: int) -> str:
        own_bytes = self.bytes_of(id_)
        return self.piece(id_).replace(SPACE, " ") if own_bytes is None else own_bytes.decode("utf-8", "replace")

    # ---- bytes ------------------------------------------------------------------------------------------------------

    def _find_byte_encoding(self) -> ByteEncoding | None:
        tokenizer = self._tokenizer
        probe = _PROBES[0]
        if not tokenizer.is_fast:
            pieces = tokenizer.tokenize(probe, split_special_tokens=True)
            if pieces == [chr(byte) for byte in probe.encode()]:
                return "bytes"
        elif isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
            self.byte_encoding = "byte_level"
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
            if self._decode([ids[byte] for byte in probe.encode()]) == probe:  # some tokenizers write "<0xC3>" as text
                return "byte_fallback"
        return None

    def _bytes_of(self, id_: int) -> bytes | None:
        piece = self.piece(id_)
        if self.byte_encoding == "byte_fallback":
            match = None if id_ in self._added else BYTE.fullmatch(piece)
            return None if match is None else bytes([int(match[1], 16)])
        if self.byte_encoding is None:
            return None
        if id_ in self._special:
            return b""
        if self.byte_encoding == "bytes":
            if id_ in self._added:
                return piece.encode()
            return bytes([ord(piece)]) if len(piece) == 1 and ord(piece) < 256 else b""
        known = byte_level_alphabet()
        if all(character in known for character in piece):
            return bytes(known[character] for character in piece)
        return piece.encode()

    # ---- texts ------------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of some tokens, without special tokens.

        Bytes that are no character become U+FFFD, once for each part that cannot continue to a character: as Unicode
        recommends, and as `bytes.decode` with "replace" does. If one byte of a run of byte tokens is not UTF-8, the
        tokenizers library makes U+FFFD of every byte of the run, of the run's whole characters too. A stream has sent
        these characters before the wrong byte comes.
        """
        shown = [id_ for id_ in ids if not self.is_skipped(id_)]
        if self.byte_encoding in ("byte_level", "bytes"):
            return b"".join(self.bytes_of(id_) or b"" for id_ in shown).decode("utf-8", "replace")
        if self.byte_encoding == "byte_fallback":
            shown = self._replace_invalid_bytes(shown)
        return self._decode_one(shown[0]) if len(shown) == 1 else self._decode(shown)

    def decode_before_letters(self, ids: Sequence[int]) -> str:
        """Returns the text of some tokens as it is before letters: some tokenizers drop a space at a text's end."""
        last = next((id_ for id_ in reversed(ids) if not self.is_skipped(id_)), None)
        if last is None or self.role(last) != "space" or self._letter_token is None:
            return self.decode(ids)
        return self.decode([*ids, self._letter_token]).removesuffix(self.piece(self._letter_token))

    def replace_unknown(self, id_: int) -> int:
        """Returns a token of letters for the unknown token, and every other token as it is.

        Texts leave the unknown token out. What follows the unknown token would be decoded as if nothing were before it.
        """
        return self._word_token if id_ == self.unknown_id and self._word_token is not None else id_

    @functools.cached_property
    def _word_token(self) -> int | None:
        """A token of letters, and of a word's end if the vocabulary marks ends; None if there is no such token."""
        plain = {id_: self.piece(id_) for id_ in range(self.size) if id_ not in self._added}
        ends = (id_ for id_, piece in plain.items() if piece.endswith(WORD_END) and piece[: -len(WORD_END)].isalpha())
        words = (id_ for id_, piece in plain.items() if piece.isalpha() and not self.is_special(id_))
        return next(ends, None) or self._letter_token or next(words, None)

    @functools.cached_property
    def _letter_token(self) -> int | None:
        """A token that adds letters to any text, without a space before them; None if there is no such token."""
        for id_ in range(self.size):
            piece = self.piece(id_)
            if piece.isalpha() and id_ not in self._added and self.decode([id_, id_]) == piece + piece:
                return id_
        return None

    def _replace_invalid_bytes(self, ids: Sequence[int]) -> list[int]:
        """Returns the tokens, with U+FFFD for bytes that are no character: one such byte would spoil a run of bytes."""
        if self._all_byte_ids.isdisjoint(ids):
            return [*ids]
        replaced: list[int] = []
        for is_run, run in itertools.groupby(ids, lambda id_: self.bytes_of(id_) is not None):
            tokens = [*run]
            if is_run:
                data = b"".join(self.bytes_of(id_) or b"" for id_ in tokens)
                valid = data.decode("utf-8", "replace").encode()
                if valid != data:
                    tokens = [self._byte_ids[byte] for byte in valid]
            replaced += tokens
        return replaced

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _fixed_text(self, id_: int) -> str | None:
        """See `fixed_text`.

        It is known for pieces of SentencePiece, and for tokenizers in Python: if such a token adds to one text what its
        piece says, it adds the same to every text. The text of a token that stands for bytes, or for unknown
        characters, is not its piece.
        """
        text = self.piece(id_).replace(SPACE, " ")
        if self._word_start is None or not text or text != text.rstrip() or self.is_special(id_):
            return None
        if self.bytes_of(id_) is not None:
            return None
        return text if self._decode([self._word_start, id_]) == self._decode_one(self._word_start) + text else None

    def _find_word_start(self) -> int | None:
        """Returns a token that is a word and is marked as a word's beginning; None if there is no such token."""
        for id_ in range(self.size):
            piece = self.piece(id_)
            if piece[:1] == SPACE and piece[1:].isalpha() and self._decode_one(id_) == piece[1:]:
                return id_
        return None


@functools.cache
def byte_level_alphabet() -> dict[str, int]:
    """Returns the byte for each character of byte-level BPE.

    A printable byte is its own character. Characters from U+0100 on stand for the other bytes.
    """
    alphabet = set(ByteLevel.alphabet())
    printable = [byte for byte in range(256) if chr(byte) in alphabet]
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + place): byte for place, byte in enumerate(others)},
    }
