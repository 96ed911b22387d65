"""The forward passes of a request whose target is given: the encoder's, and the decoder's over the whole target."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from ..capture import AttentionArrays
from ..errors import not_a_number
from ..models import LoadedModel
from ..request import GivenTarget, Request
from ..sampling import step_scores
from ..transfer import to_host
from .single_sequence import NO_QUERIES, SingleSequenceModel


class TargetOutput(NamedTuple):
    """What the decoder's pass over a given target gave. All arrays are on the host and finite."""

    scores: NDArray[Any]  # float32 `[tokens, scores]`
    cross: AttentionArrays | None  # a query for each token; None if not captured
    decoder_self: AttentionArrays | None
    first_query: int  # the position of the query of the first token


class TargetPass:
    """One request's passes: `encode`, then `decode`. For the engine's thread, in torch's inference mode."""

    def __init__(self, loaded: LoadedModel, request: Request) -> None:
        self._request = request
        self._model = SingleSequenceModel.of_request(loaded, request)

    def encode(self) -> AttentionArrays | None:
        """Runs the encoder, if there is one. Returns its self-attention, if captured. Raises RequestError."""
        return self._model.encode()

    def decode(self) -> TargetOutput:
        """Runs the decoder over the whole target. Raises RequestError where a number is NaN or infinite."""
        request, model = self._request, self._model
        assert isinstance(request.target, GivenTarget)
        ids = request.target.text.ids
        reads_last = request.capture.row == "reading"
        # The query that predicts a token is the query before it; the query that reads a token is its own.
        first_query = len(model.prompt) - (0 if reads_last else 1)
        read = [*model.prompt, *ids] if reads_last else [*model.prompt, *ids[:-1]]
        queries = slice(first_query, None) if request.capture.kinds else NO_QUERIES
        num_logits = len(ids) + (1 if reads_last else 0)
        output = model.forward(model.tensor(read), queries, num_logits, is_last=True)
        logits, targets = output.logits[: len(ids)], model.tensor(ids)[0]
        computed = step_scores(request.scores, logits, targets, request.score_top_p)
        # The maximum of a row is NaN where any number of the row is.
        scores, maxima, *arrays = to_host([computed, logits.amax(-1).float(), *output.tensors])
        cross, decoder_self = output.attention(arrays, request.capture)
        numbers = [AttentionArrays(maxima), AttentionArrays(scores), cross, decoder_self]
        if not all(array is None or array.is_finite() for array in numbers):
            raise not_a_number()
        return TargetOutput(scores, cross, decoder_self, first_query)
