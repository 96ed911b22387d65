"""The next tokens of all slots, greedy, drawn or by beam search, and the scores of each step.

sampler              Sampler: the next tokens of all slots at once; SamplerState: a request between two slots
sampling_plan        SamplingPlan: what is done to a batch's logits while the batch stays the same; SamplerOutput
params               SamplingParams: what one request's logits processors do, as plain numbers
logits_processors    transformers' processors of a request, read as SamplingParams
logits_ops           penalties, bans, temperature, top-k and top-p over many rows
token_history        TokenHistory: the tokens and the length of each slot
beam_search          BeamSearch: which hypotheses of one request go on, and which have ended
step_scores          step_scores(): probability, entropy and others of each step
contrast_scores      the scores that compare two contexts; ContrastLogits
"""

from .beam_search import BeamChoice, BeamSearch, FoundHypothesis, find_candidates
from .contrast_scores import ContrastLogits
from .logits_processors import end_ids
from .params import SamplingParams
from .sampler import Sampler, SamplerState
from .sampling_plan import SamplerOutput
from .step_scores import step_scores

__all__ = [
    "BeamChoice",
    "BeamSearch",
    "ContrastLogits",
    "FoundHypothesis",
    "Sampler",
    "SamplerOutput",
    "SamplerState",
    "SamplingParams",
    "end_ids",
    "find_candidates",
    "step_scores",
]
