"""`AttentionParams`: what decides attention probabilities besides queries and keys; checks of queries and keys."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

INPUTS = (torch.float32, torch.float16, torch.bfloat16)


class AttentionParams(NamedTuple):
    """softmax(cap(q k^T * scale + bias) + mask), over the keys that a query may see.

    cap(x) is softcap * tanh(x / softcap), where there is a softcap (Gemma 2, arXiv:2408.00118). The relative positions
    of T5 are a bias. A query that may see no key has a row of zeros.
    """

    scale: float
    softcap: float | None = None
    bias: Tensor | None = None  # added before the cap: [1 or B, 1 or H, 1 or T, S]
    mask: Tensor | None = None  # bool (True: may see) or additive: [1 or B, 1 or H, 1 or T, S]
    causal: bool = False  # query t sees keys up to first_position + t
    first_position: int = 0  # the position of query 0 among the keys
    no_empty_rows: bool = False  # the caller promises that every query sees a key: empty rows need no handling

    def for_queries(self, queries: slice) -> AttentionParams:
        """Returns the parameters of a slice of the queries, which has begin and end."""
        bias, mask = select_queries(self.bias, queries), select_queries(self.mask, queries)
        return self._replace(bias=bias, mask=mask, first_position=self.first_position + queries.start)

    def without(self, left_out: Tensor) -> AttentionParams:
        """Returns the parameters that hide some keys too, bool `[1 or B, S]`."""
        hidden, mask = left_out[:, None, None], self.mask
        if mask is None:
            mask = ~hidden
        else:
            mask = mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, float("-inf"))
        return self._replace(mask=mask, no_empty_rows=False)

    def for_row(self, row: int, keys: int) -> AttentionParams:
        """Returns the parameters of one row of the batch, which sees only the first keys."""
        bias, mask = (
            tensor if tensor is None else tensor[slice(row, row + 1) if len(tensor) > 1 else slice(None), ..., :keys]
            for tensor in (self.bias, self.mask)
        )
        return self._replace(bias=bias, mask=mask)


def select_queries(tensor: Tensor | None, queries: slice) -> Tensor | None:
    """Returns a slice of the queries of a mask or a bias, `[1 or B, 1 or H, 1 or T, S]`."""
    return tensor if tensor is None or tensor.shape[2] == 1 else tensor[:, :, queries]


def check_attention_params(params: AttentionParams, query: Tensor, keys: int) -> None:
    """Raises ValueError where masks and biases do not fit queries and keys. The message begins with the argument."""
    full = (query.shape[0], query.shape[1], query.shape[2], keys)
    for name in ("bias", "mask"):
        tensor: Tensor | None = getattr(params, name)
        if tensor is None:
            continue
        shape = tuple(tensor.shape)
        if len(shape) != 4 or any(size not in (1, whole) for size, whole in zip(shape[:3], full, strict=False)):
            raise ValueError(
                f"params.{name}: shape must be [1 or B, 1 or H, 1 or T, S] = {list(full)}, not {list(shape)}"
            )
        if shape[3] != keys:
            raise ValueError(f"params.{name}: must have {keys} keys, not {shape[3]}")
        if tensor.dtype not in INPUTS and not (name == "mask" and tensor.dtype == torch.bool):
            raise ValueError(f"params.{name}: dtype must be float32, float16 or bfloat16, not {tensor.dtype}")
        if tensor.device != query.device:
            raise ValueError(f"params.{name}: must be on {query.device}")
    if params.softcap is not None and params.softcap <= 0:
        raise ValueError("params.softcap: must be above 0")


def check_heads(query: Tensor, key: Tensor) -> None:
    """Raises ValueError unless queries and keys fit together. The message begins with the argument."""
    if query.dim() != 4 or 0 in query.shape:
        raise ValueError(f"query: shape must be [B, H, T, D] with no empty axis, not {list(query.shape)}")
    if key.dim() != 4 or 0 in key.shape or key.shape[0] != query.shape[0] or key.shape[3] != query.shape[3]:
        raise ValueError(f"key: shape must be [B, Hkv, S, D] with the query's B and D, not {list(key.shape)}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"key: its {key.shape[1]} heads must divide the query's {query.shape[1]}")
    if query.dtype not in INPUTS or key.dtype != query.dtype:
        raise ValueError(f"query: dtype must be float32, float16 or bfloat16, and the key's, not {query.dtype}")
    if key.device != query.device:
        raise ValueError("key: must be on the query's device")
