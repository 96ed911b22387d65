"""Between texts and token ids: encoding with offsets, languages, chats, and the text of given ids.

Knows tokenizers and the token ids of a model's configuration; knows nothing of attention or of messages.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import sentencepieces
from .chats import Marks, control_tokens
from .detokenizer import Detokenizer, TextOfBytes, TextOfWindows, find_growing_text
from .languages import LanguageCodes, Languages
from .offsets import Span, align, settle
from .pieces import Pieces
from .tokens import TextOptions, Token, TokenizedText

__all__ = ["Detokenizer", "TextOptions", "Token", "TokenizedText", "Tokenizer"]

_PLAIN = TextOptions()

# Bytes for which a token may stand where no piece of the vocabulary is longer: an unknown one stands for a whole run of
# characters, but not all of a text is such.
_TOKEN_BYTES = 64

# Words of which the pieces are remembered, for tokenizers that give no offsets.
_WORDS = 4096

# A text whose tokens show what a tokenizer puts around texts.
_PROBE = "a"

# Texts whose pieces show whether a tokenizer leaves all to SentencePiece.
_SAMPLES = ("The dog, the cat.", " it's  Łódź\n漢字 x", "e\u0301 １２ …")


class _Part(NamedTuple):
    """Tokens of a text, and the spans that the tokenizer gives them. `added` counts those put before and behind."""

    ids: list[int]
    spans: list[Span]
    added: tuple[int, int] = (0, 0)


class Tokenizer:
    """A model's tokenizer, with the parts of its configuration that say how texts begin and end.

    Safe to use from several threads: language settings are state of the tokenizer, so encoding takes turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self._tokenizer: Any = tokenizer
        self._lock = threading.Lock()
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        config: Any = model.generation_config
        self._codes = LanguageCodes(tokenizer, config)
        start = getattr(config, "decoder_start_token_id", None)
        if start is None:
            start = getattr(model.config, "decoder_start_token_id", None)
        self._start: int | None = start if start is not None else getattr(model.config, "bos_token_id", None)
        self._pieces = Pieces(tokenizer, self._codes.ids.values())
        self._token_bytes = max(_TOKEN_BYTES, *(len(piece.encode()) for piece in tokenizer.get_vocab()))
        self.piece, self.is_special = self._pieces.piece, self._pieces.is_special
        self.unknown = self._pieces.unknown
        self.is_silent, self.role = self._pieces.is_silent, self._pieces.role
        self.bytes_of, self.byte_vocabulary = self._pieces.bytes_of, self._pieces.byte_vocabulary
        self.decode, self.text_behind_others = self._pieces.decode, self._pieces.text_behind_others
        self.decode_before_letters, self.stand_in = self._pieces.decode_before_letters, self._pieces.stand_in
        if self.unknown is not None:  # looks at the whole vocabulary, the first time
            self.stand_in(self.unknown)
        # Tokens that are control tokens wherever they come from: special ones, and what a chat template writes.
        self._controls = control_tokens(tokenizer, self._pieces.is_special)
        self._frames: dict[tuple[Languages, bool], tuple[list[int], list[int]]] = {}
        self._as_text = functools.cache(self._text_of_control)
        self._pieces_of_word = functools.lru_cache(_WORDS)(self._tokenized)
        self._processors = self._find_processors()
        self.growing_text = find_growing_text(
            self._pieces,
            lambda text: self._encode(text, _Way(options=TextOptions(adds_special=False))).ids,
            len(tokenizer),
        )

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes that requests may name; empty where the model needs none."""
        return tuple(sorted(self._codes.ids))

    def max_bytes(self, num_tokens: int) -> int:
        """Returns the most bytes of UTF-8 that a text of `num_tokens` tokens can have."""
        return num_tokens * self._token_bytes

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

    def resolve_languages(self, source: str, target: str) -> Languages:
        """The languages of a request, with the model's defaults where it names none."""
        return self._codes.resolve(source, target)

    @property
    def puts_target_in_source(self) -> bool:
        """Whether the code of the target's language is a token of the source."""
        return self._codes.puts_target_in_source

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

    @property
    def padding_id(self) -> int | None:
        """The token that is nothing but padding; None where there is none, or where it is the end token too."""
        padding: int | None = self._tokenizer.pad_token_id
        return None if padding in (self._tokenizer.eos_token_id, self._tokenizer.bos_token_id) else padding

    # ---- texts to tokens --------------------------------------------------------------------------------------------

    def encode_source(
        self, text: str, languages: Languages | None = None, options: TextOptions = _PLAIN
    ) -> TokenizedText:
        """Tokens of what the model reads, special tokens included."""
        languages = languages or self.resolve_languages("", "")
        with self._lock:
            self._codes.apply(languages)
            part = self._encode(text, _Way(languages, options))
        code = self._codes.source_id(languages)
        if code is not None:
            part = _Part([code, *part.ids], [(0, 0), *part.spans])
        return self._settled(text, part, options)

    def encode_target(
        self, text: str, languages: Languages | None = None, options: TextOptions = _PLAIN
    ) -> TokenizedText:
        """Tokens of a whole target as an encoder-decoder writes it: without the start token, with the end token."""
        languages = languages or self.resolve_languages("", "")
        with self._lock:
            self._codes.apply(languages)
            part = self._encode(text, _Way(languages, options, as_target=True))
        return self._settled(text, part, options)

    def encode_continuation(self, prompt: TokenizedText, text: str, options: TextOptions = _PLAIN) -> TokenizedText:
        """Tokens of a text that continues a prompt.

        Both are tokenized together, so that the seam is as the tokenizer would have it. Where that would change the
        prompt's own tokens, the text is tokenized behind a line break instead: alone, many tokenizers would put a space
        before it.
        """
        with self._lock:
            if prompt.options is not None:
                joint = self._encode(prompt.text + text, _Way(options=prompt.options))
                known = len(prompt.tokens)
                if joint.ids[:known] == prompt.ids and prompt.options.parses_special == options.parses_special:
                    return self._settled(text, _behind(joint, known, len(prompt.text)), None)
            return self._settled(text, self._encode_behind(text, options.parses_special), None)

    def encode_prefix(
        self, source: TokenizedText, text: str, languages: Languages, options: TextOptions = _PLAIN
    ) -> TokenizedText:
        """Tokens of a text that a target starts with: no end token behind them."""
        if not self._is_encoder_decoder:
            return self.encode_continuation(source, text, options)
        with self._lock:
            self._codes.apply(languages)
            part = self._encode(text, _Way(languages, TextOptions(options.parses_special), as_target=True))
        count = len(part.ids) - part.added[1]
        return self._settled(text, _Part(part.ids[:count], part.spans[:count]), None)

    def render_chat(self, messages: Sequence[dict[str, str]], options: TextOptions = _PLAIN) -> TokenizedText:
        """The prompt that a conversation becomes. The template writes the special tokens itself.

        Control tokens that a user typed are text, unless `options` say otherwise. Raises what the template raises.
        """
        marks = Marks(messages, () if options.parses_special else self._controls.values())
        rendered = self._tokenizer.apply_chat_template(marks.messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = []
        spans: list[Span] = []
        text = ""
        with self._lock:
            for stretch, is_typed in marks.split(rendered):
                if text:
                    part = self._encode_behind(stretch, not is_typed)
                else:
                    part = self._encode(stretch, _Way(options=TextOptions(not is_typed, adds_special=False)))
                ids += part.ids
                spans += [(begin + len(text), end + len(text)) for begin, end in part.spans]
                text += stretch
        return self._settled(text, _Part(ids, spans), None)

    def detokenize(self, ids: Sequence[int], context: Sequence[int] = ()) -> TokenizedText:
        """Given ids, the text that they stand for behind a context, and where each stands in it."""
        detokenizer = Detokenizer(self, context)
        tokens = [detokenizer.add(id_)[1] for id_ in ids]
        detokenizer.flush()
        text = detokenizer.text
        spans = [(token.begin, token.end) for token in tokens]
        if self.growing_text not in (TextOfBytes, TextOfWindows):  # where tokens stand is known when all are there
            spans = align(text, [self._surface(id_) for id_ in ids])
        return self._settled(text, _Part([*ids], spans), None)

    def is_blank(self, encoded: TokenizedText) -> bool:
        """Whether a text's tokens stand for nothing but white space, or for nothing at all."""
        return all(self._pieces.is_blank(token.id) for token in encoded.tokens)

    # ---- one text; callers hold the lock ----------------------------------------------------------------------------

    def _encode(self, text: str, way: _Way) -> _Part:
        if self._tokenizer.is_fast:
            return self._encode_fast(text, way)
        ids, spans = self._encode_slow(text, way.options.parses_special, way.as_target)
        if not way.options.adds_special:
            return _Part(ids, spans)
        before, behind = self._frame(way)
        nowhere = (len(text), len(text))
        spans = [(0, 0)] * len(before) + spans + [nowhere] * len(behind)
        return _Part([*before, *ids, *behind], spans, (len(before), len(behind)))

    def _encode_behind(self, text: str, parses_special: bool) -> _Part:
        """Tokens of a text that stands behind another, whatever it is."""
        way = _Way(options=TextOptions(parses_special, adds_special=False))
        known = self._encode("\n", way).ids
        joint = self._encode("\n" + text, way)
        if joint.ids[: len(known)] == known:
            return _behind(joint, len(known), 1)
        return self._encode(text, way)

    def _settled(self, text: str, part: _Part, options: TextOptions | None) -> TokenizedText:
        spans = settle(text, part.spans, [self._pieces.role(id_) for id_ in part.ids])
        tokens = [
            Token(id_, self.piece(id_), begin, end, self.is_special(id_), text[begin:end])
            for id_, (begin, end) in zip(part.ids, spans, strict=True)
        ]
        return TokenizedText(text, tuple(tokens), options)

    # ---- tokenizers of the tokenizers library -----------------------------------------------------------------------

    def _encode_fast(self, text: str, way: _Way) -> _Part:
        options: dict[str, Any] = {
            "add_special_tokens": way.options.adds_special,
            "split_special_tokens": not way.options.parses_special,
            "return_offsets_mapping": True,
            "return_special_tokens_mask": True,
            "truncation": False,
            "verbose": False,
        }
        encoding = self._tokenizer(**{"text_target" if way.as_target else "text": text}, **options)
        ids, spans, mask = (encoding[key] for key in ("input_ids", "offset_mapping", "special_tokens_mask"))
        own = [place for place, is_added in enumerate(mask) if not is_added]
        added = (own[0], len(ids) - 1 - own[-1]) if own else (0, len(ids))
        if not way.options.parses_special and any(ids[place] in self._controls for place in own):
            ids, spans = self._without_controls(text, ids, spans, mask)
        return _Part(ids, spans, added)

    def _without_controls(
        self, text: str, ids: Sequence[int], spans: Sequence[Span], mask: Sequence[int]
    ) -> tuple[list[int], list[Span]]:
        """The tokens, with text tokens in place of control tokens that a user typed.

        The library leaves special tokens in texts alone if asked, but no others that a chat template may write, and
        not those that are in the vocabulary, such as in unigram models.
        """
        new_ids: list[int] = []
        new_spans: list[Span] = []
        for id_, (begin, end), is_added in zip(ids, spans, mask, strict=True):
            if is_added or id_ not in self._controls:
                new_ids.append(id_)
                new_spans.append((begin, end))
                continue
            fits = text[begin:end] == self._controls[id_]
            for other, first, last in self._as_text(id_):
                new_ids.append(other)
                new_spans.append((begin + first, begin + last) if fits else (begin, end))
        return new_ids, new_spans

    def _text_of_control(self, id_: int) -> list[tuple[int, int, int]]:
        """Tokens for the characters of a control token, none of them control tokens, and where each stands in it."""
        content = self._controls[id_]
        model = self._tokenizer.backend_tokenizer.model
        best: list[tuple[int, int, int]] = []
        for cut in range(1, len(content)):
            tokens: list[tuple[int, int, int]] = []
            for begin, end in ((0, cut), (cut, len(content))):
                for token in model.tokenize(self._pieces.model_text(content[begin:end])):
                    first, last = token.offsets if content.isascii() else (0, end - begin)
                    tokens.append((token.id, begin + first, begin + last))
            if not any(other in self._controls for other, _, _ in tokens) and (not best or len(tokens) < len(best)):
                best = tokens
        if not best and self._pieces.unknown is not None:
            best = [(self._pieces.unknown, 0, len(content))]
        return best

    # ---- tokenizers in Python ---------------------------------------------------------------------------------------

    def _find_processors(self) -> tuple[Any, Any] | None:
        """SentencePiece's processors for sources and targets, where tokenizing a text is theirs alone."""
        if self._tokenizer.is_fast:
            return None
        source, target = (sentencepieces.processor_of(self._tokenizer, as_target=side) for side in (False, True))
        if source is None or target is None:
            return None
        leaves_all = all(self._tokenized(text) == source.encode(text, out_type=str) for text in _SAMPLES)
        return (source, target) if leaves_all else None

    def _tokenized(self, text: str) -> list[str]:
        """A text's pieces, unknown ones as they stand in the text; control tokens in it are text."""
        return self._tokenizer.tokenize(text, split_special_tokens=True)

    def _encode_slow(self, text: str, parses_special: bool, as_target: bool) -> tuple[list[int], list[Span]]:
        pieces: list[str] = []
        spans: list[Span] = []
        at = 0
        for stretch, is_control in self._stretches(text, parses_special):
            own, places = [stretch], [(0, len(stretch))]
            if not is_control:
                own, places = self._plain_pieces(stretch, as_target)
            pieces += own
            spans += [(at + begin, at + end) for begin, end in places]
            at += len(stretch)
        ids: list[int] = self._tokenizer.convert_tokens_to_ids(pieces)
        if not parses_special and self._pieces.unknown is not None:  # a piece that looks like a control token is none
            ids = [self._pieces.unknown if self.is_special(id_) else id_ for id_ in ids]
        return ids, spans

    def _stretches(self, text: str, parses_special: bool) -> list[tuple[str, bool]]:
        """The text cut at control tokens, and whether each stretch is one."""
        if not parses_special:
            return [(text, False)]
        added = {*self._tokenizer.added_tokens_encoder, *self._tokenizer.all_special_tokens}
        stretches: list[tuple[str, bool]] = []
        for stretch in self._tokenizer.tokens_trie.split(text):
            if stretch not in added and hasattr(self._tokenizer, "remove_language_code"):  # Marian's, such as ">>fra<<"
                codes, stretch = self._tokenizer.remove_language_code(stretch)
                stretches += [(code, True) for code in codes]
            if stretch:
                stretches.append((stretch, stretch in added))
        return stretches

    def _plain_pieces(self, text: str, as_target: bool) -> tuple[list[str], list[Span]]:
        """A text's pieces and where they come from: as the tokenizer's own library says, where it does."""
        if self._processors is not None:
            pieces, spans = sentencepieces.encode(self._processors[as_target], text)
            return pieces, spans if spans is not None else align(text, pieces)
        pieces = self._tokenized(text)
        if self.byte_vocabulary == "bytes":
            places = [place for place, character in enumerate(text) for _ in character.encode()]
            return pieces, [(place, place + 1) for place in places]
        # Word by word, where words become the same pieces alone: what is wrong in one is wrong there only.
        words = [(match.start(), match.group()) for match in re.finditer(r"\S+", text)]
        by_word = [self._pieces_of_word(word) for _, word in words]
        if [piece for own in by_word for piece in own] != pieces:
            return pieces, align(text, self._known(pieces))
        spans = []
        for (at, word), own in zip(words, by_word, strict=True):
            spans += [(at + begin, at + end) for begin, end in align(word, self._known(own))]
        return pieces, spans

    def _known(self, pieces: Sequence[str]) -> list[str]:
        """The pieces, with nothing for those that a tokenizer puts for characters it does not know."""
        return ["" if piece == self._tokenizer.unk_token else piece for piece in pieces]

    def _surface(self, id_: int) -> str:
        return "" if self.is_special(id_) or id_ == self._pieces.unknown else self.piece(id_)

    def _frame(self, way: _Way) -> tuple[list[int], list[int]]:
        """What a tokenizer in Python puts before and behind a text."""
        key = (way.languages or self.resolve_languages("", ""), way.as_target)
        if key not in self._frames:
            text = {"text_target" if way.as_target else "text": _PROBE}
            whole: list[int] = self._tokenizer(**text).input_ids
            bare: list[int] = self._tokenizer(**text, add_special_tokens=False).input_ids
            count = len(whole) - len(bare)
            begin = next((place for place in range(count + 1) if whole[place : place + len(bare)] == bare), 0)
            self._frames[key] = whole[:begin], whole[begin + len(bare) :]
        return self._frames[key]


class _Way(NamedTuple):
    """How a text is tokenized."""

    languages: Languages | None = None
    options: TextOptions = _PLAIN
    as_target: bool = False


def _behind(joint: _Part, known: int, length: int) -> _Part:
    """The tokens of a text and another behind it that are the other's; the first has `known` tokens."""
    spans = [(max(0, begin - length), max(0, end - length)) for begin, end in joint.spans[known:]]
    return _Part(joint.ids[known:], spans)
