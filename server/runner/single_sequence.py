"""A model over one sequence, by the model's own modules and with a cache of its own: logits and captured attention.

Knows models, caches and tensors on the device; does not know texts, or which token comes next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels import AttentionTensors
from ..capture import (
    AttentionArrays,
    AttentionKind,
    CapturePlan,
    PassRecorder,
    SourceRecorder,
    build_arrays,
    list_tensors,
    matrices_of,
    observe_with,
    record_to,
    source_inputs,
)
from ..errors import not_a_number
from ..models import LoadedModel
from ..request import MAX_PART_BYTES, Request, SourceFeatures
from ..transfer import to_host
from ..transformers_versions import cache_argument, cache_of, takes_whole_target

NO_QUERIES = slice(0, 0)
LAST_QUERY = slice(-1, None)


@dataclass(frozen=True)
class ForwardOutput:
    """What one forward pass of the decoder gave, on its device.

    `logits` is `[tokens, vocabulary]`; the attentions have a row for each query kept, and are None if not captured.
    """

    logits: Tensor
    cross: AttentionTensors | None
    decoder_self: AttentionTensors | None

    @property
    def tensors(self) -> list[Tensor]:
        """The attentions' tensors, to copy to the host."""
        return [*list_tensors(self.cross), *list_tensors(self.decoder_self)]

    def attention(
        self, arrays: Sequence[NDArray[Any]], plan: CapturePlan
    ) -> tuple[AttentionArrays | None, AttentionArrays | None]:
        """The attentions, from the copies of `tensors` on the host: cross and decoder self, of all queries kept."""
        count = len(list_tensors(self.cross))
        cross = build_arrays(self.cross, arrays[:count], plan.shape("cross")) if self.cross else None
        own = build_arrays(self.decoder_self, arrays[count:], plan.shape("decoder_self")) if self.decoder_self else None
        return cross, own


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
    ) -> None:
        """`context_ids` are what the decoder reads between source and step 0: start token and prefix.

        `features` are the source of a speech model; `source_ids` are empty then.
        """
        self._model: Any = loaded.model
        self._captures_rows = loaded.attention_layers.captures_rows
        self._plan = plan
        encoded = loaded.is_encoder_decoder
        self.source_length = (features.num_positions if features else len(source_ids)) if encoded else 0
        self._source = self.tensor(source_ids) if features is None else features_tensor(features, self._model)
        self._encoder_outputs: Any = None
        self._cache: Any = None
        self._is_encoder_decoder = loaded.is_encoder_decoder
        self._keeps_logits = loaded.takes_logits_to_keep
        self.prompt = list(context_ids) if loaded.is_encoder_decoder else [*source_ids, *context_ids]
        self.num_read = 0  # tokens that the decoder has read
        self._target_ids: Tensor | None = None  # tokens read, of models that want all at each pass

    @classmethod
    def of_request(cls, loaded: LoadedModel, request: Request) -> SingleSequenceModel:
        """The sequence of a request, before any pass."""
        return cls(loaded, request.capture, request.source.ids, request.decoder_prompt_ids, request.features)

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
        inputs = source_inputs(self._source) | self._mask()
        if not self._captures_rows:
            recorder = PassRecorder(self._plan, NO_QUERIES, {"encoder_self": self.source_length})
            self._encoder_outputs = self._run(self._model.get_encoder(), recorder, ("encoder_self",), **inputs)
            tensors = recorder.result("encoder_self")
            return None if tensors is None else self._read_parts(iter([tensors]), check=check)
        source = SourceRecorder(self._plan, self.source_length) if "encoder_self" in self._plan.kinds else None
        with record_to(None, padded=False), nullcontext() if source is None else observe_with(source):
            self._encoder_outputs = self._model.get_encoder()(**inputs)
        if source is None:
            return None
        length = self.source_length
        size = max(1, MAX_PART_BYTES // max(1, self._plan.row_bytes("encoder_self", length)))
        parts = (slice(begin, min(begin + size, length)) for begin in range(0, length, size))
        return self._read_parts(map(source.compute, parts), check=check)

    def _read_parts(self, parts: Iterator[AttentionTensors], *, check: bool) -> Iterator[AttentionArrays]:
        """Copies parts of the encoder's self-attention to the host, one after the other. Raises RequestError."""
        # Where attention is NaN, so are the encoder's states; the rows' encoding may hide it.
        are_finite = self._encoder_outputs.last_hidden_state.isfinite().all()[None]
        plan = self._plan

        def read() -> Iterator[AttentionArrays]:
            for tensors in parts:
                finite, *arrays = to_host([are_finite, *list_tensors(tensors)])
                attention = build_arrays(tensors, arrays, plan.shape("encoder_self"))
                assert attention is not None
                if check and not (finite[0] and attention.is_finite()):
                    raise not_a_number()
                yield attention

        return read()

    def forward(self, ids: Tensor, queries: slice, num_logits: int, *, is_last: bool = False) -> ForwardOutput:
        """Reads more tokens.

        Args:
            ids: The tokens that come next, int64 `[1, count]`.
            queries: The queries of these tokens whose attention is kept.
            num_logits: For how many of these tokens, counted from the last, logits are wanted.
            is_last: Whether no tokens will be read after these.

        A model that gives whole matrices instead of rows reads tokens one by one. Unless `is_last`, it can give only
        the attention and the logits of the last token. Raises ValueError where more is asked of it.
        """
        if not self._captures_rows and not is_last:
            if queries not in (LAST_QUERY, NO_QUERIES) or num_logits > 1:
                raise ValueError("queries, num_logits: at most the last token's, since tokens are read one by one")
            # FSMT masks the future only without a cache: with a cache, it must not see more than one token.
            for position in range(ids.shape[1] - 1):
                self._forward(ids[:, position : position + 1], NO_QUERIES, 1, is_last=False)
            ids = ids[:, -1:]
        return self._forward(ids, queries, num_logits, is_last=is_last)

    def _forward(self, ids: Tensor, queries: slice, num_logits: int, *, is_last: bool) -> ForwardOutput:
        self.num_read += ids.shape[1]
        recorder = PassRecorder(self._plan, queries, {"cross": self.source_length, "decoder_self": self.num_read})
        inputs: dict[str, Any] = {cache_argument(self._model): self._cache, "use_cache": not is_last}
        if self._is_encoder_decoder:
            if takes_whole_target(self._model):
                ids = ids if self._target_ids is None else torch.cat([self._target_ids, ids], 1)
                self._target_ids = ids
            inputs |= {"decoder_input_ids": ids, "encoder_outputs": self._encoder_outputs, **self._mask()}
            if not self._captures_rows:
                # The encoder does not read the source again; but FSMT masks a target's future only where the decoder
                # is given the source's ids.
                inputs |= source_inputs(self._source)
        else:
            inputs["input_ids"] = ids
        if self._keeps_logits:
            inputs["logits_to_keep"] = num_logits
        output = self._run(self._model, recorder, ("cross", "decoder_self"), **inputs)
        self._cache = None if is_last else cache_of(output)
        logits = output.logits[0, -num_logits:]
        return ForwardOutput(logits, recorder.result("cross"), recorder.result("decoder_self"))

    def _mask(self) -> dict[str, Tensor]:
        # A single source without padding needs no mask, and to look whether a mask hides anything waits for the device.
        # Recordings have no padding at all.
        has_mask = not self._captures_rows and self._source.dim() == 2
        return {"attention_mask": torch.ones_like(self._source)} if has_mask else {}

    def _run(self, module: Any, recorder: PassRecorder, kinds: tuple[AttentionKind, ...], **inputs: Any) -> Any:
        """Runs a forward pass, and records what the plan captures of these kinds."""
        if self._captures_rows:
            with record_to(recorder, padded=False):
                return module(**inputs)
        output = module(**inputs, output_attentions=True)
        matrices = {"encoder_self": list(output.attentions)} if kinds == ("encoder_self",) else matrices_of(output)
        recorder.record_matrices({kind: matrices[kind] for kind in kinds if kind in matrices})
        return output
