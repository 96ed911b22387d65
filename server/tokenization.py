"""Between texts and token ids: encoding with offsets, languages, and text that grows token by token.

Knows tokenizers and the token ids of a model's configuration; knows nothing of attention or of messages.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .languages import LanguageCodes, Languages
from .offsets import Span, align, trim

# Characters of the prompt's end that a continuation's first token is decoded beside, in tokens.
_CONTEXT = 8

# How many tokens' texts are remembered.
_REMEMBERED = 65536

# Bytes for which a token may stand where no piece of the vocabulary is longer: an unknown one stands for a whole run of
# characters, but not all of a text is such.
_TOKEN_BYTES = 64

# SentencePiece's mark for a space.
_SPACE = "▁"

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Token:
    """A token and where it stands: `text[begin:end]` of the exact text. Special tokens cover nothing."""

    id: int
    piece: str
    begin: int
    end: int
    special: bool
    text: str


@dataclass(frozen=True)
class Encoded:
    """A text and its tokens."""

    text: str
    tokens: tuple[Token, ...]

    @property
    def ids(self) -> list[int]:
        """The tokens' ids."""
        return [token.id for token in self.tokens]


class Codec:
    """A model's tokenizer, with the parts of its configuration that say how texts begin and end.

    Safe to use from several threads: language settings are state of the tokenizer, so encoding takes turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self._tokenizer: Any = tokenizer
        self._lock = threading.Lock()
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        config: Any = model.generation_config
        self._codes = LanguageCodes(tokenizer, config)
        self._special: set[int] = {*tokenizer.all_special_ids, *self._codes.ids.values()}
        self._unknown = tokenizer.unk_token_id
        start = getattr(config, "decoder_start_token_id", None)
        if start is None:
            start = getattr(model.config, "decoder_start_token_id", None)
        self._start: int | None = start if start is not None else getattr(model.config, "bos_token_id", None)
        # Half of a detokenizer's calls are for a single token, and tokenizers in Python are slow.
        self._decode_one = functools.lru_cache(_REMEMBERED)(lambda id_: self._decode([id_]))
        self.piece = functools.lru_cache(_REMEMBERED)(self._piece)
        self.text_behind_others = functools.lru_cache(_REMEMBERED)(self._text_behind_others)
        self._anchor = None if tokenizer.is_fast else self._find_anchor()
        self._token_bytes = max(_TOKEN_BYTES, *(len(piece.encode()) for piece in tokenizer.get_vocab()))

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes that requests may name; empty where the model needs none."""
        return tuple(sorted(self._codes.ids))

    def most_bytes(self, tokens: int) -> int:
        """Bytes of UTF-8 beyond which a text is not tokenized, as it would have more than so many tokens."""
        return tokens * self._token_bytes

    @property
    def is_busy(self) -> bool:
        """Whether a text is being tokenized, for which others would wait."""
        return self._lock.locked()

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    def check_languages(self, source: str, target: str) -> tuple[str | None, str | None]:
        """What is wrong with the source and the target language, each None if nothing is."""
        return self._codes.problem_with_source(source), self._codes.problem_with_target(target)

    def languages_of(self, source: str, target: str) -> Languages:
        """The languages of a request, with the model's defaults where it names none."""
        return self._codes.resolve(source, target)

    def start_ids(self, languages: Languages) -> list[int]:
        """What an encoder-decoder's decoder reads before anything else; nothing for a decoder-only model."""
        if not self._is_encoder_decoder:
            return []
        start = self._codes.start_id(languages)
        start = start if start is not None else self._start
        return [] if start is None else [start]

    def forced_first_id(self, languages: Languages) -> int | None:
        """The token that must be written first for a target language; None to leave it to the configuration."""
        return self._codes.first_id(languages)

    def encode_source(self, text: str, languages: Languages | None = None) -> Encoded:
        """Tokens of what the model reads, special tokens included."""
        languages = languages or self.languages_of("", "")
        with self._lock:
            self._codes.apply(languages)
            encoded = self._encode(text)
        code = self._codes.source_id(languages)
        return encoded if code is None else Encoded(text, (self._token(code, (0, 0), ""), *encoded.tokens))

    def encode_target(self, text: str, languages: Languages | None = None) -> Encoded:
        """Tokens of a whole target as an encoder-decoder writes it: without the start token, with the end token."""
        with self._lock:
            self._codes.apply(languages or self.languages_of("", ""))
            return self._encode(text, as_target=True)

    def encode_continuation(self, prompt: Encoded, text: str) -> Encoded:
        """Tokens of a text that continues a prompt.

        Both are tokenized together, so that the seam is as the tokenizer would have it. Where that would change the
        prompt's own tokens, the text is tokenized behind a line break instead: alone, many tokenizers would put a space
        before it.
        """
        with self._lock:
            for before, known in ((prompt.text, prompt.ids), ("\n", self._encode("\n", special=False).ids)):
                joint = self._encode(before + text, special=known is prompt.ids)
                if joint.ids[: len(known)] == known:
                    break
            else:
                return self._encode(text, special=False)
        shift = len(before)
        tokens = tuple(
            self._token(token.id, (max(0, token.begin - shift), max(0, token.end - shift)), text)
            for token in joint.tokens[len(known) :]
        )
        return Encoded(text, tokens)

    def encode_prefix(self, source: Encoded, text: str, languages: Languages) -> list[int]:
        """Token ids that a target starts with: no end token behind them."""
        if not self._is_encoder_decoder:
            return self.encode_continuation(source, text).ids
        ids = self.encode_target(text, languages).ids
        while ids and ids[-1] in self._special:
            ids.pop()
        return ids

    def decode_ids(self, ids: Sequence[int], context: Sequence[int] = ()) -> Encoded:
        """Given ids, the text that they stand for behind a context, and where each stands in it."""
        detokenizer = Detokenizer(self, context)
        tokens = [detokenizer.add(id_)[1] for id_ in ids]
        detokenizer.flush()
        text = detokenizer.text
        return Encoded(text, tuple(self._token(token.id, (token.begin, token.end), text) for token in tokens))

    def render_chat(self, messages: Sequence[dict[str, str]]) -> Encoded:
        """The prompt that a conversation becomes. The template writes the special tokens itself."""
        text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        with self._lock:
            return self._encode(text, special=False)

    def is_special(self, id_: int) -> bool:
        """Whether a token stands for no characters. The unknown token is not special: it stands for some."""
        return id_ in self._special and id_ != self._unknown

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, special ones left out."""
        shown = [id_ for id_ in ids if not self.is_special(id_)]
        return self._decode_one(shown[0]) if len(shown) == 1 else self._decode(shown)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _piece(self, id_: int) -> str:
        """The vocabulary's own form of a token; empty for ids that only pad the embedding."""
        return self._tokenizer.convert_ids_to_tokens(id_) or ""

    def _text_behind_others(self, id_: int) -> str | None:
        """What a token adds to any text that does not end in an incomplete character; None if that depends on the text.

        It is known of pieces of SentencePiece, for tokenizers in Python: where a token adds to one text what its piece
        says, it adds this to all. The texts of tokens that stand for bytes, or for nothing known, are not their pieces.
        """
        text = self.piece(id_).replace(_SPACE, " ")
        if self._anchor is None or not text or text != text.rstrip() or self.is_special(id_):
            return None
        return text if self._decode([self._anchor, id_]) == self._decode_one(self._anchor) + text else None

    def _find_anchor(self) -> int | None:
        """A token that is a word; None where there is none that is marked as such."""
        for id_ in range(len(self._tokenizer)):
            piece = self.piece(id_)
            if piece[:1] == _SPACE and piece[1:].isalpha() and self._decode_one(id_) == piece[1:]:
                return id_
        return None

    def _token(self, id_: int, span: Span, text: str) -> Token:
        begin, end = span
        return Token(id_, self.piece(id_), begin, end, self.is_special(id_), text[begin:end])

    def _encode(self, text: str, *, as_target: bool = False, special: bool = True) -> Encoded:
        """Callers hold the lock."""
        options: dict[str, Any] = {"add_special_tokens": special, "truncation": False, "verbose": False}
        if self._tokenizer.is_fast:
            options["return_offsets_mapping"] = True
        encoding = self._tokenizer(text_target=text, **options) if as_target else self._tokenizer(text, **options)
        ids: list[int] = encoding["input_ids"]
        spans = encoding["offset_mapping"] if self._tokenizer.is_fast else self._align(text, ids)
        # Special tokens cover nothing, and stand where their neighbour ends.
        tokens: list[Token] = []
        last = 0
        for id_, (begin, end) in zip(ids, spans, strict=True):
            span = (last, last) if self.is_special(id_) else trim(text, (begin, end))
            last = span[1]
            tokens.append(self._token(id_, span, text))
        return Encoded(text, tuple(tokens))

    def _align(self, text: str, ids: Sequence[int]) -> list[Span]:
        """Offsets for tokenizers that give none."""
        pieces = ["" if self.is_special(i) else None if i == self._unknown else self.piece(i) for i in ids]
        return align(text, pieces)


