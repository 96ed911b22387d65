"""A Capture message becomes a CapturePlan: which layers and heads are captured, and how they are reduced.

A layer or a head that the model does not have is refused here. Raises RequestError with the path of the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sidelight.v1 import attention_pb2

from ....kernels import Encoding, Reduction
from ...alignment import PRESET_NAME, AlignmentPreset
from ...capture import AttentionKind, CapturePlan, Head
from ...errors import ErrorCode, RequestError, invalid
from ...models import ModelInfo
from ...operations import ModelLimits
from ..enums import ATTENTION_KINDS, ENCODINGS, REDUCTIONS, ROWS
from .methods import complete_plan, validate_method, validate_special_tokens
from .units import changes_rows

# The greatest sum of the weights of a list of heads, in float32 and in float16: no result is then infinite. The least
# sum for a mean, which is divided by the sum: no result is then divided by 0 where small numbers count as 0.
_MAX_SUM, _MAX_HALF_SUM = 3.4e38, 6.5e4
_MIN_SUM = 2e-38


def validate_capture(
    message: attention_pb2.Capture,
    loaded: ModelInfo,
    max_positions: Mapping[AttentionKind, int],
    steps_per_pass: int,
) -> CapturePlan:
    """Returns the plan of a capture. Raises RequestError.

    Args:
        message: What the client asks for.
        loaded: The model.
        max_positions: For each kind, the most positions that a row can have.
        steps_per_pass: How many steps one forward pass must compute: 1, or all steps of a given target, or of the
            hypothesis of a beam search, for a model that gives whole matrices.
    """
    if message.none:
        others = [field.name for field, _ in message.ListFields() if field.name != "none"]
        if others:
            raise invalid(f"capture.{others[0]}", "CONTRADICTION", "contradicts capture.none")
        return CapturePlan(kinds=(), layers={})
    kinds = _validate_kinds(message, loaded)
    over_heads, over_layers = (_validate_word(message, name, REDUCTIONS) for name in ("over_heads", "over_layers"))
    encoding: Encoding = _validate_word(message, "encoding", ENCODINGS) or "float32"
    preset = _validate_preset(message, loaded, kinds)
    pairs = _validate_heads(message, loaded, kinds, over_heads, encoding, preset)
    if over_layers and not over_heads:
        raise invalid("capture.over_layers", "CONTRADICTION", "needs over_heads: heads are reduced before layers")
    if over_layers and pairs:
        raise invalid("capture.over_layers", "CONTRADICTION", "a list of heads has no layers to reduce")
    first_step, end_step = _validate_steps(message)
    is_raw = changes_rows(message)  # then rows are encoded on the host
    plan = CapturePlan(
        kinds=kinds,
        layers={} if pairs else _validate_layers(message, loaded, kinds),
        num_heads={kind: loaded.heads(kind) for kind in kinds},
        pairs=pairs,
        over_heads=over_heads,
        over_layers=over_layers,
        row=_validate_word(message, "row", ROWS) or (preset.row if preset else "predicting"),
        encoding="float32" if is_raw else encoding,
        top_k=0 if is_raw else message.top_k,
        first_step=first_step,
        end_step=end_step,
        method=validate_method(message, loaded),
        leaves_out_special=validate_special_tokens(message, preset),
    )
    plan = complete_plan(plan, max_positions)
    encoder_rows = 1 if loaded.attention_layers.captures_rows else max_positions["encoder_self"]
    check_size(plan, loaded.limits, max_positions, steps_per_pass, encoder_rows)
    return plan


def _validate_word(message: attention_pb2.Capture, field: str, words: Mapping[int, Any]) -> Any:
    """Returns the domain's word for an enum field; None if the field is unspecified."""
    value = getattr(message, field)
    if value == 0:
        return None
    if value not in words:
        raise invalid(f"capture.{field}", "UNKNOWN_VALUE", f"{value} has no meaning here")
    return words[value]


