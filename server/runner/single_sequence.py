"""A model over one sequence, by the model's own modules and with a cache of its own: logits and captured attention.

Knows models, caches and tensors on the device; does not know texts, or which token comes next.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels import AttentionTensors
from ..capture import (
    AttentionArrays,
    AttentionKind,
    CapturePlan,
    PassRecorder,
    RowCombiner,
    SourceRecorder,
    SpecialPositions,
    build_arrays,
    list_tensors,
    observe_with,
    record_to,
    source_inputs,
)
from ..errors import not_a_number
from ..models import LoadedModel
from ..request import MAX_PART_BYTES, GivenTarget, Observer, Request, SourceFeatures
from ..transfer import to_host
from ..transformers_versions import cache_argument, cache_of, takes_whole_target
from .forward_output import ForwardOutput, list_observed, run_pass

_KINDS: tuple[AttentionKind, ...] = ("cross", "decoder_self")

NO_QUERIES = slice(0, 0)
LAST_QUERY = slice(-1, None)
ALL_QUERIES = slice(None)


def find_special(loaded: LoadedModel, request: Request, written: Sequence[int] = ()) -> SpecialPositions | None:
    """The positions that the rows of a request leave out; None if the rows leave out nothing.

    `written` are the tokens of the target that have been written.
    """
    if not any(plan.leaves_out_special for plan in (request.capture, *request.observed.values())):
        return None
    source = request.source.ids
    given = request.target.text.ids if isinstance(request.target, GivenTarget) else []
    target = [*(() if loaded.is_encoder_decoder else source), *request.decoder_prompt_ids, *given, *written]
    is_special = loaded.tokenizer.vocabulary.is_special
    return SpecialPositions(is_special, source, request.source_length, target, _max_target(loaded, request))


def new_combiner(loaded: LoadedModel, request: Request, plan: CapturePlan) -> RowCombiner | None:
    """The combiner of the rows of a request's plan; None for a method without one."""
    if not plan.kinds:
        return None
    return plan.method.new_combiner(plan, request.source_length, _max_target(loaded, request))


def _max_target(loaded: LoadedModel, request: Request) -> int:
    """The most positions that the decoder of a request can have."""
    target = request.target
    num_steps = len(target.text.tokens) if isinstance(target, GivenTarget) else target.max_new_tokens
    return len(request.decoder_prompt_ids) + num_steps + (0 if loaded.is_encoder_decoder else request.source_length)


def features_tensor(features: SourceFeatures, model: Any) -> Tensor:
    """The features of a recording as a batch of one source, `[1, bins, frames]`, on the model's device."""
    return torch.from_numpy(features.values)[None].to(model.device, model.dtype)


