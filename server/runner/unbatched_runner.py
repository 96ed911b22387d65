"""A model reading one sequence, and what each forward pass gives: logits, and the attention that a plan captures.

Knows models, caches and results on the device; does not know texts, or which token comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels import AttentionTensors
from ..capture.arrays import AttentionArrays, are_finite, numbers_of, tensors_of, to_host
from ..capture.attention_function import AttentionKind, record_to
from ..capture.attention_layers import matrices_of
from ..capture.plan import CapturePlan, PassRecorder
from ..errors import not_a_number
from ..models.loader import LoadedModel
from ..transformers_versions import cache_argument, cache_of, takes_whole_target

NO_QUERIES = slice(0, 0)
LAST_QUERY = slice(-1, None)


@dataclass(frozen=True)
class ForwardOutput:
    """What one forward pass of the decoder gave, on its device.

    `logits` is `[queries kept, lm_head]`; the attentions have a row for each query kept, None if not captured.
    """

    logits: Tensor
    cross: AttentionTensors | None
    decoder_self: AttentionTensors | None

    @property
    def tensors(self) -> list[Tensor]:
        """The attentions, to be fetched."""
        return [*tensors_of(self.cross), *tensors_of(self.decoder_self)]

    def attention(
        self, arrays: Sequence[NDArray[Any]], plan: CapturePlan
    ) -> tuple[AttentionArrays | None, AttentionArrays | None]:
        """The attentions of `tensors` once fetched: cross and decoder self, of all queries kept."""
        count = len(tensors_of(self.cross))
        cross = numbers_of(self.cross, arrays[:count], plan.shape("cross")) if self.cross else None
        own = numbers_of(self.decoder_self, arrays[count:], plan.shape("decoder_self")) if self.decoder_self else None
        return cross, own


class UnbatchedRunner:
    """A model reading one sequence: its encoder's output, its cache, and how far it is."""

    def __init__(
        self, loaded: LoadedModel, plan: CapturePlan, source_ids: Sequence[int], context_ids: Sequence[int]
    ) -> None:
        """`context_ids` are what the decoder reads between source and step 0: start token and prefix."""
        self._model: Any = loaded.model
        self._by_rows = loaded.attention_layers.captures_rows
        self._plan = plan
        self._source = source_ids
        self._source_ids = self.tensor(self._source)
        self._encoder_outputs: Any = None
        self._cache: Any = None
        self._is_encoder_decoder = loaded.is_encoder_decoder
        self._keeps_logits = loaded.takes_logits_to_keep
        self.context = list(context_ids) if loaded.is_encoder_decoder else [*source_ids, *context_ids]
        self.position = 0
        self._target_ids: Tensor | None = None  # read so far, where the model wants them again

    def tensor(self, ids: Sequence[int]) -> Tensor:
        """Ids as a batch of one."""
        return torch.tensor([ids], device=self._model.device)

    @property
    def encoded(self) -> Tensor:
        """What the encoder gave, `[1, S, width]`."""
        return self._encoder_outputs.last_hidden_state

    def read_source(self, *, check: bool = True) -> AttentionArrays | None:
        """Runs the encoder, if there is one. Returns its self-attention, if captured.

        Raises RequestError where that is NaN or infinite, unless `check` is False.
        """
        if not self._is_encoder_decoder:
            return None
        rows = PassRecorder(self._plan, NO_QUERIES, {"encoder_self": len(self._source)})
        self._encoder_outputs = self._run(
            self._model.get_encoder(), rows, ("encoder_self",), input_ids=self._source_ids, **self._mask()
        )
        result = rows.result("encoder_self")
        if result is None:
            return None
        # Where rows are NaN, so is what the encoder makes of them, however the rows are encoded.
        finite, *arrays = to_host([self.encoded.isfinite().all()[None], *tensors_of(result)])
        numbers = numbers_of(result, arrays, self._plan.shape("encoder_self"))
        if check and (not finite[0] or (numbers is not None and not are_finite(numbers))):
            raise not_a_number()
        return numbers

    def read(self, ids: Tensor, queries: slice, logits: int, *, last: bool = False) -> ForwardOutput:
        """Reads more tokens.

        Args:
            ids: The tokens that come next, `[1, count]`.
            queries: Which of them are queries whose attention is kept.
            logits: For how many of them, from the last, logits are wanted.
            last: Whether nothing will be read after them.

        Raises ValueError where more than the last token's attention or logits are wanted of a model that gives matrices
        instead of rows, unless these tokens are the last: it reads them one by one.
        """
        if not self._by_rows and not last:
            if queries not in (LAST_QUERY, NO_QUERIES) or logits > 1:
                raise ValueError("queries, logits: must be the last token's at most, as tokens are read one by one")
            # FSMT masks the future only where it keeps no cache: with one, it must not see more than one token.
            for place in range(ids.shape[1] - 1):
                self._read(ids[:, place : place + 1], NO_QUERIES, 1, last=False)
            ids = ids[:, -1:]
        return self._read(ids, queries, logits, last=last)

    def _read(self, ids: Tensor, queries: slice, logits: int, *, last: bool) -> ForwardOutput:
        self.position += ids.shape[1]
        rows = PassRecorder(self._plan, queries, {"cross": len(self._source), "decoder_self": self.position})
        inputs: dict[str, Any] = {cache_argument(self._model): self._cache, "use_cache": not last}
        if self._is_encoder_decoder:
            if takes_whole_target(self._model):
                ids = ids if self._target_ids is None else torch.cat([self._target_ids, ids], 1)
                self._target_ids = ids
            inputs |= {"decoder_input_ids": ids, "encoder_outputs": self._encoder_outputs, **self._mask()}
            if not self._by_rows:
                # Read already, and not read again; but FSMT masks a target's future only where it sees the source.
                inputs["input_ids"] = self._source_ids
        else:
            inputs["input_ids"] = ids
        if self._keeps_logits:
            inputs["logits_to_keep"] = logits
        output = self._run(self._model, rows, ("cross", "decoder_self"), **inputs)
        self._cache = None if last else cache_of(output)
        return ForwardOutput(output.logits[0, -logits:], rows.result("cross"), rows.result("decoder_self"))

    def _mask(self) -> dict[str, Tensor]:
        # One source without padding needs no mask, and looking whether a mask hides anything waits for the device.
        return {} if self._by_rows else {"attention_mask": torch.ones_like(self._source_ids)}

    def _run(self, module: Any, rows: PassRecorder, kinds: tuple[AttentionKind, ...], **inputs: Any) -> Any:
        """A forward pass that leaves what is captured of these kinds in `rows`."""
        if self._by_rows:
            with record_to(rows, padded=False):
                return module(**inputs)
        output = module(**inputs, output_attentions=True)
        matrices = {"encoder_self": list(output.attentions)} if kinds == ("encoder_self",) else matrices_of(output)
        rows.record_matrices({kind: matrices[kind] for kind in kinds if kind in matrices})
        return output
