"""Chooses the backend of a model: the first of an ordered registry whose logits and attention are the model's own.

A backend replaces code of the model, so nothing is taken on trust: each backend runs a few tokens at load, and its
logits and attention rows are compared with those of the model's own forward pass.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..capture import (
    AttentionLayers,
    FullRecorder,
    LayerKey,
    feature_shape,
    first_token,
    record_to,
    short_sources,
    trial_inputs,
)
from ..layers import LMHead, find_lm_head
from ..memory import is_out_of_memory
from .backend import Backend, BackendConfig, BackendType, TargetBatch, UnsupportedModelError
from .bart_backend import BartBackend
from .bart_cpu_backend import BartCpuBackend
from .batch_invariance import separate_activations
from .compiled_backend import CompiledBackend
from .row_positions import accept_row_positions
from .transformers_backend import TransformersBackend

log = logging.getLogger(__name__)

# How far attention rows may be from the model's own where logits may differ by `_ROUNDED_TOLERANCE`: for one number,
# and on average over a layer. In int8 a last bit of an activation becomes a hundredth: 0.056 and 0.016 in a random
# model of opus-mt's size. Rows of another layer or head differ by more on average.
_MAX_ROW_DIFFERENCE, _MAX_MEAN_ROW_DIFFERENCE = 0.5, 0.05

# The positions of the recordings that speech models are verified with.
_SPEECH_POSITIONS = 4

# Attention rows `[positions, heads]`, by layer and sequence.
_Rows = dict[tuple[LayerKey, int], Tensor]

# Logits `[2, vocabulary]`, and rows where a backend has recorded them.
_Computed = tuple[Tensor, _Rows | None]

# Every backend, the fastest first. `select_backend` takes the first that supports a model and passes the verification.
BACKENDS: tuple[BackendType, ...] = (BartCpuBackend, BartBackend, TransformersBackend)

# The errors of code that runs a model for which it was not written.
_FAULTS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

# How far the logits of a backend may be from the model's own, as a share of the largest logit (of 1, if that is less):
# in float32; and in half precision or int8, which round more than another order of additions does.
_FLOAT32_TOLERANCE, _ROUNDED_TOLERANCE = 1e-4, 5e-2
# Likewise for the LM head alone, in float32 and in half precision. It is the same layer on the same numbers: only the
# order of additions may differ.
_LM_HEAD_TOLERANCE, _HALF_LM_HEAD_TOLERANCE = 1e-5, 1e-2


def select_backend(
    model: PreTrainedModel,
    attention_layers: AttentionLayers,
    config: BackendConfig,
    *,
    is_exact: bool = True,
    is_compiled: bool = False,
    backends: Sequence[BackendType] = BACKENDS,
) -> Backend | None:
    """The first of `backends` that runs `model` as the model runs itself; None if there is none.

    Without a backend, the requests of the model run one by one. `is_exact` asks for the tolerance of float32 instead of
    the one of half precision and int8. `is_compiled` asks for steps compiled by torch.compile.
    """
    if not attention_layers.captures_rows:
        return None
    accept_row_positions(model)
    if config.is_batch_invariant:
        separate_activations(model)
    with short_sources(model, _SPEECH_POSITIONS):
        return _select_verified(model, config, backends, is_exact=is_exact, is_compiled=is_compiled)


def _select_verified(
    model: PreTrainedModel,
    config: BackendConfig,
    backends: Sequence[BackendType],
    *,
    is_exact: bool,
    is_compiled: bool,
) -> Backend | None:
    """`select_backend` for a model that is prepared for it."""
    verification = Verification(model)
    if is_compiled:
        # To compile takes a minute, so the verification runs the code that the graph is made of.
        verified = _first_verified(model, config, None, verification, is_exact, (TransformersBackend,))
        return None if verified is None else CompiledBackend(model, config)
    lm_head = _verified_lm_head(model, verification)
    backend = _first_verified(model, config, lm_head, verification, is_exact, backends)
    if backend is None and lm_head is not None:
        lm_head.detach()
    return backend


def _first_verified(
    model: PreTrainedModel,
    config: BackendConfig,
    lm_head: LMHead | None,
    verification: Verification,
    is_exact: bool,
    backends: Sequence[BackendType],
) -> Backend | None:
    """The first backend that passes the verification. Logs why another one did not."""
    family, tolerance = model.config.model_type, _FLOAT32_TOLERANCE if is_exact else _ROUNDED_TOLERANCE
    problem: str | None = "no backend supports it"
    for backend_type in backends:
        try:
            if not backend_type.supports(model):
                continue
            backend = backend_type(model, config, lm_head)
        except UnsupportedModelError as error:
            problem = str(error)
            log.debug("%s does not support %s: %s", backend_type.__name__, family, problem)
            continue
        except _FAULTS as error:
            if is_out_of_memory(error):
                raise
            problem = _described(error)
        else:
            ways = (verification.decoded, verification.read)
            problems = (verification.problem(functools.partial(way, backend), tolerance) for way in ways)
            problem = next(filter(None, problems), None)
            if problem is None:
                log.debug("%s is run by %s", family, backend_type.__name__)
                return backend
        log.warning("%s is not run by %s: %s", family, backend_type.__name__, problem)
    log.warning("requests of %s run one by one: %s", family, problem)
    return None


def _verified_lm_head(model: PreTrainedModel, verification: Verification) -> LMHead | None:
    """The output projection of a model; None if the model does more to its logits than to add its own bias."""
    lm_head = find_lm_head(model)
    if lm_head is None:
        return None
    tolerance = _LM_HEAD_TOLERANCE if model.dtype == torch.float32 else _HALF_LM_HEAD_TOLERANCE
    problem = verification.problem(functools.partial(verification.projected, lm_head), tolerance)
    if problem is None:
        return lm_head
    log.info("the LM head of %s does not run apart from the model: %s", model.config.model_type, problem)
    lm_head.detach()
    return None


class Verification:
    """A few tokens, the model's own logits and attention rows for them, and the comparison of others with these.

    The tokens are two sequences of different lengths, so that a step of both needs masks. Holds logits and rows while
    `select_backend` runs.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        token = first_token(model)
        self._padding = token
        self._targets = [[token, token + 1, token + 2], [token + 1]]
        self._sources = [[token, token + 3], [token + 2, token + 1, token, token + 3]]
        self._is_speech = feature_shape(model) is not None
        self._source_lengths = [_SPEECH_POSITIONS] * 2 if self._is_speech else [*map(len, self._sources)]

    @torch.inference_mode()
    def problem(self, compute: Callable[[], _Computed], tolerance: float) -> str | None:
        """What is wrong with logits `[2, vocabulary]` and rows; None if they are the model's own.

        `tolerance` is a share of the largest logit.
        """
        try:
            computed, rows = compute()
            if computed.shape != self._expected.shape:
                return f"logits have the shape {tuple(computed.shape)} instead of {tuple(self._expected.shape)}"
            difference = float((computed - self._expected).abs().max())
            largest = max(1.0, float(self._expected.abs().max()))
        except (UnsupportedModelError, *_FAULTS) as error:
            if is_out_of_memory(error):
                raise
            return _described(error)
        if not difference <= tolerance * largest:  # NaN is not
            return f"its logits are {difference:.1e} from the model's own"
        return None if rows is None else self._problem_of_rows(rows, tolerance)

    def _problem_of_rows(self, rows: _Rows, tolerance: float) -> str | None:
        """What is wrong with rows; None if they are the model's own."""
        if missing := self._expected_rows.keys() - rows.keys():
            return f"it records no rows of {min(missing)}"
        is_exact = tolerance <= _FLOAT32_TOLERANCE
        for (layer_key, sequence), expected in self._expected_rows.items():
            differences = (rows[layer_key, sequence] - expected).abs()
            largest, mean = float(differences.max()), float(differences.mean())
            is_near = largest <= _MAX_ROW_DIFFERENCE and mean <= _MAX_MEAN_ROW_DIFFERENCE
            if not (largest <= tolerance if is_exact else is_near):  # NaN is neither
                row = f"{layer_key.kind} layer {layer_key.layer}"
                return f"its attention rows of {row} are up to {largest:.1e} from the model's own"
        return None

    def decoded(self, backend: Backend) -> _Computed:
        """What a backend computes in one step of both sequences, after the prefill of the tokens before."""
        device = self._model.device
        longest = max(self._source_lengths) if self._is_encoder_decoder else 0
        cache = backend.new_kv_cache(2, 8)
        recorder = FullRecorder()
        with record_to(None, padded=False):
            if self._is_encoder_decoder:
                backend.prefill_sources(self._padded_sources(), dict(enumerate(self._source_lengths)), cache)
            for slot, (target, length) in enumerate(zip(self._targets, self._source_lengths, strict=True)):
                if len(target) > 1:
                    cache.begin_prefill(slot, 0, len(target) - 1, length if self._is_encoder_decoder else 0)
                    backend.prefill(torch.tensor([target[:-1]], device=device), cache)
            cache.begin_decode(slice(0, 2), max(map(len, self._targets)), longest)
            with record_to(recorder, padded=False):
                output = backend.decode(torch.tensor([target[-1:] for target in self._targets], device=device), cache)
            logits = output if backend.lm_head is None else backend.lm_head.logits(output)
        rows = {
            (key, sequence): tensors.values[sequence, 0, : self._num_positions(key, sequence)]
            for key, tensors in recorder.results.items()
            for sequence in range(len(self._targets))
        }
        return logits, rows

    def read(self, backend: Backend) -> _Computed:
        """What a backend computes for the last token of both sequences in a pass over whole sequences."""
        lengths = [*map(len, self._targets)]
        padded = [[*target, *[self._padding] * (max(lengths) - len(target))] for target in self._targets]
        targets = torch.tensor(padded, device=self._model.device)
        batch = TargetBatch(None, [0] * len(lengths), targets, lengths)
        if self._is_encoder_decoder:
            batch = batch._replace(sources=self._padded_sources(), source_lengths=self._source_lengths)
        recorder = FullRecorder()
        with record_to(recorder, padded=True):
            output = backend.read_targets(batch)
        assert output is not None
        last = torch.stack([output[row, length - 1] for row, length in enumerate(lengths)])
        logits = last if backend.lm_head is None else backend.lm_head.logits(last)
        rows = {
            (key, sequence): tensors.values[sequence, lengths[sequence] - 1, : self._num_positions(key, sequence)]
            for key, tensors in recorder.results.items()
            for sequence in range(len(lengths))
        }
        return logits, rows

    def _padded_sources(self) -> Tensor:
        """The sources as a batch: tokens with padding, or features of recordings."""
        if self._is_speech:
            sources = (torch.tensor([source], device=self._model.device) for source in self._sources)
            return torch.cat([next(iter(trial_inputs(self._model, source).values())) for source in sources])
        longest = max(self._source_lengths)
        padded = [[*source, *[self._padding] * (longest - len(source))] for source in self._sources]
        return torch.tensor(padded, device=self._model.device)

    def _num_positions(self, key: LayerKey, sequence: int) -> int:
        return self._source_lengths[sequence] if key.kind == "cross" else len(self._targets[sequence])

    def projected(self, lm_head: LMHead) -> _Computed:
        """The logits of an LM head for the hidden states of the model's own forward passes."""
        rows: list[Tensor] = []
        for sequence in range(len(self._targets)):
            with lm_head.skipping():
                logits = self._own_logits(sequence)
            if len(logits):
                raise UnsupportedModelError("its logits do not come from its last layer alone")
            rows.append(lm_head.logits(lm_head.pop_hidden()[0, -1:]))
        return torch.cat(rows), None

    @functools.cached_property
    def _expected(self) -> Tensor:
        return torch.stack([self._own_logits(sequence)[0, -1] for sequence in range(len(self._targets))])

    @functools.cached_property
    def _expected_rows(self) -> _Rows:
        """The rows of the last query of each sequence, from the model's own modules."""
        rows: _Rows = {}
        for sequence in range(len(self._targets)):
            recorder = FullRecorder()
            self._own_logits(sequence, recorder)
            for key, tensors in recorder.results.items():
                if key.kind != "encoder_self":
                    rows[key, sequence] = tensors.values[0, -1]
        return rows

    def _own_logits(self, sequence: int, recorder: FullRecorder | None = None) -> Tensor:
        """The logits `[1, T, vocabulary]` of the model's own forward pass, without a cache."""
        target = torch.tensor([self._targets[sequence]], device=self._model.device)
        inputs = {"input_ids": target}
        if self._is_encoder_decoder:
            source = torch.tensor([self._sources[sequence]], device=self._model.device)
            inputs = trial_inputs(self._model, source) | {"decoder_input_ids": target}
        with record_to(recorder, padded=False):
            return self._model(**inputs, use_cache=False).logits


def _described(error: Exception) -> str:
    """What an error says, in one line: some families print themselves as a whole."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} …"