def _validate_kinds(message: attention_pb2.Capture, loaded: ModelInfo) -> tuple[AttentionKind, ...]:
    if not message.kinds:
        return loaded.kinds[:1]
    kinds: list[AttentionKind] = []
    for index, value in enumerate(message.kinds):
        field = f"capture.kinds[{index}]"
        if value not in ATTENTION_KINDS:
            raise invalid(field, "UNKNOWN_VALUE", "is no kind of attention")
        kind = ATTENTION_KINDS[value]
        if kind not in loaded.kinds:
            problem = f"this model has no {kind.replace('_', ' ')} attention; it has {', '.join(loaded.kinds)}"
            raise invalid(field, "NO_SUCH_ATTENTION", problem)
        if kind in kinds:
            raise invalid(field, "DUPLICATE", "is asked for twice")
        kinds.append(kind)
    return tuple(kinds)


def _validate_layers(
    message: attention_pb2.Capture, loaded: ModelInfo, kinds: tuple[AttentionKind, ...]
) -> dict[AttentionKind, tuple[int, ...]]:
    selection = message.heads.WhichOneof("selection")
    if selection is None:
        if message.HasField("heads"):
            raise invalid("capture.heads", "REQUIRED", "one of list, layers and preset must be set")
        return {kind: tuple(range(loaded.attention_layers.num_layers(kind))) for kind in kinds}
    layers = list(message.heads.layers.layers)
    path = "capture.heads.layers.layers"
    if not layers:
        raise invalid(path, "EMPTY", "must not be empty")
    for index, layer in enumerate(layers):
        _check_layer(layer, f"{path}[{index}]", loaded, kinds)
        if layer in layers[:index]:
            raise invalid(f"{path}[{index}]", "DUPLICATE", "is asked for twice")
    return {kind: tuple(layers) for kind in kinds}


def _validate_preset(
    message: attention_pb2.Capture, loaded: ModelInfo, kinds: tuple[AttentionKind, ...]
) -> AlignmentPreset | None:
    """Returns the preset that a capture names; None where it names none."""
    if message.heads.WhichOneof("selection") != "preset":
        return None
    field = "capture.heads.preset"
    if loaded.alignment is None or message.heads.preset != PRESET_NAME:
        offered = "no presets" if loaded.alignment is None else f"only the preset {PRESET_NAME}"
        raise invalid(field, "UNKNOWN_PRESET", f"this model has {offered}")
    if kinds != ("cross",):
        raise invalid(field, "CONTRADICTION", "has heads of cross-attention: capture.kinds must be that alone")
    return loaded.alignment


def preset_heads(preset: AlignmentPreset, over_heads: Reduction | None) -> tuple[Head, ...]:
    """Returns the heads of a preset, with their weights where these have a meaning: in a mean and in a sum."""
    is_weighted = over_heads in ("mean", "sum")
    return tuple(Head(layer, head, weight if is_weighted else None) for layer, head, weight in preset.heads)


def _validate_heads(
    message: attention_pb2.Capture,
    loaded: ModelInfo,
    kinds: tuple[AttentionKind, ...],
    over_heads: Reduction | None,
    encoding: Encoding,
    preset: AlignmentPreset | None,
) -> tuple[Head, ...]:
    if preset is not None:
        return preset_heads(preset, over_heads)
    if message.heads.WhichOneof("selection") != "list":
        return ()
    path = "capture.heads.list.heads"
    if not message.heads.list.heads:
        raise invalid(path, "EMPTY", "must not be empty")
    pairs: list[Head] = []
    seen: set[tuple[int, int]] = set()
    for index, head in enumerate(message.heads.list.heads):
        field = f"{path}[{index}]"
        weight = head.weight if head.HasField("weight") else None
        if weight is not None:
            _check_weight(weight, f"{field}.weight", over_heads)
        _check_layer(head.layer, f"{field}.layer", loaded, kinds)
        for kind in kinds:
            if head.head >= loaded.heads(kind):
                problem = f"{head.head} is out of range: {kind} has heads 0 to {loaded.heads(kind) - 1}"
                raise invalid(f"{field}.head", "HEAD_OUT_OF_RANGE", problem)
        if (head.layer, head.head) in seen:
            raise invalid(field, "DUPLICATE", "is asked for twice")
        seen.add((head.layer, head.head))
        pairs.append(Head(head.layer, head.head, weight))
    _check_sum(sum(1.0 if pair.weight is None else pair.weight for pair in pairs), path, over_heads, encoding)
    return tuple(pairs)


