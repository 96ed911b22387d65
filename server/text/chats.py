"""Tells control tokens that a user typed into a chat from the control tokens that the chat's template writes.

Control tokens in messages are put between marks before the template renders the messages. Text between two marks was
typed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

# Characters for private use. Two that no message contains are the marks.
_PRIVATE = range(0xF0000, 0xFFFFE)


def find_control_tokens(tokenizer: Any, is_special: Callable[[int], bool]) -> dict[int, str]:
    """Returns the control tokens, by id: special tokens, and added tokens that the chat template writes.

    A token that is only white space is no control token, although some templates write such tokens.
    """
    template: Any = getattr(tokenizer, "chat_template", None) or ""
    templates = template if isinstance(template, str) else "\0".join(map(str, template.values()))
    controls: dict[int, str] = {}
    for id_, token in tokenizer.added_tokens_decoder.items():
        if is_special(id_) or (token.content in templates and not token.content.isspace()):
            controls[id_] = token.content
    for token, id_ in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
        if is_special(id_):
            controls[id_] = str(token)
    return controls


class ChatTooLongError(Exception):
    """A chat template has written more than any prompt may have. The message says how much, for people."""


class MarkedMessages:
    """The messages of one conversation, with marks around each control token.

    Attributes:
        messages: The messages with marks, for the template.
    """

    def __init__(self, messages: Sequence[dict[str, str]], controls: Collection[str]) -> None:
        typed = "".join(text for message in messages for text in message.values())
        unused = (chr(code) for code in _PRIVATE if chr(code) not in typed)
        self._begin, self._end = itertools.islice(unused, 2)
        longest_first = sorted(filter(None, controls), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.messages = [{key: self._mark(text) for key, text in message.items()} for message in messages]

    def _mark(self, text: str) -> str:
        return self._control.sub(lambda match: f"{self._begin}{match.group()}{self._end}", text)

    def split(self, rendered: str, max_bytes: int | None = None) -> Iterator[tuple[str, bool]]:
        """Splits what the template has rendered. Yields each part without marks, and whether it is a typed control.

        A template may cut a message and leave a single mark: the mark is dropped, and the text before and after the
        mark stays in two parts. Raises ChatTooLongError, before the first part, for more than `max_bytes` bytes without
        marks.
        """
        begin, end = self._begin, self._end
        # `re.split` puts typed control tokens at odd places, and None there for a single mark.
        parts = re.split(f"{begin}({self._control.pattern}){end}|[{begin}{end}]", rendered)
        num_bytes = sum(len(part.encode("utf-8", "replace")) for part in parts if part)
        if max_bytes is not None and num_bytes > max_bytes:
            raise ChatTooLongError(f"becomes {num_bytes:,} bytes by the chat template; at most {max_bytes:,} are read")
        for place, part in enumerate(parts):
            if part:
                yield part, place % 2 == 1
