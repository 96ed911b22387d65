"""Word links between a source and its target, and what is done with links.

links             Link: a source word, a target word and a score; Alignment: words and their links
pharaoh           links as a text: the Pharaoh format
word_scores       rows over tokens → scores of pairs of words
spelling          how alike two words are written
lexicon           Lexicon: a pruned table of translations of words; its file
encoder_states    how alike the encoder's states of words are
features          attention, lexicon, spelling and states → one score
decisions         scores → links: argmax, threshold, optimal transport, itermax
symmetrization    links of two directions → one
preset            AlignmentPreset: heads, features and method that are best for a model
preset_file       alignment_heads.json
linker            Linker: rows of a pair of texts → links
target_links      TargetLinks: rows of a target that grows → links
signals           Signals: numbers that judge a target as a whole
markup/           markup of the source, carried over to the target by the links
calibration/      finds the best preset of a model
"""

from .decisions import LINK_METHODS, LinkMethod, guess_links
from .encoder_states import compare_states
from .features import LINK_FEATURES, LinkFeature
from .lexicon import Lexicon
from .linker import Linker, WordedText, split_words
from .links import Alignment, Link
from .markup import (
    LinkedSegment,
    MarkedTarget,
    MarkupDocument,
    MarkupFormat,
    MarkupOptions,
    MarkupReport,
    MarkupSpan,
    Placement,
    Segment,
    parse_markup,
)
from .pharaoh import PharaohError, format_pharaoh, parse_gold, parse_pharaoh
from .preset import PRESET_NAME, AlignmentHead, AlignmentPreset, CalibrationFigures, LinkDecision, default_preset
from .preset_file import LEXICON_FILE, PRESET_FILE, PresetError, read_preset, read_whisper_heads, write_preset
from .signals import Signals, compute_signals, mean_signals
from .symmetrization import SYMMETRIZATIONS, Symmetrization, join_links
from .target_links import TargetLinks
from .word_scores import WordScores

__all__ = [
    "LEXICON_FILE",
    "LINK_FEATURES",
    "LINK_METHODS",
    "PRESET_FILE",
    "PRESET_NAME",
    "SYMMETRIZATIONS",
    "Alignment",
    "AlignmentHead",
    "AlignmentPreset",
    "CalibrationFigures",
    "Lexicon",
    "Link",
    "LinkDecision",
    "LinkFeature",
    "LinkMethod",
    "LinkedSegment",
    "Linker",
    "MarkedTarget",
    "MarkupDocument",
    "MarkupFormat",
    "MarkupOptions",
    "MarkupReport",
    "MarkupSpan",
    "PharaohError",
    "Placement",
    "PresetError",
    "Segment",
    "Signals",
    "Symmetrization",
    "TargetLinks",
    "WordScores",
    "WordedText",
    "compare_states",
    "compute_signals",
    "default_preset",
    "format_pharaoh",
    "guess_links",
    "join_links",
    "mean_signals",
    "parse_gold",
    "parse_markup",
    "parse_pharaoh",
    "read_preset",
    "read_whisper_heads",
    "split_words",
    "write_preset",
]
