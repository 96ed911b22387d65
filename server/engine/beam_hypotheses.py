"""The outputs of a request whose target a beam search has found: the best hypothesis is then a given target.

Its attention and scores come from the steps of the search, or from one pass over the hypothesis: `runner.beams` knows
when. Its texts are those of a target that is decoded token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..models import LoadedModel
from ..request import Finished, GivenTarget, Hypothesis, Output, Request, Step
from ..runner import SearchOutput, StepOutput, TargetOutput, TargetPass, begin_text
from ..sampling import FoundHypothesis
from ..text import Token, TokenizedText
from .outputs import given_steps, make_started, make_unit_builder, steps_of_passes
from .request_state import RequestState


def read_hypotheses(loaded: LoadedModel, request: Request, found: Sequence[FoundHypothesis]) -> tuple[Hypothesis, ...]:
    """Returns the hypotheses that a search has found, with their texts."""
    begin, _ = begin_text(loaded, request)
    hypotheses: list[Hypothesis] = []
    for hypothesis in found:
        detokenizer = begin.copy()
        tokens = [detokenizer.add(id_)[1] for id_ in hypothesis.ids]
        _, tokens[-1] = detokenizer.finish(tokens[-1])
        text = detokenizer.text
        # Tokens that are part of a character have its text.
        whole = tuple(token._replace(text=text[token.begin : token.end]) for token in tokens)
        hypotheses.append(Hypothesis(text, whole, hypothesis.score, hypothesis.stop_reason))
    return tuple(hypotheses)


def give_target(loaded: LoadedModel, state: RequestState, output: SearchOutput) -> None:
    """Makes the best hypothesis that a search has found the given target of its request, and of its contrast.

    Encoder self-attention has been sent already.
    """
    request = state.request
    state.hypotheses = read_hypotheses(loaded, request, output.hypotheses)
    target = GivenTarget(TokenizedText(state.hypotheses[0].text, state.hypotheses[0].tokens))

    def with_target(request: Request) -> Request:
        kinds = tuple(kind for kind in request.capture.kinds if kind != "encoder_self")
        return replace(request, target=target, capture=replace(request.capture, kinds=kinds))

    state.request = with_target(request)
    if request.contrast is not None:
        contrast = replace(request.contrast, request=with_target(request.contrast.request))
        state.request = replace(state.request, contrast=contrast)
    state.search_steps = output.steps
    state.num_pending_put, state.is_pending_computed, state.must_recompute = 0, output.steps is not None, True


def hypothesis_outputs(
    loaded: LoadedModel,
    request: Request,
    hypotheses: tuple[Hypothesis, ...],
    recorded: Sequence[StepOutput] | None,
    make_pass: Callable[[Request], TargetPass],
) -> Iterator[Output | None]:
    """The outputs that follow a beam search: the steps of the best hypothesis, and the end. Raises RequestError.

    The target of `request` is the best hypothesis: see `give_target`. `recorded` are the steps with the attention of
    this hypothesis; without them, what is missing comes from a pass. As `target_outputs` otherwise.
    """
    best = hypotheses[0]
    ids = [token.id for token in best.tokens]
    detokenizer, started = make_started(loaded, request)
    read = [detokenizer.add(id_) for id_ in ids]
    rest, last = detokenizer.finish(read[-1][1])
    read[-1] = read[-1][0] + rest, last
    texts, tokens = [text for text, _ in read], [token for _, token in read]
    unsent_text = "".join(texts[: request.resume_at])
    if recorded is None:
        parts = steps_of_passes(request, _outputs_of_pass(request, len(ids), make_pass), tokens, iter(texts))
    else:
        parts = iter([_recorded_steps(recorded, tokens, texts)])
    del recorded  # its memory, while steps wait
    units = make_unit_builder(loaded, request, started)
    for output in given_steps(request, parts, units):
        if output is not None and unsent_text:
            output, unsent_text = replace(output, unsent_text=unsent_text), ""
        yield output
    yield Finished(best.text, best.stop_reason, len(ids), hypotheses=hypotheses)


def _recorded_steps(recorded: Sequence[StepOutput], tokens: Sequence[Token], texts: Sequence[str]) -> Iterator[Step]:
    for step, token, text in zip(recorded, tokens, texts, strict=True):
        yield Step(step.step, token, text, [], step.cross, step.decoder_self)


def _outputs_of_pass(
    request: Request, num_steps: int, make_pass: Callable[[Request], TargetPass]
) -> Iterator[TargetOutput]:
    """What a pass over the best hypothesis gives its steps; no pass runs where the steps need nothing."""
    if request.capture.kinds or request.scores:
        target_pass = make_pass(request)
        target_pass.encode()
        yield from target_pass.decode()
    else:
        yield TargetOutput(0, np.empty((num_steps, 0), np.float32), num_steps, None, None, 0)
