"""Texts and conversations to token ids with offsets, and token ids to texts.

A `Tokenizer` wraps a tokenizer of transformers. It adds what the model's configuration says of languages and of the
decoder's start token.
"""

from __future__ import annotations

import copyreg
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .chats import MarkedMessages, find_control_tokens
from .detokenizer import Detokenizer
from .encoding import EncodedText, Encoder
from .fast_encoder import FastEncoder
from .incremental_decoders import ByteDecoder, WindowDecoder, select_decoder
from .languages import LanguageCodes, Languages
from .offsets import Role, Span, align_pieces, normalize_spans
from .slow_encoder import SlowEncoder
from .tokens import TextOptions, Token, TokenizedText
from .vocabulary import Vocabulary

_PLAIN = TextOptions()

# The bytes that a token may stand for if no piece of the vocabulary is longer. An unknown token stands for a whole run
# of characters, but a text does not consist of unknown tokens only.
_MIN_TOKEN_BYTES = 64


class Tokenizer:
    """The tokenizer of one model. Every thread may use it.

    The language settings are state of transformers' tokenizer, so texts are encoded one at a time, under a lock.

    Attributes:
        vocabulary: What single tokens stand for.
        decoder_class: The class that decodes this vocabulary token by token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self._tokenizer: Any = tokenizer
        self._origin = tokenizer, model.config, model.generation_config
        self._lock = threading.Lock()
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        config: Any = model.generation_config
        self._codes = LanguageCodes(tokenizer, config)
        self._default_languages = self._codes.resolve("", "")
        self._start_id = _start_id_of(model)
        self.vocabulary = Vocabulary(tokenizer, self._codes.ids.values())
        self._token_bytes = max(_MIN_TOKEN_BYTES, *(len(piece.encode()) for piece in tokenizer.get_vocab()))
        # Control tokens are special tokens, and the tokens that a chat template writes.
        self._controls = find_control_tokens(tokenizer, self.vocabulary.is_special)
        if self._tokenizer.is_fast:
            self._encoder: Encoder = FastEncoder(tokenizer, self.vocabulary, self._controls)
        else:
            self._encoder = SlowEncoder(tokenizer, self.vocabulary)
        self.decoder_class = select_decoder(
            self.vocabulary, lambda text: self._encode(text, TextOptions(adds_special=False)).ids
        )

    # ---- languages --------------------------------------------------------------------------------------------------

    @property
    def languages(self) -> tuple[str, ...]:
        """The language codes that requests may name; empty if the model has none."""
        return tuple(sorted(self._codes.ids))

    def check_languages(self, source: str, target: str) -> tuple[str | None, str | None]:
        """Returns what is wrong with the source language, and with the target language; None if nothing is."""
        return self._codes.check_source(source), self._codes.check_target(target, source)

    def resolve_languages(self, source: str, target: str) -> Languages:
        """Returns the languages of a request, with defaults for empty codes."""
        return self._codes.resolve(source, target)

    @property
    def puts_target_in_source(self) -> bool:
        """Whether the code of the target language is a token of the source."""
        return self._codes.puts_target_in_source

    # ---- single tokens ----------------------------------------------------------------------------------------------

    def start_ids(self, languages: Languages) -> list[int]:
        """Returns the tokens that an encoder-decoder's decoder starts with; none for a decoder-only model."""
        return self._codes.start_ids(languages, self._start_id) if self._is_encoder_decoder else []

    def forced_first_id(self, languages: Languages) -> int | None:
        """Returns the token that must be generated first; None if the model's configuration decides."""
        return self._codes.first_id(languages)

    @property
    def padding_id(self) -> int | None:
        """The token that is only padding; None if there is none, or if it is also the start or the end token."""
        padding: int | None = self._tokenizer.pad_token_id
        return None if padding in (self._tokenizer.eos_token_id, self._tokenizer.bos_token_id) else padding

    # ---- texts to tokens --------------------------------------------------------------------------------------------

    def max_bytes(self, num_tokens: int) -> int:
        """Returns the most bytes of UTF-8 that a text of `num_tokens` tokens can have."""
        return num_tokens * self._token_bytes

    @property
    def is_busy(self) -> bool:
        """Whether another thread encodes a text, so that encoding would wait."""
        return self._lock.locked()

    def encode_source(
        self, text: str, languages: Languages | None = None, options: TextOptions = _PLAIN
    ) -> TokenizedText:
        """Encodes what the model reads, with special tokens."""
        languages = languages or self._default_languages
        with self._lock:
            self._codes.apply(languages)
            encoded = self._encode(text, options, languages)
        code = self._codes.source_id(languages)
        if code is not None:
            encoded = EncodedText([code, *encoded.ids], [(0, 0), *encoded.spans])
        return self._tokenized(text, encoded, options)

    def encode_target(
        self, text: str, languages: Languages | None = None, options: TextOptions = _PLAIN
    ) -> TokenizedText:
        """Encodes a whole target of an encoder-decoder: without the start token, with the end token."""
        languages = languages or self._default_languages
        with self._lock:
            self._codes.apply(languages)
            encoded = self._encode(text, options, languages, as_target=True)
        return self._tokenized(text, encoded, options)

    def encode_continuation(self, prompt: TokenizedText, text: str, options: TextOptions = _PLAIN) -> TokenizedText:
        """Encodes a text that continues a prompt.

        Prompt and text are encoded together, so that the tokenizer decides about the seam. If that changes the tokens
        of the prompt, the text is encoded after a line break instead: many tokenizers put a space before a text that is
        encoded alone.
        """
        with self._lock:
            if prompt.options is not None and prompt.options.parses_special == options.parses_special:
                joint = self._encode(prompt.text + text, prompt.options)
                num_known = len(prompt.tokens)
                if joint.ids[:num_known] == prompt.ids:
                    return self._tokenized(text, joint.after(num_known, len(prompt.text)), None)
            return self._tokenized(text, self._encode_after_break(text, options.parses_special), None)

    def encode_prefix(
        self, source: TokenizedText, text: str, languages: Languages, options: TextOptions = _PLAIN
    ) -> TokenizedText:
        """Encodes a text that a target starts with: without the end token."""
        if not self._is_encoder_decoder:
            return self.encode_continuation(source, text, options)
        with self._lock:
            self._codes.apply(languages)
            encoded = self._encode(text, TextOptions(options.parses_special), languages, as_target=True)
        count = len(encoded.ids) - encoded.num_added[1]
        return self._tokenized(text, EncodedText(encoded.ids[:count], encoded.spans[:count]), None)

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    def render_chat(
        self, messages: Sequence[dict[str, str]], options: TextOptions = _PLAIN, max_bytes: int | None = None
    ) -> TokenizedText:
        """Renders a conversation as a prompt, and encodes the prompt. The template writes the special tokens itself.

        Control tokens that a user typed are text, unless `options` say otherwise. Raises what the template raises, and
        ChatTooLongError for a prompt of more than `max_bytes` bytes.
        """
        marked = MarkedMessages(messages, () if options.parses_special else self._controls.values())
        rendered = self._tokenizer.apply_chat_template(marked.messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = []
        spans: list[Span] = []
        text = ""
        with self._lock:
            for part, is_typed in marked.split(rendered, max_bytes):
                plain = TextOptions(not is_typed, adds_special=False)
                encoded = self._encode_after_break(part, not is_typed) if text else self._encode(part, plain)
                ids += encoded.ids
                spans += [(begin + len(text), end + len(text)) for begin, end in encoded.spans]
                text += part
        return self._tokenized(text, EncodedText(ids, spans), None)

    def _encode(
        self, text: str, options: TextOptions, languages: Languages | None = None, *, as_target: bool = False
    ) -> EncodedText:
        """Encodes one text. The caller holds the lock."""
        encoded = self._encoder.encode(text, options, languages or self._default_languages, as_target=as_target)
        # What Whisper's tokenizer puts before a target is among `start_ids`.
        return encoded.without_beginning() if as_target and self._codes.are_prompts else encoded

    def _encode_after_break(self, text: str, parses_special: bool) -> EncodedText:
        """Encodes a text that follows another, unknown text. The caller holds the lock."""
        options = TextOptions(parses_special, adds_special=False)
        line_break = self._encode("\n", options).ids
        joint = self._encode("\n" + text, options)
        if joint.ids[: len(line_break)] == line_break:
            return joint.after(len(line_break), 1)
        return self._encode(text, options)

    # ---- tokens to texts --------------------------------------------------------------------------------------------

    def detokenize(self, ids: Sequence[int], context_ids: Sequence[int] = ()) -> TokenizedText:
        """Returns the text of given token ids behind a context, with the place of each token."""
        detokenizer = Detokenizer(self, context_ids)
        tokens = [detokenizer.add(id_)[1] for id_ in ids]
        detokenizer.flush()
        text = detokenizer.text
        spans = [(token.begin, token.end) for token in tokens]
        if self.decoder_class not in (ByteDecoder, WindowDecoder):  # these decoders alone know places token by token
            spans = align_pieces(text, [self.vocabulary.surface(id_) for id_ in ids])
        return self._tokenized(text, EncodedText([*ids], spans), None)

    def is_blank(self, text: TokenizedText) -> bool:
        """Whether all tokens of a text stand for white space or for nothing."""
        return all(self.vocabulary.is_blank(token.id) for token in text.tokens)

    def _tokenized(self, text: str, encoded: EncodedText, options: TextOptions | None) -> TokenizedText:
        vocabulary = self.vocabulary
        roles: list[Role] = [vocabulary.role(id_) for id_ in encoded.ids]
        spans = normalize_spans(text, encoded.spans, roles)
        tokens = [
            Token(id_, vocabulary.piece(id_), begin, end, role == "special", text[begin:end])
            for id_, role, (begin, end) in zip(encoded.ids, roles, spans, strict=True)
        ]
        return TokenizedText(text, tuple(tokens), options)


def turn_languages(tokenizer: Tokenizer, languages: Languages) -> Languages:
    """Returns the languages for `encode_source` of a target that the encoder reads as if it were a source.

    Where the target's code is a token of the source, the code stays: the model may not have the other code.
    """
    return languages if tokenizer.puts_target_in_source else Languages(languages.target, languages.source)


def _start_id_of(model: PreTrainedModel) -> int | None:
    """Returns the token that an encoder-decoder's decoder starts with; None if the model's files name none."""
    places = (
        (model.generation_config, "decoder_start_token_id"),
        (model.config, "decoder_start_token_id"),
        (model.config, "bos_token_id"),
    )
    ids = (getattr(config, name, None) for config, name in places)
    return next((id_ for id_ in ids if id_ is not None), None)


def _copy_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Any, generation_config: Any) -> Tokenizer:
    model: Any = SimpleNamespace(config=config, generation_config=generation_config)
    return Tokenizer(tokenizer, model)


# A copy in another process has a lock and caches of its own.
copyreg.pickle(Tokenizer, lambda tokenizer: (_copy_tokenizer, tokenizer._origin))
