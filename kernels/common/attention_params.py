"""What decides attention probabilities beside queries and keys. Knows what it means, not how it is computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

INPUTS = (torch.float32, torch.float16, torch.bfloat16)


class AttentionParams(NamedTuple):
    """softmax(cap(q k^T * scale + bias) + mask), over the keys that a query may see.

    cap(x) is softcap * tanh(x / softcap) where there is one (Gemma 2, arXiv:2408.00118); T5's relative positions are a
    bias. A query that may see nothing has a row of zeros.
    """

    scale: float
    softcap: float | None = None
    bias: Tensor | None = None  # additive, before the cap: [1 or B, 1 or H, 1 or T, S]
    mask: Tensor | None = None  # bool (True: may see) or additive: [1 or B, 1 or H, 1 or T, S]
    causal: bool = False  # query t sees keys up to first + t
    window: int | None = None  # and, with causal, only the last so many of them
    first: int = 0  # where query 0 stands among the keys
    no_empty_rows: bool = False  # promised: every query sees a key, so that nobody needs to look for one that does not

    def of_queries(self, queries: slice) -> AttentionParams:
        """The scoring of some of the queries, a slice with begin and end."""
        bias, mask = queries_of(self.bias, queries), queries_of(self.mask, queries)
        return self._replace(bias=bias, mask=mask, first=self.first + queries.start)

    def of_row(self, row: int, keys: int) -> AttentionParams:
        """The scoring of one row of the batch, which sees only the first keys."""
        bias, mask = (
            tensor if tensor is None else tensor[slice(row, row + 1) if len(tensor) > 1 else slice(None), ..., :keys]
            for tensor in (self.bias, self.mask)
        )
        return self._replace(bias=bias, mask=mask)


def queries_of(tensor: Tensor | None, queries: slice) -> Tensor | None:
    """Some queries of a mask or a bias, `[1 or B, 1 or H, 1 or T, S]`."""
    return tensor if tensor is None or tensor.shape[2] == 1 else tensor[:, :, queries]


def check_attention_params(scoring: AttentionParams, query: Tensor, keys: int) -> None:
    """Raises ValueError, beginning with the argument's name, where masks and biases do not fit the queries and keys."""
    full = (query.shape[0], query.shape[1], query.shape[2], keys)
    for name in ("bias", "mask"):
        tensor: Tensor | None = getattr(scoring, name)
        if tensor is None:
            continue
        shape = tuple(tensor.shape)
        if len(shape) != 4 or any(size not in (1, whole) for size, whole in zip(shape[:3], full, strict=False)):
            raise ValueError(
                f"scoring.{name}: shape must be [1 or B, 1 or H, 1 or T, S] = {list(full)}, not {list(shape)}"
            )
        if shape[3] != keys:
            raise ValueError(f"scoring.{name}: must have {keys} keys, not {shape[3]}")
        if tensor.dtype not in INPUTS and not (name == "mask" and tensor.dtype == torch.bool):
            raise ValueError(f"scoring.{name}: dtype must be float32, float16 or bfloat16, not {tensor.dtype}")
        if tensor.device != query.device:
            raise ValueError(f"scoring.{name}: must be on {query.device}")
    if scoring.window is not None and (scoring.window < 1 or not scoring.causal):
        raise ValueError("scoring.window: must be at least 1, and needs causal")
    if scoring.softcap is not None and scoring.softcap <= 0:
        raise ValueError("scoring.softcap: must be above 0")


def check_heads(query: Tensor, key: Tensor) -> None:
    """Raises ValueError, beginning with the argument's name, unless queries and keys belong together."""
    if query.dim() != 4 or 0 in query.shape:
        raise ValueError(f"query: shape must be [B, H, T, D] with nothing empty, not {list(query.shape)}")
    if key.dim() != 4 or 0 in key.shape or key.shape[0] != query.shape[0] or key.shape[3] != query.shape[3]:
        raise ValueError(f"key: shape must be [B, Hkv, S, D] with the query's B and D, not {list(key.shape)}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"key: its {key.shape[1]} heads must divide the query's {query.shape[1]}")
    if query.dtype not in INPUTS or key.dtype != query.dtype:
        raise ValueError(f"query: dtype must be float32, float16 or bfloat16, and the key's, not {query.dtype}")
    if key.device != query.device:
        raise ValueError("key: must be on the query's device")
