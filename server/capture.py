"""What a request wants kept of the attention, and how rows become it.

Knows sites, rows and the kernels that lay them out; does not know what a token is or how a message looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..kernels import Reduction, layout
from .attention import Kind, Site

Row = Literal["predicting", "reading"]


@dataclass(frozen=True)
class Pair:
    """One attention head: a layer and a head in it, both from 0."""

    layer: int
    head: int


@dataclass(frozen=True)
class CapturePlan:
    """A capture with every default filled in and checked against the model.

    `layers` says for each kind which of its layers are kept, in this order. With `pairs` single heads are kept instead
    and `layers` is empty for every kind.
    """

    kinds: tuple[Kind, ...]
    layers: dict[Kind, tuple[int, ...]]
    pairs: tuple[Pair, ...] = ()
    over_heads: Reduction | None = None
    over_layers: Reduction | None = None
    row: Row = "predicting"
    dtype: torch.dtype = torch.float32
    first_step: int = 0
    end_step: int | None = None

    def covers(self, step: int) -> bool:
        """Whether a step carries attention."""
        return bool(self.kinds) and self.first_step <= step and (self.end_step is None or step < self.end_step)

    def heads(self, site: Site) -> Sequence[int] | None:
        """The heads kept at a site; None for all, empty for none."""
        if site.kind not in self.kinds:
            return ()
        if self.pairs:
            return [pair.head for pair in self.pairs if pair.layer == site.layer]
        return None if site.layer in self.layers[site.kind] else ()


class Recording:
    """The rows of one forward pass that a plan keeps, for one sequence.

    `queries` is the slice of this pass's decoder queries that are kept; an encoder's are all kept.
    """

    def __init__(self, plan: CapturePlan, queries: slice) -> None:
        self._plan = plan
        self._queries = queries
        self._rows: dict[Site, Tensor] = {}

    def heads(self, site: Site) -> Sequence[int] | None:
        """As `attention.Recorder` has it."""
        return self._plan.heads(site)

    def queries(self, site: Site, length: int) -> slice:
        """As `attention.Recorder` has it."""
        kept = slice(None) if site.kind == "encoder_self" else self._queries
        return slice(*kept.indices(length))

    def record(self, site: Site, rows: Tensor) -> None:
        """Keeps `[1, heads, queries, keys]`."""
        self._rows[site] = rows

    def record_matrices(self, matrices: dict[Kind, list[Tensor]]) -> None:
        """Keeps what a plan wants of a model's own matrices `[1, H, T, S]`, for models that give nothing else."""
        for kind, layers in matrices.items():
            for layer, matrix in enumerate(layers):
                site = Site(kind, layer)
                heads = self.heads(site)
                if heads is not None and not len(heads):
                    continue
                rows = matrix[:, :, self.queries(site, matrix.shape[2])].float()
                self.record(site, rows if heads is None else rows[:, list(heads)])

    def assemble(self, kind: Kind, positions: int) -> Tensor:
        """Lays the rows of a kind out: `[queries, positions, layers, heads]`, or fewer axes as the plan reduces.

        `positions` is how many there are in all. A sliding window's cache has forgotten the first ones: their share
        is 0.
        """
        plan = self._plan
        if not plan.pairs:
            rows = [_widen(self._rows[Site(kind, layer)], positions) for layer in plan.layers[kind]]
            return layout(rows, over_heads=plan.over_heads, over_layers=plan.over_layers, out_dtype=plan.dtype)[0]
        taken: dict[int, int] = {}
        rows = []
        for pair in plan.pairs:  # a layer's heads were recorded in the order of its pairs
            index = taken.get(pair.layer, 0)
            taken[pair.layer] = index + 1
            rows.append(self._rows[Site(kind, pair.layer)][:, index : index + 1])
        pairs = torch.cat([_widen(row, positions) for row in rows], dim=1)
        return layout([pairs], over_heads=plan.over_heads, out_dtype=plan.dtype)[0, :, :, 0]


def _widen(rows: Tensor, positions: int) -> Tensor:
    missing = positions - rows.shape[3]
    return rows if missing <= 0 else torch.nn.functional.pad(rows, (missing, 0))
