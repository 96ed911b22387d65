"""What the CPU programs of BART-style models share: embeddings, layers' weights, what is around attention, rows.

The classes here collect the weights of a layer. They raise UnsupportedModelError for a part that no program has.
`find_attention_layers` has given each attention module its `LayerKey`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.activations import GELUActivation, SiLUActivation

from ...kernels import LayerSpec
from ...kernels.cpu import (
    MAX_HEAD_WIDTH,
    MAX_POSITIONS,
    Activation,
    HeadSum,
    PackedWeight,
    Program,
    is_supported,
    store_rows,
    sum_heads,
)
from ..capture import LayerKey, RecordTarget, layer_key_of
from ..layers import FusedSlice, PackedLinear
from .backend import UnsupportedModelError
from .bart_modules import Embedding, heads_of, is_pre_norm

_ACTIVATIONS: dict[type, Activation] = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    SiLUActivation: "silu",
    GELUActivation: "gelu",
}

_POSITIONS = np.arange(MAX_POSITIONS)


def check_stack(stack: Any) -> None:
    """Raise UnsupportedModelError unless an encoder or decoder may run as a program once its weights are in panels."""
    if getattr(stack, "dtype", None) != torch.float32 or stack.device.type != "cpu" or not is_supported():
        raise UnsupportedModelError("programs are for CPUs with AVX2, and for float32 and int8")
    heads, _ = heads_of(stack)
    if stack.config.d_model // heads > MAX_HEAD_WIDTH:
        raise UnsupportedModelError("heads too wide for programs")


class TokenRows:
    """The input of a program for whole sequences: their tokens, one sequence behind the other, without padding."""

    def __init__(self, program: Program, embedding: Embedding, num_rows: int, num_positions: int, out: Tensor) -> None:
        """Adds the embedding of at most `num_rows` tokens, at positions below `num_positions`."""
        ids, self.positions = torch.zeros(2, num_rows, dtype=torch.int64)
        self._ids, self._numpy_positions = ids.numpy(), self.positions.numpy()
        self._placeless_id = embed_tokens(program, embedding, ids[:, None], self.positions, num_positions, out)

    def place(self, begin: int, ids: NDArray[np.int64]) -> None:
        """Writes the tokens of a sequence, whose first row is `begin`."""
        rows = slice(begin, begin + len(ids))
        self._ids[rows] = ids
        if self._placeless_id is None or self._placeless_id not in ids:
            self._numpy_positions[rows] = _POSITIONS[: len(ids)]
        else:
            self._numpy_positions[rows] = np.maximum(np.cumsum(ids != self._placeless_id) - 1, 0)

    def place_all(self, ids: Tensor, lengths: Sequence[int]) -> int:
        """Writes the tokens of sequences, `[B, S]`, without their padding. Returns the number of rows."""
        begin = 0
        for row, length in zip(ids.numpy(), lengths, strict=True):
            self.place(begin, row[:length])
            begin += length
        return begin


def embed_tokens(
    program: Program, embedding: Embedding, ids: Tensor, positions: Tensor, num_positions: int, out: Tensor
) -> int | None:
    """Embed tokens `[rows, 1]` at `positions`, which are below `num_positions`: int64, one for each row.

    Returns the token that takes no position, if there is one: padding, in some families (M2M100).
    """
    table = embedding.table
    places = torch.arange(num_positions)[:, None]
    padding = table.padding_idx
    token = 0 if padding != 0 else 1  # any token that is no padding
    of_tokens = embedding.positions(torch.full_like(places, token), places)[:, 0].float().contiguous()
    special: tuple[int, Tensor] | None = None
    if padding is not None:
        of_padding = embedding.positions(torch.full_like(places, padding), places)[:, 0].float().contiguous()
        special = None if torch.equal(of_padding, of_tokens) else (padding, of_padding)
    # The tables of some families multiply what they return.
    scale = float(getattr(table, "embed_scale", 1.0)) * embedding.scale
    program.embed(ids, table.weight.detach(), scale, of_tokens, positions, out, special=special)
    if embedding.norm is not None:
        _normalize(program, embedding.norm, out, out)
    return None if special is None else special[0]


def _layer_key(module: nn.Module) -> LayerKey:
    layer_key = layer_key_of(module)
    if layer_key is None:
        raise UnsupportedModelError("attention without a layer key")
    return layer_key


class FeedForward:
    """The weights of the feed-forward part of a layer."""

    def __init__(self, layer: Any) -> None:
        self.norm = _layer_norm(layer.final_layer_norm)
        self.widen, self.narrow = _panels(layer.fc1), _panels(layer.fc2)
        activation = _ACTIVATIONS.get(type(layer.activation_fn))
        if activation is None:
            raise UnsupportedModelError("an activation that no program has")
        self.activation: Activation = activation


class EncoderLayer:
    """The weights of an encoder layer."""

    def __init__(self, layer: Any) -> None:
        self.own_norm = _layer_norm(layer.self_attn_layer_norm)
        self.project, self.own_output = fused_panels(layer.self_attn.q_proj), _panels(layer.self_attn.out_proj)
        self.own_key = _layer_key(layer.self_attn)
        self.feed_forward = FeedForward(layer)


class DecoderLayer(EncoderLayer):
    """The weights of a decoder layer: those of an encoder layer, and of cross-attention."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.source_norm = _layer_norm(layer.encoder_attn_layer_norm)
        self.source_query = _panels(layer.encoder_attn.q_proj)
        self.source_output = _panels(layer.encoder_attn.out_proj)
        self.source_key = _layer_key(layer.encoder_attn)


