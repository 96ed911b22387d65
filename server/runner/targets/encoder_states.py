"""The encoder's states of the texts of requests with an EncodedTarget: of several requests in one pass, or of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...errors import not_a_number
from ...models import Backend, LoadedModel
from ...request import EncodedTarget, EncoderStates, Request
from ...transfer import int_tensor, to_host
from ..single_sequence import SingleSequenceModel

_States = NDArray[np.float32]


def read_states(loaded: LoadedModel, backend: Backend, requests: Sequence[Request]) -> list[EncoderStates | Exception]:
    """Returns the states of each request, or that they are NaN or infinite. Texts of similar length share a pass."""
    texts = [text for request in requests for text in (request.source.ids, _target_of(request).text.ids)]
    padding: int = loaded.model.config.pad_token_id or 0
    found: dict[int, _States] = {}
    for group in _by_length(texts, backend.max_prefill_tokens):
        lengths = [len(texts[number]) for number in group]
        rows = [[*texts[number], *([padding] * (max(lengths) - len(texts[number])))] for number in group]
        (states,) = to_host([backend.encode(int_tensor(rows, loaded.model.device), lengths).float()])
        for row, number in enumerate(group):
            found[number] = states[row, : lengths[row]].copy()
    return [_check(found[2 * number], found[2 * number + 1]) for number in range(len(requests))]


def read_states_alone(loaded: LoadedModel, request: Request) -> EncoderStates | Exception:
    """Returns the states of a request by the model's own modules, or that they are NaN or infinite."""
    found: list[_States] = []
    for text in (request.source, _target_of(request).text):
        model = SingleSequenceModel.of_request(loaded, replace(request, source=text))
        model.encode()
        (states,) = to_host([model.encoder_outputs.last_hidden_state.float()])
        found.append(states[0].copy())
    return _check(*found)


def _target_of(request: Request) -> EncodedTarget:
    assert isinstance(request.target, EncodedTarget)
    return request.target


def _check(source: _States, target: _States) -> EncoderStates | Exception:
    is_finite = bool(np.isfinite(source).all() and np.isfinite(target).all())
    return EncoderStates(source, target) if is_finite else not_a_number()


def _by_length(texts: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    """The numbers of texts of similar length, each group of a bounded number of tokens with its padding."""
    group: list[int] = []
    for number in sorted(range(len(texts)), key=lambda number: len(texts[number])):
        if group and (len(group) + 1) * len(texts[number]) > max_tokens:
            yield group
            group = []
        group.append(number)
    if group:
        yield group
