"""A plan samples without a wait for the device, does no more than requests need, and finds tokens without logits."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference_sampler import LENGTH, PLAIN
from sidelight.server.models.loader import LoadedModel
from sidelight.server.request import DecodingParams
from sidelight.server.sampling import Sampler, logits_ops
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class SearchedLogits:
    """An LM head whose queries find the largest logits of rows that are not banned."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def argmax_query(self, num_rows: int, banned: Tensor, first_row: int) -> Any:
        assert num_rows == len(self.logits)
        masked = self.logits.clone()
        masked.view(-1)[banned - first_row * masked.shape[1]] = -math.inf
        return SimpleNamespace(first_row=first_row, found=lambda: (masked.argmax(-1), masked.amax(-1)))


@torch.inference_mode()
def test_an_accepted_argmax_is_what_sample_chooses(small):
    """Bans and forced tokens, also of a token that is banned at the same time, and NaN in a row with a forced token."""
    options = [
        {"forced_bos_token_id": 6},
        {"forced_eos_token_id": [8, 7]},
        {"forced_bos_token_id": 6, "suppress_tokens": [6]},
        {"forced_eos_token_id": [8, 7], "suppress_tokens": [7], "bad_words_ids": [[5]], "min_new_tokens": 3},
    ]
    searching, sampling = Sampler(small, 5, LENGTH), Sampler(small, 5, LENGTH)
    for sampler in (searching, sampling):
        for slot, generation in enumerate(options, 1):
            sampler.add(slot, DecodingParams(4, False, generation=PLAIN | generation), [3], [4])
    active = [1, 2, 3, 4]
    for _ in range(4):
        logits = torch.randn(4, small.vocabulary_size)
        logits[1:, 5] = 9
        logits[0, 11] = math.nan
        query = searching.argmax_query(SearchedLogits(logits), 1, 5, active)  # pyright: ignore[reportArgumentType]
        assert query is not None
        found, expected = searching.accept_argmax(query, active), sampling.sample(logits, active, first=1)
        assert found.tokens[active].tolist() == expected.tokens[active].tolist()
        assert found.is_finite[active].tolist() == expected.is_finite[active].tolist()


class RefuseReads(TorchFunctionMode):
    """Refuses Python's ways to read a number from a tensor."""

    NAMES = ("item", "tolist", "cpu", "numpy", "nonzero")
    NAMES = (*NAMES, *(f"__{name}__" for name in ("bool", "int", "float", "index", "contains")))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert not any(func is getattr(torch.Tensor, name) for name in self.NAMES), func
        return func(*args, **(kwargs or {}))


class RefuseWaits(TorchDispatchMode):
    """Refuses torch operations that wait for a GPU, and lists all others."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        assert name not in {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"}, name
        assert not name.startswith(("unique", "_unique")), name
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        assert not any(index is not None and index.dtype == torch.bool for index in indices), name
        self.operations.append(name)
        return func(*args, **(kwargs or {}))


EVERYTHING = {
    "repetition_penalty": 1.5,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": [[5]],
    "min_new_tokens": 3,
    "forced_bos_token_id": 6,
    "forced_eos_token_id": 2,
    "suppress_tokens": [7],
    "begin_suppress_tokens": [8],
    "renormalize_logits": True,
}


def operations(small: LoadedModel, decodings: list[DecodingParams], steps: int) -> list[list[str]]:
    sampler = Sampler(small, len(decodings), LENGTH)
    for slot, decoding in enumerate(decodings):
        sampler.add(slot, decoding, [3], [4])
    by_step: list[list[str]] = []
    for _ in range(steps):
        logits = torch.randn(len(decodings), small.vocabulary_size)
        # On a CPU NumPy finds an argmax. On a GPU, where reading a number is a wait, torch does.
        with torch.inference_mode(), pytest.MonkeyPatch.context() as patch, RefuseReads(), RefuseWaits() as waits:
            patch.setattr(logits_ops, "argmax", lambda scores: scores.argmax(-1))
            sampler.sample(logits, range(len(decodings)))
        by_step.append(waits.operations)
    return by_step


def test_a_step_never_waits(small, monkeypatch):
    monkeypatch.setattr(logits_ops, "drop_below_threshold", logits_ops.drop_in_order)  # as on a GPU
    sampling = {"temperature": 0.7, "top_k": 20, "top_p": 0.9}
    for count in (1, 2):  # slots of each
        greedy = [DecodingParams(6, False, generation=EVERYTHING)] * count
        plain = [DecodingParams(6, False), DecodingParams(6, True, 1)] * count
        drawn = [DecodingParams(6, True, 3, generation=EVERYTHING | sampling)] * count
        for decodings in (greedy, plain, drawn, [*drawn, *plain, *greedy]):
            assert all(operations(small, decodings, 6))


def test_an_unused_option_costs_nothing(small):
    """A plain greedy batch is one argmax, and a check of the logit found; a bad word is one addition to a copy."""
    plain = DecodingParams(6, False, generation=PLAIN)
    bad = DecodingParams(6, False, generation=plain.generation | {"bad_words_ids": [[5]]})
    for decoding, expected in ((plain, []), (bad, ["to", "index_add_"])):
        names = operations(small, [decoding] * 8, 3)[-1]
        work = [name for name in names if name not in ("alias", "detach", "select", "view", "empty_strided")]
        assert work == [*expected, "argmax", "unsqueeze", "gather", "lt"]


def test_reads_and_waits_are_refused():
    x = torch.arange(3.0)
    for read in (x.tolist, x.numpy, lambda: bool(x[0]), lambda: x[x > 1]):
        with pytest.raises(AssertionError), RefuseReads(), RefuseWaits():
            read()