class SingleSequenceModel:
    """One sequence of a model: its encoder's output, its cache, and how many tokens it has read."""

    def __init__(
        self,
        loaded: LoadedModel,
        plan: CapturePlan,
        source_ids: Sequence[int],
        context_ids: Sequence[int],
        features: SourceFeatures | None = None,
        special: SpecialPositions | None = None,
        combiner: RowCombiner | None = None,
        observed: Mapping[Observer, CapturePlan] | None = None,
    ) -> None:
        """`context_ids` are what the decoder reads between source and step 0: start token and prefix.

        `features` are the source of a speech model; `source_ids` are empty then. `special` are the special tokens that
        rows leave out, `combiner` makes the rows of a method that needs it. `observed` are the plans of observers.
        """
        self._model: Any = loaded.model
        self._captures_rows = loaded.attention_layers.captures_rows
        self._plan = plan.recorded
        self._observed = observed or {}
        self._special = special
        self._leaves_out = plan.leaves_out_special
        self.combiner = combiner
        encoded = loaded.is_encoder_decoder
        self.source_length = (features.num_positions if features else len(source_ids)) if encoded else 0
        self._source = self.tensor(source_ids) if features is None else features_tensor(features, self._model)
        self._mask = _make_mask(self._source, captures_rows=self._captures_rows)
        self.encoder_outputs: Any = None  # what `encode` has given
        self._cache: Any = None
        self._is_encoder_decoder = loaded.is_encoder_decoder
        self._keeps_logits = loaded.takes_logits_to_keep
        self.prompt = list(context_ids) if loaded.is_encoder_decoder else [*source_ids, *context_ids]
        self.num_read = 0  # tokens that the decoder has read
        self._target_ids: Tensor | None = None  # tokens read, of models that want all at each pass

    @classmethod
    def of_request(
        cls,
        loaded: LoadedModel,
        request: Request,
        combiner: RowCombiner | None = None,
        plan: CapturePlan | None = None,
    ) -> SingleSequenceModel:
        """The sequence of a request, before any pass. Without a `combiner` it makes its own, if the method has one.

        `plan` is what is captured; None: what the request asks for.
        """
        plan = plan or request.capture
        special, combiner = find_special(loaded, request), combiner or new_combiner(loaded, request, plan)
        ids, prompt = request.source.ids, request.decoder_prompt_ids
        return cls(loaded, plan, ids, prompt, request.features, special, combiner, request.observed)

    def forget_target(self, special: SpecialPositions | None) -> None:
        """Forgets the tokens that the decoder has read. The encoder's output stays.

        `special` are the special tokens of the source and of the target that is read next.
        """
        self._cache, self._target_ids, self.num_read = None, None, 0
        self._special = special
        if self.combiner is not None:
            self.combiner.take_back(0)

    def copy(self) -> SingleSequenceModel:
        """Returns a sequence that goes on from here by itself. Both share what they have read of the source."""
        other = copy.copy(self)
        source = getattr(self._cache, "cross_attention_cache", None)
        other._cache = copy.deepcopy(self._cache, None if source is None else {id(source): source})
        return other

    def tensor(self, ids: Sequence[int]) -> Tensor:
        """Ids as a batch of one sequence, int64 `[1, count]`."""
        return torch.tensor([ids], device=self._model.device)

    def encode(self, *, check: bool = True) -> Iterator[AttentionArrays] | None:
        """Runs the encoder, if there is one. Returns its self-attention in parts, if captured.

        The parts are consecutive queries. Each part is computed when it is taken. Raises RequestError where the
        attention is NaN or infinite, unless `check` is False.
        """
        if not self._is_encoder_decoder:
            return None
        inputs = source_inputs(self._source) | self._mask
        if not self._captures_rows:
            recorder = self._new_recorder(self._plan, NO_QUERIES, {"encoder_self": self.source_length})
            self.encoder_outputs = run_pass(
                self._model.get_encoder(), [recorder], ("encoder_self",), captures_rows=False, **inputs
            )
            tensors = recorder.result("encoder_self")
            if tensors is None:
                return None
            parts = _read_parts(iter([tensors]), self.encoder_outputs.last_hidden_state, self._plan, check=check)
            return _combine(parts, self.combiner, self._left_out)
        source = None
        if "encoder_self" in self._plan.kinds:
            positions: dict[AttentionKind, int] = {"encoder_self": self.source_length}
            left_out = _left_out_of(self._plan, self._special, positions, self._model.device)
            source = SourceRecorder(self._plan, self.source_length, left_out.get("encoder_self"))
        with record_to(None, padded=False), nullcontext() if source is None else observe_with(source):
            self.encoder_outputs = self._model.get_encoder()(**inputs)
        if source is None:
            return None
        states = self.encoder_outputs.last_hidden_state
        computed = map(source.compute, _divide_source(self._plan, self.source_length))
        return _combine(_read_parts(computed, states, self._plan, check=check), self.combiner, self._left_out)

    def attention(self, output: ForwardOutput, arrays: Sequence[NDArray[Any]]) -> dict[AttentionKind, AttentionArrays]:
        """The rows of a pass, from the copies of its tensors on the host.

        A combiner must be given the rows of all queries, pass by pass. Raises RequestError where a number is NaN or
        infinite.
        """
        rows = output.recorded(arrays, self._plan)
        if self.combiner is not None and rows:
            rows = self.combiner.read_target(rows, self._left_out)
        if not all(array.is_finite() for array in rows.values()):
            raise not_a_number()
        return rows

    def add_token(self, token: int) -> None:
        """Takes the next token of the target, which the next pass reads."""
        if self._special is not None:
            self._special.add(token)

    @property
    def _left_out(self) -> dict[AttentionKind, Tensor]:
        return self._special.host_masks if self._special is not None and self._leaves_out else {}

    def _new_recorder(self, plan: CapturePlan, queries: slice, positions: dict[AttentionKind, int]) -> PassRecorder:
        left_out = _left_out_of(plan, self._special, positions, self._model.device)
        return PassRecorder(plan, queries, positions, left_out=left_out)

    def forward(
        self,
        ids: Tensor,
        queries: slice,
        num_logits: int,
        *,
        is_last: bool = False,
        observed_queries: Mapping[Observer, slice] | None = None,
    ) -> ForwardOutput:
        """Reads more tokens.

        Args:
            ids: The tokens that come next, int64 `[1, count]`.
            queries: The queries of these tokens whose attention is kept.
            num_logits: For how many of these tokens, counted from the last, logits are wanted.
            is_last: Whether no tokens will be read after these.
            observed_queries: The queries whose rows each observer gets. None: the last.

        A model that gives whole matrices instead of rows reads tokens one by one. Unless `is_last`, it can give only
        the attention and the logits of the last token. Raises ValueError where more is asked of it.
        """
        if not self._captures_rows and not is_last:
            if queries not in (LAST_QUERY, NO_QUERIES) or num_logits > 1:
                raise ValueError("queries, num_logits: at most the last token's, since tokens are read one by one")
            # FSMT masks the future only without a cache: with a cache, it must not see more than one token.
            for position in range(ids.shape[1] - 1):
                self._forward(ids[:, position : position + 1], NO_QUERIES, 1, {}, is_last=False)
            ids = ids[:, -1:]
        if observed_queries is None:
            observed_queries = dict.fromkeys(self._observed, LAST_QUERY)
        return self._forward(ids, queries, num_logits, observed_queries, is_last=is_last)

    def _forward(
        self, ids: Tensor, queries: slice, num_logits: int, observed: Mapping[Observer, slice], *, is_last: bool
    ) -> ForwardOutput:
        self.num_read += ids.shape[1]
        positions: dict[AttentionKind, int] = {"cross": self.source_length, "decoder_self": self.num_read}
        recorder = self._new_recorder(self._plan, queries, positions)
        observers: dict[Observer, PassRecorder] = {
            name: self._new_recorder(self._observed[name], kept, positions) for name, kept in observed.items()
        }
        inputs: dict[str, Any] = {cache_argument(self._model): self._cache, "use_cache": not is_last}
        if self._is_encoder_decoder:
            if takes_whole_target(self._model):
                ids = ids if self._target_ids is None else torch.cat([self._target_ids, ids], 1)
                self._target_ids = ids
            inputs |= {
                "decoder_input_ids": ids,
                "encoder_outputs": self.encoder_outputs,
                **self._mask,
            }
            if not self._captures_rows:
                # The encoder does not read the source again; but FSMT masks a target's future only where the decoder
                # is given the source's ids.
                inputs |= source_inputs(self._source)
        else:
            inputs["input_ids"] = ids
        if self._keeps_logits:
            inputs["logits_to_keep"] = num_logits
        recorders = [recorder, *observers.values()]
        output = run_pass(
            self._model, recorders, ("cross", "decoder_self"), captures_rows=self._captures_rows, **inputs
        )
        self._cache = None if is_last else cache_of(output)
        cross, decoder_self = recorder.result("cross"), recorder.result("decoder_self")
        return ForwardOutput(output.logits[0, -num_logits:], cross, decoder_self, list_observed(observers))


