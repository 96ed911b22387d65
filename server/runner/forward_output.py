"""One forward pass of a model over one sequence: what it records for its client and for observers.

Knows plans and tensors on the device; does not know caches or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels import AttentionTensors
from ..capture import (
    AttentionArrays,
    AttentionKind,
    CapturePlan,
    LayerKey,
    PassRecorder,
    RecordTarget,
    build_arrays,
    list_tensors,
    matrices_of,
    record_to,
)
from ..errors import not_a_number
from ..request import Observer


@dataclass(frozen=True)
class ForwardOutput:
    """What one forward pass of the decoder gave, on its device.

    `logits` is `[tokens, vocabulary]`; the attentions have a row for each query kept, and are None if not captured.
    `observed` has float32 `[1, queries, positions, 1]` for each observer.
    """

    logits: Tensor
    cross: AttentionTensors | None
    decoder_self: AttentionTensors | None
    observed: Mapping[Observer, AttentionTensors] = field(default_factory=dict[Observer, AttentionTensors])

    @property
    def tensors(self) -> list[Tensor]:
        """The attentions' tensors, to copy to the host."""
        return [*list_tensors(self.cross), *list_tensors(self.decoder_self)]

    @property
    def observed_tensors(self) -> list[Tensor]:
        """The tensors of the observers, to copy to the host."""
        return [tensor for tensors in self.observed.values() for tensor in list_tensors(tensors)]

    def observed_rows(self, arrays: Sequence[NDArray[Any]]) -> dict[Observer, AttentionArrays]:
        """The rows of each observer, from the copies of `observed_tensors` on the host. Raises RequestError."""
        remaining = iter(arrays)
        found: dict[Observer, AttentionArrays] = {}
        for name, tensors in self.observed.items():
            rows = build_arrays(tensors, [next(remaining) for _ in list_tensors(tensors)], ())
            assert rows is not None
            if not rows.is_finite():
                raise not_a_number()
            found[name] = rows
        return found

    def recorded(self, arrays: Sequence[NDArray[Any]], plan: CapturePlan) -> dict[AttentionKind, AttentionArrays]:
        """The recorded rows of each kind, from the copies of `tensors` on the host. `plan` is what was recorded."""
        count = len(list_tensors(self.cross))
        found: dict[AttentionKind, AttentionArrays | None] = {
            "cross": build_arrays(self.cross, arrays[:count], plan.shape("cross")) if self.cross else None,
            "decoder_self": build_arrays(self.decoder_self, arrays[count:], plan.shape("decoder_self"))
            if self.decoder_self
            else None,
        }
        return {kind: rows for kind, rows in found.items() if rows is not None}


def run_pass(
    module: Any,
    recorders: Sequence[PassRecorder],
    kinds: tuple[AttentionKind, ...],
    *,
    captures_rows: bool,
    **inputs: Any,
) -> Any:
    """Runs a forward pass, and records what the plans capture of these kinds."""
    if captures_rows:
        with record_to(_Recorders(recorders), padded=False):
            return module(**inputs)
    output = module(**inputs, output_attentions=True)
    matrices = {"encoder_self": list(output.attentions)} if kinds == ("encoder_self",) else matrices_of(output)
    for recorder in recorders:
        recorder.record_matrices({kind: matrices[kind] for kind in kinds if kind in matrices})
    return output


def list_observed(observers: Mapping[Observer, PassRecorder]) -> dict[Observer, AttentionTensors]:
    """The tensors of each observer, which has those of one kind."""
    results: dict[Observer, AttentionTensors | None] = {
        name: each.result("cross") or each.result("decoder_self") for name, each in observers.items()
    }
    return {name: tensors for name, tensors in results.items() if tensors is not None}


class _Recorders(NamedTuple):
    """A `Recorder` of several plans."""

    recorders: Sequence[PassRecorder]

    def targets(
        self, layer_key: LayerKey, shape: tuple[int, int, int, int], device: torch.device
    ) -> list[RecordTarget]:
        """As `Recorder` has it."""
        return [target for each in self.recorders for target in each.targets(layer_key, shape, device)]
