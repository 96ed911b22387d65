"""Parameters of a ModelInferRequest: each is a field of AttributeRequest.

One table leads both ways: a parameter is written to its field, and an error that names the field names the parameter.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import Message
from sidelight.open_inference import grpc_service_pb2 as oip
from sidelight.v1 import attention_pb2, text_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from ...errors import RequestError, invalid, quote

# More parameters than there are names are refused before any is looked at.
_MAX_PARAMETERS = 64

_Kind = Literal["text", "integer", "number"]


@dataclass(frozen=True)
class Parameter:
    """A parameter of requests.

    Attributes:
        path: The field of AttributeRequest that it sets.
        kind: What its value is.
        enum: The enum whose words the value is one of; None: it is no enum.
        prefix: What the names of the enum have before the word.
        group: Parameters of one group cannot be used with those of another group.
    """

    path: str
    kind: _Kind
    enum: Any = None
    prefix: str = ""
    group: str = ""


_DECODING = {
    "max_new_tokens": Parameter("decoding.max_new_tokens", "integer"),
    "min_new_tokens": Parameter("decoding.min_new_tokens", "integer"),
    "repetition_penalty": Parameter("decoding.repetition_penalty", "number"),
    "temperature": Parameter("decoding.sampling.temperature", "number", group="sampling"),
    "top_k": Parameter("decoding.sampling.top_k", "integer", group="sampling"),
    "top_p": Parameter("decoding.sampling.top_p", "number", group="sampling"),
    "seed": Parameter("decoding.sampling.seed", "integer", group="sampling"),
    "beam_width": Parameter("decoding.beam.width", "integer", group="beam"),
}
PARAMETERS: Mapping[str, Parameter] = {
    "source_language": Parameter("source_language", "text"),
    "target_language": Parameter("target_language", "text"),
    "truncate": Parameter("truncate", "text", text_pb2.Truncation, "TRUNCATION_"),
    **_DECODING,
    "heads_preset": Parameter("capture.heads.preset", "text"),
    "over_heads": Parameter("capture.over_heads", "text", attention_pb2.Reduction, "REDUCTION_"),
    "over_layers": Parameter("capture.over_layers", "text", attention_pb2.Reduction, "REDUCTION_"),
    "row": Parameter("capture.row", "text", attention_pb2.Row, "ROW_"),
    "special_tokens": Parameter("capture.special_tokens", "text", attention_pb2.SpecialTokens, "SPECIAL_TOKENS_"),
    "link_method": Parameter("link_options.method", "text", service_pb.LinkMethod, "LINK_METHOD_"),
}

# Triton's: they are no fields of AttributeRequest.
TIMEOUT, EMPTY_FINAL_RESPONSE = "timeout", "triton_enable_empty_final_response"


def is_given(parameters: Mapping[str, oip.InferParameter], group: str) -> bool:
    """Whether a parameter of a group is given."""
    return any(PARAMETERS[name].group == group for name in parameters if name in PARAMETERS)


def apply_parameters(parameters: Mapping[str, oip.InferParameter], message: service_pb.AttributeRequest) -> None:
    """Writes parameters into a request. Raises RequestError with the name of the parameter."""
    if len(parameters) > _MAX_PARAMETERS:
        raise invalid("parameters", "TOO_MANY", f"there are {len(parameters):,}; at most {_MAX_PARAMETERS}")
    for name in sorted(parameters):
        if name in (TIMEOUT, EMPTY_FINAL_RESPONSE):
            continue
        if name not in PARAMETERS:
            known = ", ".join((*PARAMETERS, TIMEOUT, EMPTY_FINAL_RESPONSE))
            raise invalid("parameters", "UNKNOWN_PARAMETER", f"no parameter is {quote(name)}; there is {known}")
        if name in _DECODING and message.HasField("given"):
            raise invalid(_field_of(name), "CONTRADICTION", "does not go with target_input: nothing is decoded")
        if PARAMETERS[name].group == "beam" and is_given(parameters, "sampling"):
            raise invalid(_field_of(name), "CONTRADICTION", "does not go with parameters of sampling")
        _set_field(name, _value_of(name, parameters[name]), message)


def read_deadline(parameters: Mapping[str, oip.InferParameter], deadline: float | None) -> float | None:
    """Returns the earlier of a call's deadline and of the parameter `timeout`, in microseconds. Raises RequestError."""
    if TIMEOUT not in parameters:
        return deadline
    microseconds = _integer_of(TIMEOUT, parameters[TIMEOUT])
    if microseconds <= 0:
        raise invalid(_field_of(TIMEOUT), "OUT_OF_RANGE", "must be above 0, in microseconds")
    end = time.monotonic() + microseconds / 1e6
    return end if deadline is None else min(deadline, end)


