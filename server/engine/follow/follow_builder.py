"""Builds the outputs of a follow stream: tokens, rows and the decisions of its policy become steps.

Knows texts and requests; runs no forward pass, and knows no queues. The last query of a pass predicts the token after
the pass, and reads the token before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import not_a_number
from ...models import LoadedModel
from ...policy import PolicyDecision
from ...request import (
    AwaitingSource,
    DecodingParams,
    Finished,
    Output,
    Request,
    Step,
    StepCount,
    StopReason,
)
from ...runner import StepOutput
from ...sampling import end_ids
from ...text import StopTexts, Token
from ..outputs import find_stop, make_started


class FollowBuilder:
    """What one follow stream has written so far.

    Attributes:
        request: The request with the source so far.
        started: The first output, and the output after each growth of the source.
        target_ids: The tokens of the steps. Where the server writes them: of the committed steps.
        is_written: Whether the server has written all that it may: a step is held, or the target is complete.
        is_finished: Whether the last output has been built.
    """

    def __init__(self, loaded: LoadedModel, request: Request) -> None:
        self._loaded = loaded
        self.request = request
        self._detokenizer, self.started = make_started(loaded, request)
        self._has_source = False  # whether the source is complete
        self.target_ids: list[int] = []
        self._num_firm: list[int] = []  # of each step: see PolicyDecision
        # Tokens of the client: the pass after the last token; a token that lacks the row that reads it, its scores, and
        # the pass before it.
        self._ahead: StepOutput | None = None
        self._unread: tuple[int, list[float], StepOutput] | None = None
        self._proposed: StepOutput | None = None  # a token of the server that lacks the row that reads it
        self._stop_reason: StopReason | None = None
        self.is_written = False
        self.is_finished = False

    @property
    def is_server_written(self) -> bool:
        """Whether the server writes the target."""
        return isinstance(self.request.target, DecodingParams)

    @property
    def is_ahead(self) -> bool:
        """Whether the pass after the last token of the client has run."""
        return self._ahead is not None

    @property
    def is_incomplete(self) -> bool:
        """Whether the step of the last token needs another pass."""
        return self._unread is not None

    # ---- changes of source and target -------------------------------------------------------------------------------

    def set_source(self, request: Request) -> list[Output]:
        """Takes a source that has grown. The steps stay."""
        self.request = request
        _, self.started = make_started(self._loaded, request)
        self._restart()
        return [self.started, *([self._await_source()] if self.is_written else [])]

    def complete_source(self) -> list[Output]:
        """Takes note that no more source comes: from now on, no step is held."""
        self._has_source = True
        if not self.is_server_written:
            return []
        self._restart()
        return [self.finish()] if self.is_written else []

    def take_back(self, count: int) -> list[Output]:
        """Removes steps from the end."""
        if count:
            del self.target_ids[len(self.target_ids) - count :]
            del self._num_firm[len(self.target_ids) :]
            self._restart()
        return [StepCount(len(self.target_ids))]

    def forget_pass(self) -> None:
        """Takes note that the sequence is lost or put elsewhere, and with it what its last pass gave."""
        self._ahead = self._proposed = None

    def finish(self) -> Finished:
        """Ends the target."""
        self.is_finished = True
        self._detokenizer.flush()
        return Finished(self._detokenizer.text, self._stop_reason or "given", len(self.target_ids))

    def _restart(self) -> None:
        """Goes on after the last step. The text is decoded anew, since no token can be taken out of a text."""
        self._ahead = self._proposed = None
        self.is_written = self._stop_reason is not None
        self._detokenizer, _ = make_started(self._loaded, self.request)
        for id_ in self.target_ids:
            self._detokenizer.add(id_)

    # ---- tokens -----------------------------------------------------------------------------------------------------

    def accept(self, id_: int, scores: list[float]) -> list[Output]:
        """Takes the client's next token. Returns its step, if no other pass is needed for it.

        Raises RequestError where a score is NaN or infinite.
        """
        ahead, self._ahead = self._ahead, None
        assert ahead is not None
        if self._needs_reading:
            self.target_ids.append(id_)
            self._unread = id_, scores, ahead
            return []
        step = self._make_step(id_, scores, ahead, None, self._decide(id_, ahead, None))
        self.target_ids.append(id_)
        return [step]

    def accept_pass(self, outputs: Iterable[StepOutput]) -> list[Output]:
        """Takes the client's next tokens, and what one pass has given of all of them. Returns their steps."""
        steps: list[Output] = []
        for each in outputs:
            self.target_ids.append(each.token_id)
            decision = self._decide(each.token_id, each, each)
            steps.append(self._make_step(each.token_id, [*each.scores], each, each, decision))
        return steps

    def add_token(self, output: StepOutput) -> list[Output]:
        """Takes what a forward pass gave. Returns the outputs that are complete.

        Raises RequestError where a logit or a score is NaN or infinite.
        """
        if not output.is_finite:
            raise not_a_number()
        if self.is_server_written:
            return self._propose(output)
        self._ahead = output
        if self._unread is None:
            return []
        (id_, scores, before), self._unread = self._unread, None
        return [self._make_step(id_, scores, before, output, self._decide(id_, before, output))]

    def _propose(self, output: StepOutput) -> list[Output]:
        """Commits or holds what the model wants to write next, as soon as the rows for the decision are there."""
        if not self._needs_reading:
            return self._write(output, None)
        proposed, self._proposed = self._proposed, output
        outputs = [] if proposed is None else self._write(proposed, output)
        if not self.is_written and output.is_end_token and not self._has_source:
            outputs.append(self._await_source())
        return outputs

    def _write(self, output: StepOutput, following: StepOutput | None) -> list[Output]:
        decision = self._decide(output.token_id, output, following)
        if decision is not None and decision.is_held:
            return [self._await_source()]
        step = self._make_step(output.token_id, list(output.scores), output, following, decision)
        self.target_ids.append(output.token_id)
        if self._stop_reason is None:
            return [step]
        self.is_written = True
        return [step, self.finish() if self._has_source else self._await_source()]

    def _await_source(self) -> AwaitingSource:
        self.is_written = True
        return AwaitingSource(len(self.target_ids), self._num_firm[-1] if self._num_firm else 0)

    def _make_step(
        self,
        id_: int,
        scores: list[float],
        before: StepOutput,
        reading: StepOutput | None,
        decision: PolicyDecision | None,
    ) -> Step:
        """Makes the step of a token from the pass before it, and from the pass that reads it."""
        if not all(map(math.isfinite, scores)):
            raise not_a_number()
        self._num_firm.append(decision.num_firm if decision is not None else 0)
        num_searched = len(self._detokenizer.text)
        text, token = self._detokenizer.add(id_)
        params, prefix = self.request.target, self.request.prefix
        if isinstance(params, DecodingParams):
            stop_texts = StopTexts(params.stop, 0 if prefix is None else len(prefix.text))
            self._stop_reason = find_stop(params, stop_texts, before, self._detokenizer.text, num_searched)
            if self._stop_reason is not None:
                rest, token = self._detokenizer.finish(token)
                text += rest
        capture = self.request.capture
        rows = reading if capture.row == "reading" and capture.kinds else before
        assert rows is not None
        return Step(before.step, token, text, scores, rows.cross, rows.decoder_self, decision=decision)

    # ---- the policy -------------------------------------------------------------------------------------------------

    @property
    def _needs_reading(self) -> bool:
        """Whether a step needs the pass that reads its token."""
        plans = (self.request.capture, *self.request.observed.values())
        return any(plan.kinds and plan.row == "reading" for plan in plans)

    def _decide(self, id_: int, before: StepOutput, reading: StepOutput | None) -> PolicyDecision | None:
        """Says whether the policy holds a step (Papi et al. 2023, section 3); None without a policy.

        The end token is held as well while the source is not complete.
        """
        policy, tokens = self.request.policy, self.request.source.tokens
        if policy is None:
            return None
        rows = reading if self.request.observed["policy"].row == "reading" else before
        assert rows is not None
        source_token = _find_greatest(rows.observed["policy"].values, tokens)
        is_end = id_ in end_ids(self._loaded.generation_config)
        is_held = not self._has_source and (source_token >= policy.first_held or is_end)
        num_firm = self._num_firm[-1] if self._num_firm else 0
        return PolicyDecision(is_held, source_token, num_firm if is_held else max(num_firm, source_token + 1))


def _find_greatest(row: NDArray[Any], tokens: Sequence[Token]) -> int:
    """Returns the source token with the greatest share of a row. Special tokens count only if all are special."""
    candidates = [index for index, token in enumerate(tokens) if not token.special] or [*range(len(tokens))]
    return candidates[int(np.argmax(row[candidates]))]
