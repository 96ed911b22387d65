"""Texts to tokens, and tokens to texts.

tokenizer               Tokenizer: texts, chats and languages to token ids with offsets; ids to texts
encoding                EncodedText, and the protocol of the two encoders
fast_encoder            encodes with a tokenizer of the tokenizers library
slow_encoder            encodes with a tokenizer in Python
sentencepieces          pieces with the offsets that SentencePiece gives
offsets                 where tokens stand in a text: one rule for every tokenizer
offset_units            offsets in code points, in code units of UTF-16, or in bytes of UTF-8
chats                   control tokens that a user typed into a chat
languages               language codes, and the places where model families take them
detokenizer             Detokenizer: a text that grows token by token; StopTexts: what ends such a text
incremental_decoders    which text is certain after each token, by kind of vocabulary
vocabulary              what single tokens stand for
follow/                 texts of follow streams, which grow piece by piece
tokens                  Token, TokenizedText, TextOptions: plain data
tokenizer_pool          threads that tokenize long texts, short texts first
segmentation/           words, sentences, and the tokens that belong to them
"""

from .chats import ChatTooLongError
from .detokenizer import Detokenizer, StopTexts
from .follow import count_complete, encode_next
from .languages import Languages
from .offset_units import OffsetMap, OffsetUnit
from .offsets import Span
from .segmentation import (
    WORD_BOUNDARIES,
    Grouping,
    TokenGrouper,
    WordFinder,
    cover,
    find_sentences,
    find_words,
    group_tokens,
    is_unspaced,
    shares_character,
)
from .tokenizer import Tokenizer, turn_languages
from .tokenizer_pool import TokenizerPool
from .tokens import TextOptions, Token, TokenizedText

__all__ = [
    "WORD_BOUNDARIES",
    "ChatTooLongError",
    "Detokenizer",
    "Grouping",
    "Languages",
    "OffsetMap",
    "OffsetUnit",
    "Span",
    "StopTexts",
    "TextOptions",
    "Token",
    "TokenGrouper",
    "TokenizedText",
    "Tokenizer",
    "TokenizerPool",
    "WordFinder",
    "count_complete",
    "cover",
    "encode_next",
    "find_sentences",
    "find_words",
    "group_tokens",
    "is_unspaced",
    "shares_character",
    "turn_languages",
]
