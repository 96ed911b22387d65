"""The forward passes of a request whose target is given: the encoder's, and the decoder's over the whole target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch import Tensor

from ..capture import AttentionArrays, minuend_plan, subtract
from ..errors import not_a_number
from ..models import LoadedModel
from ..request import Contrast, GivenTarget, Request
from ..sampling import ContrastLogits, step_scores
from ..transfer import int_tensor, to_host
from .single_sequence import NO_QUERIES, ForwardOutput, SingleSequenceModel


class TargetOutput(NamedTuple):
    """What the decoder's pass over a given target gave. All arrays are on the host and finite."""

    scores: NDArray[Any]  # float32 `[tokens, scores]`
    cross: AttentionArrays | None  # a query for each token; None if not captured
    decoder_self: AttentionArrays | None
    first_query: int  # the position of the query of the first token


class TargetPass:
    """One request's passes: `encode`, then `decode`. For the engine's thread, in torch's inference mode.

    With a contrast, both of them run a second pass, in the context of the contrast.
    """

    def __init__(self, loaded: LoadedModel, request: Request) -> None:
        self._request = request
        contrast = request.contrast
        self._subtracts = contrast is not None and contrast.subtracts_attention
        self._plan = minuend_plan(request.capture) if self._subtracts else request.capture
        self._model = SingleSequenceModel(loaded, self._plan, request.source.ids, request.decoder_prompt_ids)
        self._contrast = None if contrast is None else SingleSequenceModel.of_request(loaded, contrast.request)

    def encode(self) -> AttentionArrays | None:
        """Runs the encoder, if there is one. Returns its self-attention, if captured. Raises RequestError."""
        attention = self._model.encode()
        other = None if self._contrast is None else self._contrast.encode()
        return subtract(attention, other, self._request.capture) if self._subtracts else attention

    def decode(self) -> TargetOutput:
        """Runs the decoder over the whole target. Raises RequestError where a number is NaN or infinite."""
        request, contrast = self._request, self._request.contrast
        output, targets = self._read(self._model, request)
        other = compared = None
        if self._contrast is not None and contrast is not None:
            other, tokens = self._read(self._contrast, contrast.request)
            compared = _compare(contrast, other.logits, tokens)
        computed = step_scores(request.scores, output.logits, targets, request.score_top_p, compared)
        subtracted = [] if other is None else other.tensors
        # The maximum of a row is NaN where any number of the row is.
        maxima = output.logits.amax(-1).float()
        scores, maxima, *arrays = to_host([computed, maxima, *output.tensors, *subtracted])
        cross, decoder_self = output.attention(arrays, self._plan)
        if self._subtracts and other is not None:
            others = other.attention(arrays[len(output.tensors) :], self._plan)
            cross = subtract(cross, others[0], request.capture)
            decoder_self = subtract(decoder_self, others[1], request.capture)
        numbers = [AttentionArrays(maxima), AttentionArrays(scores), cross, decoder_self]
        if not all(array is None or array.is_finite() for array in numbers):
            raise not_a_number()
        return TargetOutput(scores, cross, decoder_self, self._first_query(self._model))

    @property
    def _reads_last(self) -> bool:
        return self._request.capture.row == "reading"

    def _first_query(self, model: SingleSequenceModel) -> int:
        # The query that predicts a token is the query before it; the query that reads a token is its own.
        return len(model.prompt) - (0 if self._reads_last else 1)

    def _read(self, model: SingleSequenceModel, request: Request) -> tuple[ForwardOutput, Tensor]:
        """Reads the target of a request. Returns what the pass gave, with logits for each token, and the tokens."""
        assert isinstance(request.target, GivenTarget)
        ids = request.target.text.ids
        read = [*model.prompt, *ids] if self._reads_last else [*model.prompt, *ids[:-1]]
        queries = slice(self._first_query(model), None) if request.capture.kinds else NO_QUERIES
        num_logits = len(ids) + (1 if self._reads_last else 0)
        output = model.forward(model.tensor(read), queries, num_logits, is_last=True)
        return replace(output, logits=output.logits[: len(ids)]), model.tensor(ids)[0]


def _compare(contrast: Contrast, logits: Tensor, tokens: Tensor) -> ContrastLogits:
    """The logits and the tokens that each step is compared with, of those of the contrast target."""
    if contrast.steps is not None:
        steps = int_tensor(contrast.steps, logits.device)
        logits, tokens = logits[steps], tokens[steps]
    return ContrastLogits(logits, tokens, contrast.kl_top_p, contrast.kl_top_k)
