"""The Backend protocol: one way to run the forward passes of a model over the slots of a KV cache.

A backend knows the model and the KV cache. It knows neither requests nor texts. `backend_selection` chooses the backend
of a model at load. A new way to run models is one class with the members of `BackendType` and `Backend`, in one new
file, and one line in `backend_selection.BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from ..capture import LayerKey
from ..layers import ArgmaxQuery, LMHead
from .kv_cache import KVCache


class UnsupportedModelError(Exception):
    """A backend cannot run a model. The message names the part of the model that the backend does not know."""


class BackendConfig(NamedTuple):
    """What a backend is made for, besides the model."""

    max_source_tokens: int
    max_target_tokens: int
    # Whether each row of a batch must have the bits that it has when it is computed alone.
    is_batch_invariant: bool = False


class TargetBatch(NamedTuple):
    """Whole sequences that one pass reads, each row padded behind its end."""

    sources: Tensor | None  # tokens int64 `[B, S]`, or features of recordings; None for a model without an encoder
    source_lengths: Sequence[int]  # of each row: positions of the source that are no padding
    targets: Tensor  # int64 `[B, T]`: what the decoder reads
    lengths: Sequence[int]  # of each row: tokens of the target that are no padding
    # The last attention whose rows are wanted, where the output of the decoder is not; None: the output is wanted.
    last_attention: LayerKey | None = None
    # The KV cache that keeps the keys and values of source and target, and the slot of each row; None: they are lost.
    cache: KVCache | None = None
    slots: Sequence[int] = ()

    @property
    def is_padded(self) -> bool:
        """Whether any row has padding."""
        return len({*self.lengths}) > 1 or len({*self.source_lengths}) > 1


class BackendType(Protocol):
    """The class of a backend, as `BACKENDS` holds it and the loader uses it."""

    __name__: str

    def __call__(self, model: PreTrainedModel, config: BackendConfig, lm_head: LMHead | None) -> Backend:
        """Prepare to run `model`.

        `lm_head` is the model's output projection; None if the model does more to its logits than `LMHead` knows.
        Raises UnsupportedModelError for a part that the backend does not know.
        """
        ...

    def supports(self, model: PreTrainedModel) -> bool:
        """Whether the backend is written for models of this family, type and device. Runs no forward pass."""
        ...

    def reads_panels(self, model: PreTrainedModel) -> bool:
        """Whether the backend reads the weights of linear layers in panels. The loader then packs each layer so."""
        ...


class Backend(Protocol):
    """One way to run a model. For one thread, in torch's inference mode.

    The model runner calls the methods in this order:

    1. `new_kv_cache`, once.
    2. For each request of an encoder-decoder model `prefill_sources`.
    3. For all tokens before the first new one, but for the last, in chunks: `KVCache.begin_prefill`, then `prefill`.
    4. For each step of all slots: `KVCache.begin_decode`, then `decode`, then `KVCache.advance`.

    `read_targets` and `encode` may come at any time. They need no KV cache; `read_targets` fills slots where the batch
    says so.
    """

    # Whether steps must have one shape: all slots, and as many positions as `lengths` says.
    is_compiled: ClassVar[bool]
    # Whether a step that records the rows of some slots takes no longer than one that records the rows of all.
    writes_selected_rows: ClassVar[bool]

    @property
    def lm_head(self) -> LMHead | None:
        """The output projection that `decode` leaves out; None if `decode` returns logits."""
        ...

    @property
    def lengths(self) -> tuple[int, int]:
        """The number of positions of a slot for the target and for the source; 0 for a model without an encoder."""
        ...

    @property
    def max_prefill_tokens(self) -> int:
        """How many source tokens, padding included, fill a pass of the encoder: more together are no faster."""
        ...

    @property
    def is_batch_invariant(self) -> bool:
        """Whether each row of a batch has the bits that it has when it is computed alone."""
        ...

    @property
    def bytes_per_slot(self) -> int:
        """The size of one slot of the KV cache."""
        ...

    def cache_bytes(self, length: int, source_length: int) -> int:
        """The size of the keys and values of a sequence with `length` target and `source_length` source positions."""
        ...

    def new_kv_cache(self, count: int, length: int | None = None) -> KVCache:
        """A KV cache of `count` slots with `length` positions of target and source; None: as many as `lengths`."""
        ...

    def encode(self, sources: Tensor, lengths: Sequence[int]) -> Tensor:
        """The encoder's output `[B, S, width]` for sources as `prefill_sources` takes them.

        `lengths[row]` positions are no padding. The output at padding has no meaning.
        """
        ...

    def prefill_sources(self, sources: Tensor, lengths: Mapping[int, int], cache: KVCache) -> None:
        """Encode sources and store the keys and values of cross-attention.

        `sources` are tokens int64 `[B, S]`, or features of recordings `[B, bins, frames]`. `lengths` maps the slot of
        each row, in the order of the rows, to the number of positions that are no padding.
        """
        ...

    def prefill(self, ids: Tensor, cache: KVCache) -> None:
        """Read tokens `[1, count]` into the slot, and at the positions, that `KVCache.begin_prefill` named."""
        ...

    def decode(self, tokens: Tensor, cache: KVCache, query: ArgmaxQuery | None = None) -> Tensor:
        """Run one token `[n, 1]` for each slot that `KVCache.begin_decode` named, and record its attention rows.

        The rows go where `capture.record_targets` says: `capture.attend` writes them, and so does
        `capture.write_step_rows` for a backend that computes probabilities itself.

        Returns the input of `lm_head`, `[n, width]`, or, without an `lm_head`, logits `[n, vocabulary]`. The tensor
        stays as it is until the next step. With a `query`, the argmax of each row has been found on return.
        """
        ...

    def read_targets(self, batch: TargetBatch) -> Tensor | None:
        """Run encoder and decoder over whole sequences, and record their attention rows as `decode` does.

        Stores keys and values in the slots of the batch, if there are any; the runner calls `KVCache.end_read` then.
        Returns the input of `lm_head`, `[B, T, width]`, or, without an `lm_head`, logits `[B, T, vocabulary]`. None
        where the batch names a last attention: nothing behind this attention is computed.
        """
        ...
