"""Words, sentences, and the tokens that belong to them.

words          the words and the sentences of a text, which may grow
token_units    which tokens belong together: the tokens of a word, a sentence or a given span
"""

from .token_units import Grouping, TokenGrouper, cover, group_tokens, shares_character
from .words import WORD_BOUNDARIES, WordFinder, find_sentences, find_words, is_unspaced

__all__ = [
    "WORD_BOUNDARIES",
    "Grouping",
    "TokenGrouper",
    "WordFinder",
    "cover",
    "find_sentences",
    "find_words",
    "group_tokens",
    "is_unspaced",
    "shares_character",
]