class StackBuilder:
    """Adds the operations around attention to a program, from one part of a layer to the next."""

    def __init__(self, program: Program, stack: Any) -> None:
        """`stack` is the model's encoder or decoder."""
        self._program = program
        self._is_pre_norm = is_pre_norm(stack.layers[0])
        self._final_norm: nn.LayerNorm | None = getattr(stack, "layer_norm", None)
        self.width = int(stack.config.d_model)
        self.hidden, self.attended = program.buffer(self.width), program.buffer(self.width)
        self._next, self._normalized = program.buffer(self.width), program.buffer(self.width)
        self._wide = program.buffer(max(layer.fc1.out_features for layer in stack.layers))

    def input_of(self, norm: nn.LayerNorm) -> Tensor:
        """The buffer that the next part of a layer reads."""
        if not self._is_pre_norm:
            return self.hidden
        _normalize(self._program, norm, self.hidden, self._normalized)
        return self._normalized

    def add_attention(self, norm: nn.LayerNorm, output: PackedWeight) -> None:
        """Project what attention has left in `attended`, and add it to the hidden state."""
        self._add(norm, self.attended, output)

    def add_feed_forward(self, feed_forward: FeedForward) -> None:
        """Run the feed-forward part, and add its output to the hidden state."""
        wide = self._wide[:, : feed_forward.widen.out_features]
        hidden = self.input_of(feed_forward.norm)
        self._program.matmul(hidden, feed_forward.widen, wide, activation=feed_forward.activation)
        self._add(feed_forward.norm, wide, feed_forward.narrow)

    def end(self) -> Tensor:
        """The output of all layers."""
        if self._final_norm is None:
            return self.hidden
        _normalize(self._program, _layer_norm(self._final_norm), self.hidden, self._normalized)
        return self._normalized

    def _add(self, norm: nn.LayerNorm, x: Tensor, weight: PackedWeight) -> None:
        self._program.matmul(x, weight, self._next, added=self.hidden)
        if self._is_pre_norm:
            self.hidden, self._next = self._next, self.hidden
        else:
            _normalize(self._program, norm, self._next, self.hidden)


def _layer_norm(norm: Any) -> nn.LayerNorm:
    if type(norm) is not nn.LayerNorm or norm.weight is None or norm.bias is None:
        raise UnsupportedModelError("a norm that no program has")
    return norm


