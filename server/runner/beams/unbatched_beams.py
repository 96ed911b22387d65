"""UnbatchedBeams: a beam search whose hypotheses each have a cache of their own, and run one at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ...sampling import Sampler
from ...transfer import int_tensor
from ..sequence import BeamGroup, SearchOutput
from ..single_sequence import NO_QUERIES, SingleSequenceModel
from .beam_step import choose


class UnbatchedBeams:
    """The hypotheses of one beam search. For the engine's thread, in torch's inference mode."""

    def __init__(self, model: SingleSequenceModel, sampler: Sampler, group: BeamGroup) -> None:
        """`model` has read the source. `sampler` has as many slots as the search is wide, and the request in slot 0."""
        self._models = [model]  # of the running hypotheses, in their order
        self._sampler = sampler
        self._group = group
        self._pending = [model.tensor(model.prompt)]  # what the decoder reads next, int64 `[1, count]`
        self._logits: list[Tensor] = []  # of the hypotheses that have run in this step, `[1, vocabulary]`
        for slot in range(1, group.search.width):
            sampler.copy(0, slot)

    def run(self) -> SearchOutput | None:
        """Runs the next hypothesis of the step. After the last one, all go on. Returns what ends the search.

        One forward pass at a time, so that the engine can turn to other requests in between. Raises RequestError.
        """
        index = len(self._logits)
        output = self._models[index].forward(self._pending[index], NO_QUERIES, num_logits=1)
        self._logits.append(output.logits)
        if len(self._logits) < len(self._models):
            return None
        logits, self._logits = torch.cat(self._logits), []
        chosen = self._sampler.sample(logits, range(len(logits)))
        if self._sampler.errors:
            raise next(iter(self._sampler.errors.values()))
        assert chosen.log_probs is not None
        (choice,) = choose([self._group], chosen.log_probs)
        if isinstance(choice, Exception):
            raise choice
        search = self._group.search
        if search.is_done:
            return SearchOutput(search.found)
        ranks = choice.parents if self._group.has_begun else [0] * search.width
        self._group.has_begun = True
        # The last hypothesis that goes on from a model takes the model itself; the others take copies.
        last = {rank: index for index, rank in enumerate(ranks)}
        models = [self._models[rank] for rank in ranks]
        self._models = [model if last[ranks[i]] == i else model.copy() for i, model in enumerate(models)]
        tokens = int_tensor(choice.tokens, logits.device)
        self._sampler.branch(range(search.width), ranks, tokens)
        self._pending = [*tokens.view(-1, 1, 1)]
        return None
