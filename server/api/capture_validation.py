"""From a protobuf capture to a plan: which layers and heads, how they are reduced, and whether that makes sense.

Knows the sizes of a model's attention, not its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sidelight.v1 import attention_pb2

from ...kernels import Encoding, Reduction
from ..capture import AttentionKind, CapturePlan, Head
from ..errors import ErrorCode, RequestError, invalid, unimplemented
from ..models import LoadedModel
from .converters import ENCODINGS, KINDS, REDUCTIONS, ROWS

# A step larger than this could hardly be received; gRPC's usual limit at the receiver is 4 MiB.
MAX_STEP_BYTES = 64 * 1024**2
# Encoder self-attention, and the steps of a given target, are sent in parts but made as a whole.
MAX_WHOLE_BYTES = 1024**3

# What the weights of a list of heads may come to, for sums in float32 and in float16; and for means, which are divided
# by it: none of what is computed with them is then infinite, or divided by 0 where small numbers count as 0.
_GREATEST_SUM, _GREATEST_HALF_SUM = 3.4e38, 6.5e4
_LEAST_SUM = 2e-38


def plan_capture(
    capture: attention_pb2.Capture, loaded: LoadedModel, positions: Mapping[AttentionKind, int], at_once: int
) -> CapturePlan:
    """The plan of a capture. Raises RequestError.

    Args:
        capture: What is asked.
        loaded: Of this model.
        positions: The greatest number of positions that a row of each kind can have.
        at_once: How many steps are made in one forward pass: 1 when decoding, all of them for a given target.
    """
    if capture.none:
        others = [field.name for field, _ in capture.ListFields() if field.name != "none"]
        if others:
            raise invalid(f"capture.{others[0]}", "CONTRADICTION", "contradicts capture.none")
        return CapturePlan(kinds=(), layers={})
    _refuse_unimplemented(capture)
    kinds = _kinds(capture, loaded)
    over_heads = _choice(capture, "over_heads", REDUCTIONS)
    encoding: Encoding = _choice(capture, "encoding", ENCODINGS) or "float32"
    pairs = _pairs(capture, loaded, kinds, over_heads, encoding)
    over_layers = _choice(capture, "over_layers", REDUCTIONS)
    if over_layers and not over_heads:
        raise invalid("capture.over_layers", "CONTRADICTION", "needs over_heads: heads are reduced before layers")
    if over_layers and pairs:
        raise invalid("capture.over_layers", "CONTRADICTION", "a list of heads has no layers to reduce")
    first, end = _steps(capture)
    plan = CapturePlan(
        kinds=kinds,
        layers={} if pairs else _layers(capture, loaded, kinds),
        num_heads={kind: loaded.heads(kind) for kind in kinds},
        pairs=pairs,
        over_heads=over_heads,
        over_layers=over_layers,
        row=_choice(capture, "row", ROWS) or "predicting",
        encoding=encoding,
        top_k=capture.top_k,
        first_step=first,
        end_step=end,
    )
    _check_size(plan, positions, at_once)
    return plan


def _refuse_unimplemented(capture: attention_pb2.Capture) -> None:
    if capture.special_tokens not in (
        attention_pb2.SPECIAL_TOKENS_UNSPECIFIED,
        attention_pb2.SPECIAL_TOKENS_KEEP,
    ):
        raise unimplemented("capture.special_tokens")
    if capture.grouping not in (attention_pb2.GROUPING_UNSPECIFIED, attention_pb2.GROUPING_TOKEN):
        raise unimplemented("capture.grouping")
    if capture.method not in (attention_pb2.METHOD_UNSPECIFIED, attention_pb2.METHOD_WEIGHTS):
        raise unimplemented("capture.method")


def _choice(capture: attention_pb2.Capture, field: str, values: Mapping[int, Any]) -> Any:
    """The domain's word for an enum field; None if it is unspecified."""
    value = getattr(capture, field)
    if value == 0:
        return None
    if value not in values:
        raise invalid(f"capture.{field}", "UNKNOWN_VALUE", f"{value} has no meaning here")
    return values[value]


def _kinds(capture: attention_pb2.Capture, loaded: LoadedModel) -> tuple[AttentionKind, ...]:
    if not capture.kinds:
        return loaded.kinds[:1]
    kinds: list[AttentionKind] = []
    for place, value in enumerate(capture.kinds):
        field = f"capture.kinds[{place}]"
        if value not in KINDS:
            raise invalid(field, "UNKNOWN_VALUE", "is no kind of attention")
        kind = KINDS[value]
        if kind not in loaded.kinds:
            message = f"this model has no {kind.replace('_', ' ')} attention; it has {', '.join(loaded.kinds)}"
            raise invalid(field, "NO_SUCH_ATTENTION", message)
        if kind in kinds:
            raise invalid(field, "DUPLICATE", "is asked for twice")
        kinds.append(kind)
    return tuple(kinds)


