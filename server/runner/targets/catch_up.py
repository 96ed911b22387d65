"""The pass that reads at once what a follow stream has, where its sequence has not read the last tokens."""

from __future__ import annotations

from dataclasses import replace

from ...models import LoadedModel
from ...request import GivenTarget
from ...text import Token, TokenizedText
from ..sequence import Rewind
from .target_pass import TargetPass

# A decode step takes about as long as so many tokens in a pass over whole sequences.
_STEP_TOKENS = 8


def catch_up_pass(loaded: LoadedModel, rewind: Rewind) -> TargetPass | None:
    """The pass over source and target that ends where a rewind puts a sequence, with the steps of the new tokens.

    The slot of the sequence keeps the keys and values. None where another way is as fast, or the pass cannot be run
    together with others: then a prompt is read in chunks, and each new token has a decode step.
    """
    sequence, request, target_ids, num_new = rewind[:4]
    # Of a decoder, the tokens that are read go on to count where the source behind them grows.
    has_other_source = request.source != sequence.request.source or sequence.must_read_source
    has_read = sequence.num_cached > 0 and not (loaded.is_encoder_decoder and has_other_source)
    num_tokens = request.source_length + len(request.decoder_prompt_ids) + len(target_ids)
    if not target_ids or (has_read and _STEP_TOKENS * num_new < num_tokens):
        return None
    if sequence.combiner is not None:
        return None
    tokens = tuple(Token(id_, "", 0, 0, special=False, text="") for id_ in target_ids)
    request = replace(request, target=GivenTarget(TokenizedText("", tokens)))
    if not num_new:
        request = replace(request, capture=replace(request.capture, kinds=()), scores=(), observed={})
    first_step = len(target_ids) - num_new
    target_pass = TargetPass(loaded, request, sequence=sequence, first_step=first_step)
    return target_pass if target_pass.can_share else None
