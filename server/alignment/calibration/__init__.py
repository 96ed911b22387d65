"""Calibration: which heads, features and method link the words of a model's texts best.

ibm_model           IBM model 1: translations of words, learnt from pairs of texts
lexicon_learning    learns the lexicon, in both directions
reference           links of a statistical aligner: eflomal, or IBM model 1
measures            error rate, precision and recall of links
cross_validation    whether a choice is better on pairs that had no part in it
selection           chooses the preset that agrees best with reference links
"""

from .lexicon_learning import NUM_STEPS as NUM_LEXICON_STEPS
from .lexicon_learning import learn_lexicon
from .measures import LinkCounts, count_links
from .reference import GOLD, align_statistically
from .selection import NUM_STEPS, STATES_WEIGHTS, WEIGHTS, MeasuredPair, choose_preset

__all__ = [
    "GOLD",
    "NUM_LEXICON_STEPS",
    "NUM_STEPS",
    "STATES_WEIGHTS",
    "WEIGHTS",
    "LinkCounts",
    "MeasuredPair",
    "align_statistically",
    "choose_preset",
    "count_links",
    "learn_lexicon",
]