def _panels(layer: Any) -> PackedWeight:
    panels = layer.panels if isinstance(layer, PackedLinear) else None
    if panels is None:
        raise UnsupportedModelError("weights that are not in panels")
    return panels


def fused_panels(layer: Any) -> PackedWeight:
    """The weights of the fused projections that a layer is a part of."""
    if not isinstance(layer, FusedSlice):
        raise UnsupportedModelError("projections that are not fused")
    return _panels(layer.fused.linear)


def _normalize(program: Program, norm: nn.LayerNorm, x: Tensor, out: Tensor) -> None:
    program.layer_norm(x, norm.weight.detach(), norm.bias.detach(), norm.eps, out)


# ---- rows -----------------------------------------------------------------------------------------------------------


class Epilogue:
    """The operations behind a program that write attention rows where a recorder wants them, for one run.

    Must exist until the run has ended: operations hold addresses only.

    Attributes:
        operations: The operations in order, `[n, fields]` each.
    """

    def __init__(self) -> None:
        self.operations: list[NDArray[np.int64]] = []
        self._kept: list[tuple[Tensor | None, HeadSum | None]] = []  # what the operations have the addresses of

    @property
    def table(self) -> NDArray[np.int64] | None:
        """All operations; None where there are none."""
        return np.concatenate(self.operations) if self.operations else None

    def add(
        self, target: RecordTarget, probabilities: Tensor, rows: Tensor | None, visible: int, *, is_cross: bool
    ) -> bool:
        """Adds the operation that writes `visible` positions of some rows into a target.

        Returns whether there is one: rows that are packed or that have factors need more, and so do reductions that are
        no sums.

        Args:
            target: Where the rows go.
            probabilities: `[rows, heads, positions]`, of the program.
            rows: Which rows are written, int64 `[B]` or `[B, queries]`; None: all.
            visible: The number of positions.
            is_cross: Whether the probabilities are those of cross-attention.
        """
        result, part = target.tensors, target.layer_spec
        if not result.is_dense_float or result.values.dtype != torch.float32 or result.length != visible:
            return False
        if target.factors is not None:
            return False
        values = result.values.flatten(0, 1)[:, None]  # a query after the other, as rows are
        index = None if rows is None else rows.flatten()
        heads: HeadSum | None = None
        if part.over_heads is None:
            if target.left_out is not None or part.heads is not None or part.columns is not None:
                return False
            operation = store_rows(probabilities, values, part.column, index, is_cross=is_cross)
        else:
            heads = _sum_of(part, probabilities.shape[1])
            if heads is None:
                return False
            left_out = target.left_out
            if left_out is not None and (num_queries := result.values.shape[1]) > 1:
                left_out = left_out.repeat_interleave(num_queries, 0)
            operation = sum_heads(
                probabilities,
                values,
                part.column,
                index,
                heads,
                is_cross=is_cross,
                is_added=part.pools_layers and not part.is_first,
                left_out=left_out,
                shares=None if result.shares is None else result.shares.flatten(0, 1)[:, None],
            )
            self._kept.append((left_out, heads))
        self._kept.append((index, None))
        self.operations.append(operation[None])
        return True


@lru_cache(maxsize=256)
def _sum_of(part: LayerSpec, num_heads: int) -> HeadSum | None:
    """What a layer contributes as a weighted sum of its heads; None for reductions that are no sums."""
    if part.over_heads not in ("mean", "sum") or part.over_layers not in (None, "mean", "sum"):
        return None
    numbers = range(num_heads) if part.heads is None else part.heads
    divisor = part.mean_divisor(num_heads) if part.over_heads == "mean" else 1.0
    num_shares = part.num_pooled_heads if part.pools_all_heads else len(numbers)
    if part.pools_layers and not part.pools_all_heads:
        divisor *= part.num_layers if part.over_layers == "mean" else 1
        num_shares *= part.num_layers
    factors = np.array(part.weights or [1.0] * len(numbers)) / divisor
    return HeadSum(np.array(numbers, np.int64), factors.astype(np.float32), 1 / num_shares)
