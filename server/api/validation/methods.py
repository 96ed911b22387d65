"""The method of a Capture message, and what it does with special tokens.

A method that the model does not have, and a capture that a method cannot make, are refused here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from sidelight.v1 import attention_pb2

from ...alignment import AlignmentPreset
from ...capture import WEIGHTS, AttentionKind, CapturePlan, Method, MethodFieldError
from ...errors import ErrorCode, RequestError, invalid
from ...models import ModelInfo
from ..enums import METHODS

# The most bytes that a method may keep for a sequence, such as the rows of all its positions. They are in the host's
# memory while the sequence runs.
MAX_STATE_BYTES = 64 * 1024**2

_LEAVES_OUT = {
    attention_pb2.SPECIAL_TOKENS_UNSPECIFIED: False,
    attention_pb2.SPECIAL_TOKENS_KEEP: False,
    attention_pb2.SPECIAL_TOKENS_RENORMALIZE: True,
}


def validate_method(message: attention_pb2.Capture, loaded: ModelInfo) -> Method:
    """Returns the model's own method for a capture. Raises RequestError."""
    if not message.method:
        return WEIGHTS
    name = METHODS.get(message.method)
    if name is None:
        raise invalid("capture.method", "UNKNOWN_VALUE", f"{message.method} has no meaning here")
    method = loaded.attention_layers.methods.get(name)
    if method is None:
        offered = ", ".join(loaded.attention_layers.methods)
        raise invalid("capture.method", "NO_SUCH_METHOD", f"this model does not have {name}; it has {offered}")
    return method


def validate_special_tokens(message: attention_pb2.Capture, preset: AlignmentPreset | None) -> bool:
    """Returns whether rows leave out special tokens. Unset: as the preset of the capture says. Raises RequestError."""
    if not message.special_tokens and preset is not None:
        return preset.special_tokens == "renormalize"
    leaves_out = _LEAVES_OUT.get(message.special_tokens)
    if leaves_out is None:
        raise invalid("capture.special_tokens", "UNKNOWN_VALUE", f"{message.special_tokens} has no meaning here")
    return leaves_out


def find_method_room(
    message: attention_pb2.Capture, loaded: ModelInfo, source_length: int, num_before: int, room: int
) -> int:
    """Returns how many of `room` tokens a target of unknown length may have, so that its method can keep its state.

    At least 1. `num_before` positions of the decoder come before the target. Raises RequestError.
    """
    method = WEIGHTS if message.none else validate_method(message, loaded)
    plan = CapturePlan(loaded.kinds, layers={}, method=method)

    def is_too_long(num_tokens: int) -> bool:
        return method.state_bytes(plan, source_length, num_before + num_tokens) > MAX_STATE_BYTES

    return max(1, bisect_left(range(1, room + 1), True, key=is_too_long)) if is_too_long(room) else room


def complete_plan(plan: CapturePlan, max_positions: Mapping[AttentionKind, int]) -> CapturePlan:
    """Returns a plan with the defaults of its method. Raises RequestError for what the method cannot make."""
    try:
        completed = plan.method.complete(plan)
    except MethodFieldError as error:
        raise invalid(f"capture.{error.field}", "CONTRADICTION", str(error)) from error
    num_bytes = completed.method.state_bytes(completed, max_positions["encoder_self"], max_positions["decoder_self"])
    if num_bytes > MAX_STATE_BYTES:
        problem = (
            f"{completed.method.name} would keep {num_bytes / 1024**2:,.0f} MiB for texts of this length, "
            f"more than {MAX_STATE_BYTES // 1024**2}: shorten the source, or max_new_tokens"
        )
        raise RequestError(ErrorCode.RESOURCE_EXHAUSTED, "CAPTURE_TOO_LARGE", problem, "capture.method")
    return completed