class Detokenizer:
    """Text that grows token by token.

    A token is decoded beside the few before it, since what it adds depends on them (spaces, bytes of one character).
    Characters come out when they are complete, so `text` never changes behind its end.
    """

    def __init__(self, codec: Codec, context: Sequence[int] = ()) -> None:
        """Starts an empty text; `context` are tokens before it that it continues, such as a prompt's."""
        self._codec = codec
        self._ids = [id_ for id_ in context[-_CONTEXT:] if not codec.is_special(id_)]
        self._window = 0  # decoding starts here,
        self._read = len(self._ids)  # what is before this has come out already,
        # as so many characters of what is decoded. None: not counted yet, at least one.
        self._before: int | None = len(codec.decode(self._ids))
        self.text = ""

    def add(self, id_: int) -> tuple[str, Token]:
        """Adds a token; returns what it adds to the text, and the token with its place in it."""
        if self._codec.is_special(id_):
            here = len(self.text)
            return "", Token(id_, self._codec.piece(id_), here, here, True, "")
        # Behind text, with nothing held back, a token may be one whose text is known.
        delta = self._codec.text_behind_others(id_) if self._read == len(self._ids) and self._before != 0 else None
        self._ids.append(id_)
        if delta is not None:
            self._window, self._read, self._before = self._read, len(self._ids), None
            self.text += delta
        else:
            new = self._pending()
            begin = len(self.text) + len(new) - len(new.lstrip())
            if new.endswith(_INCOMPLETE):
                return "", Token(id_, self._codec.piece(id_), begin, begin + 1, False, "")
            delta = self._take(new)
        span = trim(self.text, (len(self.text) - len(delta), len(self.text)))
        return delta, Token(id_, self._codec.piece(id_), *span, False, self.text[slice(*span)])

    def flush(self) -> str:
        """Ends the text; returns what was held back because it was incomplete."""
        return self._take(self._pending())

    def _pending(self) -> str:
        if self._before is None:
            self._before = len(self._codec.decode(self._ids[self._window : self._read]))
        return self._codec.decode(self._ids[self._window :])[self._before :]

    def _take(self, new: str) -> str:
        # A space alone may be stripped at the end of a text: the window then stays until something follows it.
        if new:
            self._window, self._read = self._read, len(self._ids)
            self._before = len(self._codec.decode(self._ids[self._window :]))
        self.text += new
        return new
