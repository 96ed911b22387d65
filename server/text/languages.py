"""The language codes of multilingual models, and the four ways in which families want them.

Knows tokenizers and generation configs; the tokenizer's language settings are changed nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import quote

_NLLB_CODE = re.compile(r"^[a-z]{3}_[A-Z][a-z]{3}$")


@dataclass(frozen=True)
class Languages:
    """The source's and the target's code, defaults filled in; empty for models that have none."""

    source: str = ""
    target: str = ""


class LanguageCodes:
    """The codes that a model knows.

    How a family takes the target's: "in_source", a token at the head of the source (multilingual Marian); "first", the
    first token that is written (NLLB, M2M100, mBART-50); "start", what the decoder starts with (mBART-25).
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens = _tokens(tokenizer)
        self.ids: dict[str, int] = {code: tokenizer.convert_tokens_to_ids(t) for code, t in self._tokens.items()}
        self._way = self._find_way()
        by_id = {id_: code for code, id_ in self.ids.items()}
        configured = config.decoder_start_token_id if self._way == "start" else config.forced_bos_token_id
        self._default_source: str = getattr(tokenizer, "src_lang", None) or ""
        self._default_target: str = by_id.get(configured, "") or getattr(tokenizer, "tgt_lang", None) or ""

    def _find_way(self) -> Literal["none", "in_source", "first", "start"]:
        if not self._tokens:
            return "none"
        if any(token.startswith(">>") for token in self._tokens.values()):
            return "in_source"
        # mBART-25's tokenizer puts the code behind a text, and its decoder starts with it. NLLB's old one puts it there
        # too, but has it written first all the same.
        before = self._tokenizer.tgt_lang
        some = next(iter(self._tokens))
        self._tokenizer.tgt_lang = some
        ids = self._tokenizer(text_target="a").input_ids
        self._tokenizer.tgt_lang = before
        behind = ids[0] != self.ids[some] and hasattr(self._tokenizer, "lang_code_to_id")
        return "start" if behind else "first"

    @property
    def puts_target_in_source(self) -> bool:
        """Whether the target's code is a token of the source."""
        return self._way == "in_source"

    def problem_with_source(self, language: str) -> str | None:
        """What is wrong with a source language; None if nothing is."""
        return self._problem(language, self._way in ("first", "start"))

    def problem_with_target(self, language: str) -> str | None:
        """What is wrong with a target language; None if nothing is."""
        if not language and self._way in ("first", "start") and not self._default_target:
            return "is required: neither the model's configuration nor its tokenizer names one"
        return self._problem(language, self._way != "none")

    def _problem(self, language: str, takes_any: bool) -> str | None:
        if not language:
            return None
        if not takes_any:
            return "this model takes no such language code"
        if language not in self._tokens:
            some = ", ".join(sorted(self._tokens)[:8])
            return f"unknown language {quote(language)!r}; the model has {len(self._tokens)}, such as {some}"
        return None

    def resolve(self, source: str, target: str) -> Languages:
        """The languages of a request, with defaults where it names none."""
        if self._way == "in_source":
            return Languages("", target)
        return Languages(source or self._default_source, target or self._default_target)

    def source_id(self, languages: Languages) -> int | None:
        """The token that must stand before a source."""
        return self.ids[languages.target] if self._way == "in_source" and languages.target else None

    def first_id(self, languages: Languages) -> int | None:
        """The token that must be written first."""
        return self.ids[languages.target] if self._way == "first" else None

    def start_id(self, languages: Languages) -> int | None:
        """The token that the decoder must start with."""
        return self.ids[languages.target] if self._way == "start" else None

    def apply(self, languages: Languages) -> None:
        """Sets the tokenizer's languages, for the texts that are tokenized next."""
        if self._way in ("first", "start"):
            self._tokenizer.src_lang = languages.source or None
            self._tokenizer.tgt_lang = languages.target or None


def _tokens(tokenizer: Any) -> dict[str, str]:
    """The vocabulary's token for each language code."""
    if codes := getattr(tokenizer, "lang_code_to_token", None):  # M2M100
        return dict(codes)
    if codes := getattr(tokenizer, "lang_code_to_id", None):  # mBART
        return {code: code for code in codes}
    if codes := getattr(tokenizer, "supported_language_codes", None):  # multilingual Marian
        return {code.strip("<>"): code for code in codes}
    if getattr(tokenizer, "src_lang", None) is not None:  # NLLB
        return {token: token for token in tokenizer.all_special_tokens if _NLLB_CODE.match(token)}
    return {}
