"""Separates control tokens that a user typed into a chat from those that the chat's template writes.

Messages are marked before they are rendered: what stands between the marks was typed. Knows strings and templates.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

# Characters for private use, of which two that no message has are the marks.
_PRIVATE = range(0xF0000, 0xFFFFE)


def control_tokens(tokenizer: Any, is_special: Callable[[int], bool]) -> dict[int, str]:
    """The tokens that steer a model, by id: special ones, and added ones that its chat template writes.

    White space is none, though some templates write tokens that are nothing else.
    """
    template: Any = getattr(tokenizer, "chat_template", None) or ""
    written = template if isinstance(template, str) else "\0".join(map(str, template.values()))
    controls: dict[int, str] = {}
    for id_, token in tokenizer.added_tokens_decoder.items():
        if is_special(id_) or (token.content in written and not token.content.isspace()):
            controls[id_] = token.content
    for token, id_ in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
        if is_special(id_):
            controls[id_] = str(token)
    return controls


class Marks:
    """Messages whose control tokens are marked, and what a template has made of them."""

    def __init__(self, messages: Sequence[dict[str, str]], controls: Collection[str]) -> None:
        typed = "".join(text for message in messages for text in message.values())
        free = (chr(code) for code in _PRIVATE if chr(code) not in typed)
        self._begin, self._end = itertools.islice(free, 2)
        longest_first = sorted(filter(None, controls), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.messages = [{key: self._mark(text) for key, text in message.items()} for message in messages]

    def _mark(self, text: str) -> str:
        return self._control.sub(lambda match: f"{self._begin}{match.group()}{self._end}", text)

    def split(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """The rendered text without marks, in stretches: each with whether it is a control token that was typed.

        A template may cut texts, and leave a mark alone: it is dropped, but what is beside it stays apart.
        """
        begin, end = self._begin, self._end
        # Typed tokens at odd places; None there for a mark alone.
        parts = re.split(f"{begin}({self._control.pattern}){end}|[{begin}{end}]", rendered)
        for place, part in enumerate(parts):
            if part:
                yield part, place % 2 == 1
