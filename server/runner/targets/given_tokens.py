"""What the decoder reads of a given target, and which query belongs to which step."""

from __future__ import annotations

from typing import NamedTuple

from ...capture import Row
from ...models import LoadedModel
from ...request import GivenTarget, Request


class GivenTokens(NamedTuple):
    """The tokens of a given target in one context. Steps and queries count from 0."""

    ids: list[int]  # of the target: a step each
    read: list[int]  # what the decoder reads
    num_prompt: int  # tokens that the decoder reads before the target
    first_query: int  # the position of the query whose row belongs to step 0
    steps: range  # the steps whose rows are kept
    first_step: int = 0  # nothing is wanted of the steps before

    @classmethod
    def of_request(cls, loaded: LoadedModel, request: Request, first_step: int = 0) -> GivenTokens:
        """The tokens of a request whose target is given. Nothing is wanted of the steps before `first_step`."""
        assert isinstance(request.target, GivenTarget)
        ids, prompt = request.target.text.ids, [*request.decoder_prompt_ids]
        if not loaded.is_encoder_decoder:
            prompt = [*request.source.ids, *prompt]
        reads_last = any(plan.row == "reading" for plan in (request.capture, *request.observed.values()))
        # The query that predicts a token is the query before it; the query that reads a token is its own.
        first_query = len(prompt) - (0 if request.capture.row == "reading" else 1)
        read = [*prompt, *(ids if reads_last else ids[:-1])]
        captured = request.captured_steps
        steps = range(max(captured.start, first_step), captured.stop)
        return cls(ids, read, len(prompt), first_query, steps, first_step)

    def queries(self, begin: int, end: int) -> slice:
        """The queries among those at `begin` to `end` whose rows are kept, counted from `begin`; empty for none."""
        first, last = max(self.steps.start + self.first_query, begin), min(self.steps.stop + self.first_query, end)
        return slice(first - begin, last - begin) if first < last else slice(0, 0)

    def observed_queries(self, row: Row, begin: int, end: int) -> slice:
        """The queries among those at `begin` to `end` that belong to steps, for a plan of this row."""
        first_query = self.num_prompt - (0 if row == "reading" else 1)
        first, last = max(first_query + self.first_step, begin), min(first_query + len(self.ids), end)
        return slice(first - begin, last - begin) if first < last else slice(0, 0)

    @property
    def all_queries(self) -> slice:
        """The queries of the whole target whose rows are kept."""
        return self.queries(0, len(self.read))

    @property
    def scored(self) -> slice:
        """The queries of the whole target that predict its tokens, from the first wanted step on."""
        return slice(self.num_prompt - 1 + self.first_step, self.num_prompt - 1 + len(self.ids))

    @property
    def num_scored(self) -> int:
        """How many steps have scores."""
        return len(self.ids) - self.first_step

    def num_steps(self, end: int) -> int:
        """How many steps have their rows once so many tokens are read."""
        return max(0, min(end - self.first_query, len(self.ids)))
