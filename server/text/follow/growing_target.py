"""Tokens of a target that grows piece by piece: tokens that have been given stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

from ..languages import Languages
from ..tokenizer import Tokenizer
from ..tokens import TextOptions, TokenizedText

# Characters after which most tokenizers begin a new token.
_SEAMS = (".", "-", "\n", "(")


def encode_next(
    tokenizer: Tokenizer,
    source: TokenizedText | None,
    before: str | None,
    before_ids: Sequence[int],
    text: str,
    languages: Languages,
    options: TextOptions,
) -> list[int]:
    """Encodes a text that goes on after tokens that stay as they are: without special tokens behind it.

    Both texts are encoded together. Where that changes the tokens before, the text is encoded after a character that
    keeps its own tokens instead.

    Args:
        tokenizer: The tokenizer of the model.
        source: The source of an encoder-decoder; None for a decoder-only model, whose prompt is part of `before`.
        before: The text of the tokens before; None if it is not known.
        before_ids: These tokens.
        text: The text to encode.
        languages: The languages of the request.
        options: How the text before, and so the text too, becomes tokens.
    """

    def encode(joint: str) -> list[int]:
        if source is None:
            tokens = list(tokenizer.encode_source(joint, languages, options).tokens)
            while tokens and tokens[-1].special:
                tokens.pop()
        else:
            tokens = list(tokenizer.encode_prefix(source, joint, languages, options).tokens)
            while not options.adds_special and tokens and tokens[0].special:
                del tokens[0]
        return [token.id for token in tokens]

    for context in (before, *_SEAMS):
        if context is None:
            continue
        known = [*before_ids] if context is before else encode(context)
        joint = encode(context + text)
        if joint[: len(known)] == known and (known or not context):
            return joint[len(known) :]
    return encode(text)
