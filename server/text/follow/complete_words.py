"""Which words of a growing text are complete, and so can become tokens: those before white space.

In scripts that put no spaces between words, each character counts as a word. The words of `segmentation` are smaller:
a tokenizer may put a word and the punctuation mark behind it, or two parts of a word, into one token.
"""

from __future__ import annotations

import re

# Thai, Lao, Myanmar, Khmer; kana, ideographs and full-width forms.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
)

_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def count_complete(text: str) -> int:
    """Returns how many characters of a text that grows belong to complete words: those up to its last word boundary.

    White space after the boundary belongs to the next word.
    """
    words = [match.span() for match in _WORD.finditer(text)]
    if not words:
        return 0
    begin, end = words[-1]
    if end < len(text) or re.match(f"[{_UNSPACED}]", text[begin]):
        return end
    return words[-2][1] if len(words) > 1 else 0
