"""The attention rows of one decode step of a batch: sequences with equal plans share their tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels import AttentionTensors
from ..capture import (
    AttentionArrays,
    AttentionKind,
    CapturePlan,
    FactorCache,
    LayerKey,
    PassRecorder,
    RecordTarget,
    build_arrays,
    has_fused_decode,
    list_batch_tensors,
)
from ..errors import not_a_number
from ..memory import release_memory_of
from ..request import OBSERVERS, Observer
from ..transfer import cached_index, to_device
from .sequence import Sequence
from .single_sequence import LAST_QUERY

StepAttention: TypeAlias = Mapping[AttentionKind | Observer, AttentionArrays]
"""What a step recorded of one sequence."""


class _Group(NamedTuple):
    """The sequences that have the same plan, and where their rows are recorded."""

    sequences: list[Sequence]
    plan: CapturePlan
    observer: Observer | None  # what the rows are for; None: they are for the clients
    recorder: PassRecorder
    rows: Tensor | None  # which rows of the recorder's tensors belong to the sequences; None: all, in their order


class StepRecorder:
    """Records the rows of one decode step. A `Recorder` of the capture package; made anew for each step."""

    def __init__(
        self,
        sequences: list[Sequence],
        slots: slice,
        positions: Mapping[AttentionKind, int],
        tokens: Tensor,
        factors: FactorCache,
        *,
        writes_selected_rows: bool,
    ) -> None:
        """`slots` are the slots that the step runs on `tokens`; `positions` is the length of a row of each kind.

        `factors` are those of the keys in all slots.

        `writes_selected_rows` says that the backend writes some rows of a batch as fast as all rows.
        """
        groups: dict[int, list[Sequence]] = {}
        for sequence in sequences:
            if sequence.wants_row or sequence.combiner is not None:
                groups.setdefault(id(sequence.plan), []).append(sequence)
        planned = [*_by_observer(sequences), *((group[0].plan, None, group) for group in groups.values())]
        largest = max((len(group) for *_, group in planned), default=0)
        self._groups: list[_Group] = []
        self._targets: dict[LayerKey, list[RecordTarget]] = {}
        count = slots.stop - slots.start
        for whole_plan, observer, group in planned:
            rows = tuple(sequence.slot - slots.start for sequence in group)
            selected = None if rows == tuple(range(count)) else cached_index(rows, tokens.device)
            # To select rows of a batch is to copy their keys. Recording all rows and keeping some costs less where the
            # kept rows are many, or where the rows come from the kernel that reads the keys in any case.
            records_all = 2 * len(rows) >= count or (has_fused_decode(tokens) and len(rows) == largest)
            if writes_selected_rows:
                records_all = selected is None
            plan = whole_plan.recorded
            recorded = rows if records_all else tuple(range(len(rows)))  # where the rows of the group are recorded
            num_recorded = count if records_all else len(rows)
            selection = None if records_all else selected
            recorder = PassRecorder(
                plan,
                LAST_QUERY,
                positions,
                selection,
                num_recorded,
                _left_out(group, recorded, num_recorded, positions, tokens.device) if plan.leaves_out_special else None,
                factors.of_step(plan.method, _lengths(group), slots, selection) if plan.method.has_factors else None,
            )
            self._groups.append(_Group(group, whole_plan, observer, recorder, selected if records_all else None))
            for key, target in recorder.step_targets(tokens.device):
                self._targets.setdefault(key, []).append(target)

    def targets(
        self,
        layer_key: LayerKey,
        shape: tuple[int, int, int, int],  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
    ) -> list[RecordTarget]:
        """As `Recorder` has it."""
        return self._targets.get(layer_key, [])

    def _results(self) -> Iterator[tuple[_Group, AttentionKind, AttentionTensors]]:
        kinds: tuple[AttentionKind, ...] = ("cross", "decoder_self")
        for group in self._groups:
            for kind in kinds:
                result = group.recorder.result(kind)
                if result is not None:
                    yield group, kind, result

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors to copy to the host."""
        return [
            tensor if group.rows is None else tensor.index_select(0, group.rows)
            for group, _, result in self._results()
            for tensor in list_batch_tensors(result)
        ]

    def attention(
        self, arrays: Iterable[NDArray[Any]], faults: dict[Sequence, Exception]
    ) -> Mapping[Sequence, StepAttention]:
        """The attention of each sequence, from the copies of `tensors` on the host.

        A sequence whose attention is NaN or infinite gets an entry in `faults`, unless it has one.
        """
        remaining = iter(arrays)
        found: dict[Sequence, dict[AttentionKind | Observer, AttentionArrays]] = {}
        for group, kind, result in self._results():
            copies = [next(remaining)[:, 0] for _ in list_batch_tensors(result)]
            batch = build_arrays(result, copies, group.plan.recorded.shape(kind))
            assert batch is not None
            is_all_finite = batch.is_finite()  # one look for all sequences, where all is well
            for row, sequence in enumerate(group.sequences):
                # Without the positions that only other sequences of the batch have.
                length = sequence.source_length if kind == "cross" else sequence.num_cached + 1
                attention = found.setdefault(sequence, {})[group.observer or kind] = batch.copy_query(row, length)
                if not is_all_finite and not attention.is_finite():
                    faults.setdefault(sequence, not_a_number())
        for sequence, recorded in found.items():
            if sequence.combiner is not None and sequence not in faults:
                try:
                    found[sequence] = combine_step(sequence, recorded)
                except Exception as error:
                    faults[sequence] = release_memory_of(error)
        return found