def _layers(
    capture: attention_pb2.Capture, loaded: LoadedModel, kinds: tuple[AttentionKind, ...]
) -> dict[AttentionKind, tuple[int, ...]]:
    selection = capture.heads.WhichOneof("selection")
    if selection is None:
        if capture.HasField("heads"):
            raise invalid("capture.heads", "REQUIRED", "one of list, layers and preset must be set")
        return {kind: tuple(range(loaded.attention_layers.num_layers(kind))) for kind in kinds}
    if selection == "preset":
        raise invalid("capture.heads.preset", "UNKNOWN_PRESET", "this model has no presets")
    layers = list(capture.heads.layers.layers)
    path = "capture.heads.layers.layers"
    if not layers:
        raise invalid(path, "EMPTY", "must not be empty")
    for place, layer in enumerate(layers):
        _check_layer(layer, f"{path}[{place}]", loaded, kinds)
        if layer in layers[:place]:
            raise invalid(f"{path}[{place}]", "DUPLICATE", "is asked for twice")
    return {kind: tuple(layers) for kind in kinds}


def _pairs(
    capture: attention_pb2.Capture,
    loaded: LoadedModel,
    kinds: tuple[AttentionKind, ...],
    over_heads: Reduction | None,
    encoding: Encoding,
) -> tuple[Head, ...]:
    if capture.heads.WhichOneof("selection") != "list":
        return ()
    path = "capture.heads.list.heads"
    if not capture.heads.list.heads:
        raise invalid(path, "EMPTY", "must not be empty")
    pairs: list[Head] = []
    seen: set[tuple[int, int]] = set()
    for place, head in enumerate(capture.heads.list.heads):
        field = f"{path}[{place}]"
        weight = head.weight if head.HasField("weight") else None
        if weight is not None:
            _check_weight(weight, f"{field}.weight", over_heads)
        _check_layer(head.layer, f"{field}.layer", loaded, kinds)
        for kind in kinds:
            if head.head >= loaded.heads(kind):
                message = f"{head.head} is out of range: {kind} has heads 0 to {loaded.heads(kind) - 1}"
                raise invalid(f"{field}.head", "HEAD_OUT_OF_RANGE", message)
        if (head.layer, head.head) in seen:
            raise invalid(field, "DUPLICATE", "is asked for twice")
        seen.add((head.layer, head.head))
        pairs.append(Head(head.layer, head.head, weight))
    _check_sum(sum(1.0 if pair.weight is None else pair.weight for pair in pairs), path, over_heads, encoding)
    return tuple(pairs)


def _check_sum(weights: float, path: str, over_heads: Reduction | None, encoding: Encoding) -> None:
    """Refuses weights whose sum, or what it is made of, is more than numbers can hold, or too little to divide by."""
    if over_heads == "mean" and not weights:
        raise invalid(path, "OUT_OF_RANGE", "a mean needs a weight above 0")
    if over_heads == "mean" and weights < _LEAST_SUM:
        raise invalid(path, "OUT_OF_RANGE", f"a mean needs weights whose sum is at least {_LEAST_SUM:.0e}")
    is_half = over_heads == "sum" and encoding == "float16"  # a mean is at most 1 whatever its weights
    most = _GREATEST_HALF_SUM if is_half else _GREATEST_SUM
    if over_heads in ("mean", "sum") and weights > most:
        raise invalid(path, "OUT_OF_RANGE", f"weights of a {over_heads} in {encoding} may come to at most {most:.1e}")


def _check_weight(weight: float, field: str, over_heads: Reduction | None) -> None:
    if over_heads not in ("mean", "sum"):
        raise invalid(field, "CONTRADICTION", "needs over_heads to be a mean or a sum")
    if not (math.isfinite(weight) and weight >= 0):
        raise invalid(field, "OUT_OF_RANGE", "must be a finite number, 0 or above")


def _check_layer(layer: int, field: str, loaded: LoadedModel, kinds: tuple[AttentionKind, ...]) -> None:
    for kind in kinds:
        if layer >= loaded.attention_layers.num_layers(kind):
            message = f"{layer} is out of range: {kind} has layers 0 to {loaded.attention_layers.num_layers(kind) - 1}"
            raise invalid(field, "LAYER_OUT_OF_RANGE", message)


def _steps(capture: attention_pb2.Capture) -> tuple[int, int | None]:
    if not capture.HasField("steps"):
        return 0, None
    end = capture.steps.end if capture.steps.HasField("end") else None
    if end is not None and end <= capture.steps.begin:
        raise invalid("capture.steps.end", "OUT_OF_RANGE", "must be after begin")
    return capture.steps.begin, end


def _check_size(plan: CapturePlan, positions: Mapping[AttentionKind, int], at_once: int) -> None:
    bytes_of = {kind: plan.row_bytes(kind, positions[kind]) for kind in plan.kinds}
    step = sum(size for kind, size in bytes_of.items() if kind != "encoder_self")
    encoder = bytes_of.get("encoder_self", 0) * positions["encoder_self"]
    sizes = (
        ("a step", step, MAX_STEP_BYTES),
        ("the given target", step * at_once, MAX_WHOLE_BYTES),
        ("encoder_self", encoder, MAX_WHOLE_BYTES),
    )
    for what, size, most in sizes:
        if size > most:
            message = (
                f"{what} could carry {size / 1024**2:,.0f} MiB, more than {most // 1024**2:,}: "
                "ask for fewer layers or heads, a reduction, or a smaller encoding"
            )
            raise RequestError(ErrorCode.RESOURCE_EXHAUSTED, "CAPTURE_TOO_LARGE", message, "capture")