def wants_empty_final_response(parameters: Mapping[str, oip.InferParameter]) -> bool:
    """Returns whether a stream sends a last response that has no tensors. Raises RequestError."""
    if EMPTY_FINAL_RESPONSE not in parameters:
        return False
    value = parameters[EMPTY_FINAL_RESPONSE]
    if value.WhichOneof("parameter_choice") != "bool_param":
        raise _wrong_type(EMPTY_FINAL_RESPONSE, "a bool_param")
    return value.bool_param


def rename_field(error: RequestError, index: int | None = None) -> RequestError:
    """Returns an error whose field of AttributeRequest has the name that it has in a ModelInferRequest.

    `index` is the number of the text. A field that is none of AttributeRequest stays.
    """
    for name, parameter in PARAMETERS.items():
        if error.field == parameter.path:
            return dataclasses.replace(error, field=_field_of(name))
    begin = error.field.partition(".")[0].partition("[")[0]
    number = "" if index is None else f"[{index}]"
    names = {
        "source": f"text_input{number}",
        "given": f"target_input{number}",
        "capture": "outputs",
        "scores": "outputs",
        "link_options": "outputs",
        "decoding": "parameters",
        "request_id": "id",
        "model": "model_name",
    }
    return dataclasses.replace(error, field=names.get(begin, error.field))


def _field_of(name: str) -> str:
    return f"parameters[{name}]"


def _wrong_type(name: str, expected: str) -> RequestError:
    return invalid(_field_of(name), "WRONG_TYPE", f"must be {expected}")


def _value_of(name: str, value: oip.InferParameter) -> str | int | float:
    parameter = PARAMETERS[name]
    if parameter.kind == "integer":
        return _integer_of(name, value)
    if parameter.kind == "number":
        return _number_of(name, value)
    if value.WhichOneof("parameter_choice") != "string_param":
        raise _wrong_type(name, "a string_param")
    if parameter.enum is None:
        return value.string_param
    words = [name.removeprefix(parameter.prefix).lower() for name, number in parameter.enum.items() if number]
    if value.string_param not in words:
        problem = f"{quote(value.string_param)} is not one of {', '.join(words)}"
        raise invalid(_field_of(name), "UNKNOWN_VALUE", problem)
    return parameter.enum.Value(f"{parameter.prefix}{value.string_param.upper()}")


def _integer_of(name: str, value: oip.InferParameter) -> int:
    choice = value.WhichOneof("parameter_choice")
    if choice not in ("int64_param", "uint64_param"):
        raise _wrong_type(name, "an int64_param")
    return getattr(value, choice)


def _number_of(name: str, value: oip.InferParameter) -> float:
    """Returns a number. Clients of KServe can send none but as a text."""
    choice = value.WhichOneof("parameter_choice")
    if choice in ("double_param", "int64_param", "uint64_param", "string_param"):
        try:
            return float(getattr(value, choice))
        except ValueError:
            pass
    raise _wrong_type(name, "a double_param, or a string_param that is a number")


def _set_field(name: str, value: Any, message: Message) -> None:
    *path, last = PARAMETERS[name].path.split(".")
    for each in path:
        message = getattr(message, each)
    try:
        setattr(message, last, value)
    except ValueError:  # beyond the integers that the field holds
        raise invalid(_field_of(name), "OUT_OF_RANGE", f"cannot be {value:,}") from None