def combine_step(sequence: Sequence, recorded: StepAttention) -> dict[AttentionKind | Observer, AttentionArrays]:
    """Makes the rows of a step from the recorded rows of its query; none where the step sends no rows.

    The rows of observers stay as they are.
    """
    assert sequence.combiner is not None
    kinds: tuple[AttentionKind, ...] = ("cross", "decoder_self")
    queries: dict[AttentionKind, AttentionArrays] = {
        kind: recorded[kind].as_queries() for kind in kinds if kind in recorded
    }
    rows = sequence.combiner.read_target(queries, sequence.left_out)
    found: dict[AttentionKind | Observer, AttentionArrays] = {
        name: recorded[name] for name in OBSERVERS if name in recorded
    }
    if sequence.wants_row:
        found |= {kind: arrays.copy_query(-1) for kind, arrays in rows.items()}
    return found


def _lengths(group: list[Sequence]) -> dict[int, tuple[int, int]]:
    """How many positions of target and source a step sees of the sequences of a group, by slot."""
    return {sequence.slot: (sequence.num_cached + 1, sequence.source_length) for sequence in group}


def _left_out(
    group: list[Sequence],
    rows: Iterable[int],
    count: int,
    positions: Mapping[AttentionKind, int],
    device: torch.device,
) -> dict[AttentionKind, Tensor]:
    """The special tokens of a group's sequences, at their `rows` of a batch: bool `[count, positions]` by kind."""
    masks: dict[AttentionKind, Tensor] = {}
    for kind, length in positions.items():
        mask = np.zeros((count, length), np.bool_)
        for row, sequence in zip(rows, group, strict=True):
            assert sequence.special is not None
            # Of the target, the positions up to the query's own; of the source all.
            end = sequence.source_length if kind == "cross" else sequence.num_cached + 1
            mask[row, :end] = sequence.special.mask(kind)[:end]
        masks[kind] = to_device(mask, device)
    return masks


def _by_observer(sequences: list[Sequence]) -> list[tuple[CapturePlan, Observer, list[Sequence]]]:
    """The sequences that each observer looks at, those with equal plans together."""
    groups: list[tuple[CapturePlan, Observer, list[Sequence]]] = []
    for sequence in sequences:
        for name, plan in sequence.request.observed.items():
            same = (group for other, observer, group in groups if observer == name and (other is plan or other == plan))
            group = next(same, None)
            if group is None:
                groups.append((plan, name, [sequence]))
            else:
                group.append(sequence)
    return groups