def _combine(
    parts: Iterator[AttentionArrays], combiner: RowCombiner | None, left_out: Mapping[AttentionKind, Tensor]
) -> Iterator[AttentionArrays] | None:
    """Gives the encoder's rows to the combiner, which needs all. Returns its rows; None if none are sent."""
    if combiner is None:
        return parts
    rows = np.concatenate([part.values for part in parts])
    attention = combiner.read_source(AttentionArrays(rows), left_out)
    return None if attention is None else iter([attention])


def _divide_source(plan: CapturePlan, length: int) -> Iterator[slice]:
    """Divides the queries of the encoder into parts of a bounded number of bytes."""
    size = max(1, MAX_PART_BYTES // max(1, plan.row_bytes("encoder_self", length)))
    return (slice(begin, min(begin + size, length)) for begin in range(0, length, size))


def _make_mask(source: Tensor, *, captures_rows: bool) -> dict[str, Tensor]:
    # A single source without padding needs no mask, and to look whether a mask hides anything waits for the device.
    # Recordings have no padding at all.
    has_mask = not captures_rows and source.dim() == 2
    return {"attention_mask": torch.ones_like(source)} if has_mask else {}


def _left_out_of(
    plan: CapturePlan, special: SpecialPositions | None, positions: dict[AttentionKind, int], device: torch.device
) -> dict[AttentionKind, Tensor]:
    """The positions that the rows of a pass leave out, bool `[1, positions]` by kind."""
    return special.masks(positions, device) if special is not None and plan.leaves_out_special else {}


def _read_parts(
    parts: Iterator[AttentionTensors], states: Tensor, plan: CapturePlan, *, check: bool
) -> Iterator[AttentionArrays]:
    """Copies parts of the encoder's self-attention to the host, one after the other. Raises RequestError.

    `states` are the encoder's states: where attention is NaN, so are they; the rows' encoding may hide it.
    """
    are_finite = states.isfinite().all()[None]

    def read() -> Iterator[AttentionArrays]:
        for tensors in parts:
            finite, *arrays = to_host([are_finite, *list_tensors(tensors)])
            attention = build_arrays(tensors, arrays, plan.shape("encoder_self"))
            assert attention is not None
            if check and not (finite[0] and attention.is_finite()):
                raise not_a_number()
            yield attention

    return read()
