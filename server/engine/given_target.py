"""The outputs of a request whose target is given: all steps come from one pass over the target.

Each request has passes of its own. To batch them is to give several requests to `Runner.target_pass`, and to collect
these requests where `EngineCore` puts pending outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..models import LoadedModel
from ..request import Finished, GivenTarget, Output, Request, Step
from ..runner import TargetOutput, TargetPass
from ..text import TokenizedText
from .output_builder import make_started, split_encoder_self


def target_outputs(loaded: LoadedModel, request: Request, target_pass: TargetPass) -> Iterator[Output]:
    """The outputs of a request whose target is given, in order. Raises RequestError.

    Between two outputs the iterator runs at most one forward pass, with a contrast two, so that the engine can stop,
    wait or turn to another request in between. The passes run in the thread that takes the outputs.
    """
    _, started = make_started(loaded, request)
    attention = target_pass.encode()
    yield started
    yield from split_encoder_self(attention)
    del attention  # its memory, while steps are computed and wait
    output = target_pass.decode()
    del target_pass  # likewise
    yield from _given_steps(request, output)


def _given_steps(request: Request, output: TargetOutput) -> Iterator[Output]:
    assert isinstance(request.target, GivenTarget)
    tokens, text = request.target.text.tokens, request.target.text.text
    for index, (token, added) in enumerate(zip(tokens, _added_texts(request.target.text), strict=True)):
        step = Step(index, token, added, output.scores[index].tolist())
        if index < request.resume_at:
            continue
        if request.capture.captures_step(index):
            num_visible = output.first_query + index + 1
            cross, own = output.cross, output.decoder_self
            step = replace(
                step,
                cross=None if cross is None else cross.copy_query(index),
                decoder_self=None if own is None else own.copy_query(index, num_visible),
            )
        yield step
    yield Finished(text, "given", len(tokens))


def _added_texts(target: TokenizedText) -> Iterator[str]:
    """The text that each token of a whole text adds. A character of several tokens comes with the last of them."""
    text, tokens = target.text, target.tokens
    limits: list[int] = []  # for each token, where the next token begins that is not special
    limit = len(text)
    for token in reversed(tokens):
        limits.append(limit)
        limit = limit if token.special else token.begin
    written = end = target.begin
    for index, (token, limit) in enumerate(zip(tokens, reversed(limits), strict=True)):
        end = max(end, token.end)
        until = len(text) if index == len(tokens) - 1 else max(written, min(end, limit))
        yield text[written:until]
        written = until