def _check_sum(weight_sum: float, path: str, over_heads: Reduction | None, encoding: Encoding) -> None:
    """Refuses weights whose sum is too great for the numbers that carry it, or too small to divide by."""
    if over_heads == "mean" and not weight_sum:
        raise invalid(path, "OUT_OF_RANGE", "a mean needs a weight above 0")
    if over_heads == "mean" and weight_sum < _MIN_SUM:
        raise invalid(path, "OUT_OF_RANGE", f"a mean needs weights whose sum is at least {_MIN_SUM:.0e}")
    is_half = over_heads == "sum" and encoding == "float16"  # a mean is at most 1 whatever its weights
    max_sum = _MAX_HALF_SUM if is_half else _MAX_SUM
    if over_heads in ("mean", "sum") and weight_sum > max_sum:
        raise invalid(
            path, "OUT_OF_RANGE", f"weights of a {over_heads} in {encoding} may come to at most {max_sum:.1e}"
        )


def _check_weight(weight: float, field: str, over_heads: Reduction | None) -> None:
    if over_heads not in ("mean", "sum"):
        raise invalid(field, "CONTRADICTION", "needs over_heads to be a mean or a sum")
    if not (math.isfinite(weight) and weight >= 0):
        raise invalid(field, "OUT_OF_RANGE", "must be a finite number, 0 or above")


def _check_layer(layer: int, field: str, loaded: ModelInfo, kinds: tuple[AttentionKind, ...]) -> None:
    for kind in kinds:
        num_layers = loaded.attention_layers.num_layers(kind)
        if layer >= num_layers:
            problem = f"{layer} is out of range: {kind} has layers 0 to {num_layers - 1}"
            raise invalid(field, "LAYER_OUT_OF_RANGE", problem)


def _validate_steps(message: attention_pb2.Capture) -> tuple[int, int | None]:
    if not message.HasField("steps"):
        return 0, None
    end = message.steps.end if message.steps.HasField("end") else None
    if end is not None and end <= message.steps.begin:
        raise invalid("capture.steps.end", "OUT_OF_RANGE", "must be after begin")
    return message.steps.begin, end


def check_size(
    plan: CapturePlan,
    limits: ModelLimits,
    max_positions: Mapping[AttentionKind, int],
    steps_per_pass: int,
    encoder_rows: int,
    num_contexts: int = 1,
) -> None:
    """Raises RequestError where a step or a pass would carry too much.

    `encoder_rows` rows of the encoder must be computed at once. `num_contexts` passes are held at once.
    """
    row_bytes = {kind: plan.row_bytes(kind, max_positions[kind]) for kind in plan.kinds}
    step_bytes = sum(num_bytes for kind, num_bytes in row_bytes.items() if kind != "encoder_self")
    encoder_bytes = row_bytes.get("encoder_self", 0)
    sizes = (
        ("a step", step_bytes, limits.max_step_bytes),
        ("the target", step_bytes * steps_per_pass * num_contexts, limits.max_pass_bytes),
        ("a row of encoder_self", encoder_bytes, limits.max_step_bytes),
        ("encoder_self", encoder_bytes * encoder_rows * num_contexts, limits.max_pass_bytes),
    )
    for subject, num_bytes, max_bytes in sizes:
        if num_bytes > max_bytes:
            problem = (
                f"{subject} could carry {num_bytes / 1024**2:,.0f} MiB, more than {max_bytes / 1024**2:,.0f}: "
                "ask for fewer layers or heads, a reduction, or a smaller encoding"
            )
            raise RequestError(ErrorCode.RESOURCE_EXHAUSTED, "CAPTURE_TOO_LARGE", problem, "capture")
