"""The outputs of a request whose target is given: the steps come from a few passes over the target.

`Runner.read_targets` may have run these passes together with those of other requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...alignment import Link
from ...models import LoadedModel
from ...request import EncodedTarget, Finished, GivenTarget, Output, Request, Step, Unit
from ...runner import TargetOutput, TargetPass
from ...text import Token, TokenizedText
from .observed_target import ObservedTarget, make_observed_target
from .output_builder import add_observations, make_started, make_unit_builder, split_encoder_self
from .unit_builder import UnitBuilder


def target_outputs(loaded: LoadedModel, request: Request, target_pass: TargetPass) -> Iterator[Output | None]:
    """The outputs of a request whose target is given, in order. Raises RequestError.

    Between two outputs the iterator runs at most one forward pass, with a contrast two, so that the engine can stop,
    wait or turn to another request in between. None says that the next output takes a pass. The passes run in the
    thread that takes the outputs.
    """
    _, started = make_started(loaded, request)
    if isinstance(request.target, EncodedTarget):
        states = target_pass.read_states()
        yield started
        yield states
        yield Finished("", "given", 0)
        return
    attention = target_pass.encode()
    yield started
    yield from split_encoder_self(attention, request.units)
    del attention  # its memory, while steps are computed and wait
    outputs = target_pass.decode()
    del target_pass  # likewise
    units, observed = make_unit_builder(loaded, request, started), make_observed_target(request)
    assert isinstance(request.target, GivenTarget)
    tokens, text = request.target.text.tokens, request.target.text.text
    parts = steps_of_passes(request, outputs, tokens, _added_texts(request.target.text), observed)
    del outputs  # likewise
    yield from given_steps(request, parts, units)
    yield add_observations(Finished(text, "given", len(tokens)), observed)


def given_steps(
    request: Request, parts: Iterator[Iterator[Step]], units: UnitBuilder | None
) -> Iterator[Step | Unit | None]:
    """The steps of a target that are sent, and the units of the target.

    `parts` are the steps, part by part. None says that the next step is of another part, which takes a pass.
    """
    assert isinstance(request.target, GivenTarget)
    text, num_steps = request.target.text.text, len(request.target.text.tokens)
    num_put = 0
    while num_put < num_steps:
        for step in next(parts):
            num_put = step.index + 1
            if units is not None:
                yield from units.add(step, text)
            elif step.index >= request.resume_at:
                yield step
        if num_put < num_steps:
            yield None
    if units is not None:
        yield from units.finish(text)


def steps_of_passes(
    request: Request,
    outputs: Iterator[TargetOutput],
    tokens: Sequence[Token],
    texts: Iterator[str],
    observed: ObservedTarget | None = None,
) -> Iterator[Iterator[Step]]:
    """The steps of a target, from the passes over it: a part for each pass.

    `texts` are what the tokens add to the text of the target. `observed` gets the tokens and what observers have of the
    passes. Keeps no output while the next pass runs.
    """

    def steps_of(output: TargetOutput) -> Iterator[Step]:
        links = None if observed is None else _observe(request, output, tokens, observed)
        return _steps_of(request, output, tokens, texts, links)

    return map(steps_of, outputs)


def _observe(
    request: Request, output: TargetOutput, tokens: Sequence[Token], observed: ObservedTarget
) -> Sequence[Sequence[Link]]:
    """Adds the steps of one pass to what observers have. Returns the links that each of these steps carries."""
    assert isinstance(request.target, GivenTarget)
    target, end = request.target.text, output.first_step + len(output.scores)
    added, is_last = tokens[output.first_step : end], end == len(tokens)
    text = target.text if is_last or not added else target.text[: max(target.begin, added[-1].end)]
    observed.add_rows(output.observed)
    return observed.place_links(observed.add_tokens(added, text, is_last=is_last), added)


def _steps_of(
    request: Request,
    output: TargetOutput,
    tokens: Sequence[Token],
    texts: Iterator[str],
    links: Sequence[Sequence[Link]] | None,
) -> Iterator[Step]:
    """The steps of one pass. `links` has those of each step; None: a step has none."""
    captured = request.captured_steps
    for number, scores in enumerate(output.scores.tolist()):
        index = output.first_step + number
        rows = output.rows(index) if index in captured else (None, None)
        yield Step(index, tokens[index], next(texts), scores, *rows, links=() if links is None else links[number])


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
