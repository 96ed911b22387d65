"""The language codes of multilingual models, and the places where model families take them.

No other module changes the tokenizer's language settings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import quote

_NLLB_CODE = re.compile(r"^[a-z]{3}_[A-Z][a-z]{3}$")
# The language that Whisper's task "translate" writes.
_TRANSLATED_INTO = "en"
_MADLAD_CODE = re.compile(r"^<2([a-z]{2,3}(?:_[A-Za-z]+)*)>$")


@dataclass(frozen=True)
class Languages:
    """The language codes of source and target, with defaults filled in; empty for models without languages."""

    source: str = ""
    target: str = ""


class LanguageCodes:
    """The language codes of one model. The tokenizer's lock protects `apply`.

    A family takes the target's code as one of these: "in_source", a token at the begin of the source (multilingual
    Marian, MADLAD); "first", the first token that is generated (NLLB, M2M100, mBART-50); "start", the token that the
    decoder starts with (mBART-25); "prompt", tokens that the decoder starts with (Whisper): start, spoken language,
    task and "no timestamps".

    Attributes:
        ids: The token id of each code.
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens = _find_tokens(tokenizer, config)
        self._tasks: dict[str, int] = getattr(config, "task_to_id", None) or {}
        self._is_multilingual = bool(self._tasks) or bool(getattr(config, "is_multilingual", False))
        self._no_timestamps: int | None = getattr(config, "no_timestamps_token_id", None)
        self.ids: dict[str, int] = {
            code: tokenizer.convert_tokens_to_ids(token) for code, token in self._tokens.items()
        }
        self._position = self._find_position()
        by_id = {id_: code for code, id_ in self.ids.items()}
        configured = config.decoder_start_token_id if self._position == "start" else config.forced_bos_token_id
        self._default_source: str = getattr(tokenizer, "src_lang", None) or ""
        self._default_target: str = by_id.get(configured, "") or getattr(tokenizer, "tgt_lang", None) or ""

    def _find_position(self) -> Literal["none", "in_source", "first", "start", "prompt"]:
        if self._no_timestamps is not None:
            return "prompt"
        if not self._tokens:
            return "none"
        if any(token.startswith((">>", "<2")) for token in self._tokens.values()):
            return "in_source"
        # mBART-25's tokenizer puts the code after a text, and its decoder starts with the code. NLLB's old tokenizer
        # puts the code after a text too, but the model generates the code first.
        setting = self._tokenizer.tgt_lang
        code = next(iter(self._tokens))
        self._tokenizer.tgt_lang = code
        ids = self._tokenizer(text_target="a").input_ids
        self._tokenizer.tgt_lang = setting
        is_last = ids[0] != self.ids[code] and hasattr(self._tokenizer, "lang_code_to_id")
        return "start" if is_last else "first"

    @property
    def puts_target_in_source(self) -> bool:
        """Whether the code of the target language is a token of the source."""
        return self._position == "in_source"

    def check_source(self, language: str) -> str | None:
        """Returns what is wrong with a source language; None if nothing is."""
        return self._check(language, self._position in ("first", "start") or bool(self._tasks))

    def check_target(self, language: str, source: str) -> str | None:
        """Returns what is wrong with a target language; None if nothing is. `source` is the source language."""
        if self._position == "prompt" and language in self._tokens:
            if not source:
                return "needs source_language, the language that is spoken"
            if language not in (source, _TRANSLATED_INTO):
                return f"must be the language that is spoken, or {_TRANSLATED_INTO}: the model translates into no other"
        if not language and self._position in ("first", "start") and not self._default_target:
            return "is required: neither the model's configuration nor its tokenizer names one"
        return self._check(language, self._position in ("in_source", "first", "start") or bool(self._tasks))

    def _check(self, language: str, takes_any: bool) -> str | None:
        if not language:
            return None
        if not takes_any:
            return "this model takes no such language code"
        if language not in self._tokens:
            examples = ", ".join(sorted(self._tokens)[:8])
            return f"unknown language {quote(language)!r}; the model has {len(self._tokens)}, such as {examples}"
        return None

    def resolve(self, source: str, target: str) -> Languages:
        """Returns the languages of a request, with defaults for empty codes."""
        if self._position == "in_source":
            return Languages("", target)
        if self._position == "prompt":
            return Languages(source, target)
        return Languages(source or self._default_source, target or self._default_target)

    def source_id(self, languages: Languages) -> int | None:
        """Returns the token that must stand before a source; None if there is none."""
        return self.ids[languages.target] if self._position == "in_source" and languages.target else None

    def first_id(self, languages: Languages) -> int | None:
        """Returns the token that must be generated first; None if there is none."""
        return self.ids[languages.target] if self._position == "first" else None

    def start_ids(self, languages: Languages, start_id: int | None) -> list[int]:
        """Returns the tokens that the decoder must start with. `start_id` is the one of the model's configuration.

        Without a spoken language, a multilingual Whisper writes the other tokens of its prompt itself.
        """
        start = self.ids[languages.target] if self._position == "start" else start_id
        ids = [] if start is None else [start]
        if self._no_timestamps is None or (self._is_multilingual and not languages.source):
            return ids
        if self._tasks:
            is_translated = languages.target not in ("", languages.source)
            ids += [self.ids[languages.source], self._tasks["translate" if is_translated else "transcribe"]]
        return [*ids, self._no_timestamps]

    @property
    def are_prompts(self) -> bool:
        """Whether the decoder starts with more than one token, which the tokenizer puts before each text."""
        return self._position == "prompt"

    def apply(self, languages: Languages) -> None:
        """Sets the tokenizer's languages for the texts that are encoded next."""
        if self._position in ("first", "start"):
            self._tokenizer.src_lang = languages.source or None
            self._tokenizer.tgt_lang = languages.target or None


def _find_tokens(tokenizer: Any, config: Any) -> dict[str, str]:
    """Returns the vocabulary's token for each language code."""
    if codes := getattr(config, "lang_to_id", None):  # Whisper
        return {token.strip("<|>"): token for token in codes}
    if codes := getattr(tokenizer, "lang_code_to_token", None):  # M2M100
        return dict(codes)
    if codes := getattr(tokenizer, "lang_code_to_id", None):  # mBART
        return {code: code for code in codes}
    if codes := getattr(tokenizer, "supported_language_codes", None):  # multilingual Marian
        return {code.strip("<>"): code for code in codes}
    if getattr(tokenizer, "src_lang", None) is not None:  # NLLB
        return {token: token for token in tokenizer.all_special_tokens if _NLLB_CODE.match(token)}
    if tokenizer.convert_tokens_to_ids("<2en>") not in (None, tokenizer.unk_token_id):  # MADLAD
        return {match[1]: match[0] for token in tokenizer.get_vocab() if (match := _MADLAD_CODE.match(token))}
    return {}
