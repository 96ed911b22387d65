"""Tensors of the protocol, in and out. Knows the forms of the protocol, and not what the tensors mean.

The elements of a tensor come in `contents`, or as bytes in `raw_input_contents`: in C order, little-endian. An element
of BYTES has its length before it there, as 4 bytes. Raises RequestError with the name of the tensor.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sidelight.open_inference import grpc_service_pb2 as oip

from ...errors import RequestError, invalid, quote

# The elements of an output: texts, or numbers.
Elements = list[bytes] | NDArray[Any]

# A parameter of tensors that says nothing of a gRPC request: clients that share code with HTTP send it.
_IGNORED_PARAMETERS = frozenset({"binary_data", "binary_data_size"})

# The list of `contents` and the type of the elements, by the datatype.
_CONTENTS = {"BYTES": "bytes_contents", "BOOL": "bool_contents", "INT32": "int_contents", "FP32": "fp32_contents"}
_DTYPES = {"INT32": "<i4", "FP32": "<f4"}

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class TensorType:
    """A tensor that a model takes or gives. A shape has -1 where the length of an axis varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of a response. `elements` of BYTES are in C order."""

    type: TensorType
    shape: tuple[int, ...]
    elements: Elements


@dataclass(frozen=True)
class InputTensor:
    """An input of a request, whose name, datatype and shape have been checked.

    Attributes:
        name: Its name.
        num_elements: How many elements its shape has.
        message: The message.
        raw: Its elements as bytes; None: they are in `contents`.
    """

    name: str
    num_elements: int
    message: oip.ModelInferRequest.InferInputTensor
    raw: bytes | None

    def texts(self) -> list[str]:
        """Returns the elements of a tensor of BYTES. Raises RequestError."""
        values = list(self.message.contents.bytes_contents) if self.raw is None else list(self._split(self.raw))
        self._check_count(len(values))
        return [self._decode(index, value) for index, value in enumerate(values)]

    def truth(self) -> bool:
        """Returns the one element of a tensor of BOOL. Raises RequestError."""
        values = list(self.message.contents.bool_contents) if self.raw is None else [byte != 0 for byte in self.raw]
        self._check_count(len(values))
        return values[0]

    def _check_count(self, count: int) -> None:
        if count != self.num_elements:
            problem = f"there are {count:,} elements, and the shape has {self.num_elements:,}"
            raise invalid(f"{self.name}.contents", "SHAPE_MISMATCH", problem)

    def _split(self, raw: bytes) -> Iterator[bytes]:
        """Yields the elements of a tensor of BYTES, and at most one more than its shape has."""
        position = 0
        for _ in range(self.num_elements + 1):
            if position == len(raw):
                return
            begin = position + _LENGTH.size
            end = begin + _LENGTH.unpack_from(raw, position)[0] if begin <= len(raw) else begin
            if end > len(raw):
                problem = "ends within an element: each has its length before it, as 4 bytes, little-endian"
                raise invalid(f"{self.name}.contents", "MALFORMED", problem)
            yield raw[begin:end]
            position = end

    def _decode(self, index: int, value: bytes) -> str:
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise invalid(f"{self.name}[{index}]", "NOT_UTF8", "is not valid UTF-8") from None


def read_inputs(
    message: oip.ModelInferRequest, types: Sequence[TensorType], max_elements: int
) -> dict[str, InputTensor]:
    """Returns the inputs of a request by their names. Raises RequestError.

    Args:
        message: The request.
        types: The tensors that the model takes. All have one axis of any length, or a fixed number of elements.
        max_elements: The most elements of a tensor. Checked before any element is read.
    """
    by_name = {each.name: each for each in types}
    if len(message.inputs) > len(types):
        raise invalid("inputs", "TOO_MANY", f"there are {len(message.inputs):,}; at most {len(types)} are known")
    if message.raw_input_contents and len(message.raw_input_contents) != len(message.inputs):
        problem = f"has {len(message.raw_input_contents):,} entries for {len(message.inputs)} inputs"
        raise invalid("raw_input_contents", "SHAPE_MISMATCH", problem)
    inputs: dict[str, InputTensor] = {}
    for index, tensor in enumerate(message.inputs):
        if tensor.name not in by_name:
            known = ", ".join(by_name)
            raise invalid(
                f"inputs[{index}].name", "UNKNOWN_INPUT", f"no input is {quote(tensor.name)}; there is {known}"
            )
        if tensor.name in inputs:
            raise invalid(f"inputs[{index}].name", "DUPLICATE", f"{tensor.name} is given twice")
        raw = message.raw_input_contents[index] if message.raw_input_contents else None
        inputs[tensor.name] = _read_input(tensor, by_name[tensor.name], raw, max_elements)
    return inputs


def _read_input(
    tensor: oip.ModelInferRequest.InferInputTensor, expected: TensorType, raw: bytes | None, max_elements: int
) -> InputTensor:
    name = tensor.name
    check_tensor_parameters(tensor.parameters, name)
    if tensor.datatype != expected.datatype:
        problem = f"is {quote(tensor.datatype)}, and must be {expected.datatype}"
        raise invalid(f"{name}.datatype", "WRONG_DATATYPE", problem)
    # [N], or [N, 1] as of a client that adds an axis for a batch.
    shape = list(tensor.shape)
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or shape[0] < 1:
        raise invalid(f"{name}.shape", "WRONG_SHAPE", "must be [N] or [N, 1], with N at least 1")
    if expected.shape != (-1,) and shape[0] != expected.shape[0]:
        raise invalid(f"{name}.shape", "WRONG_SHAPE", f"must have {expected.shape[0]} element")
    if shape[0] > max_elements:
        raise invalid(f"{name}.shape", "TOO_MANY", f"has {shape[0]:,} elements; at most {max_elements} go together")
    if raw is not None and tensor.HasField("contents"):
        problem = "comes beside raw_input_contents: the elements are in one of both"
        raise invalid(f"{name}.contents", "CONTRADICTION", problem)
    return InputTensor(name, shape[0], tensor, raw)


def check_tensor_parameters(parameters: Any, field: str) -> None:
    """Refuses parameters of a tensor, such as shared memory or a classification."""
    for name in sorted(parameters):
        if name not in _IGNORED_PARAMETERS:
            raise _unknown_parameter(name, field)


def _unknown_parameter(name: str, field: str) -> RequestError:
    problem = f"{quote(name)} is no parameter of a tensor here"
    return invalid(f"{field}.parameters", "UNKNOWN_PARAMETER", problem)


def fill_outputs(response: oip.ModelInferResponse, tensors: Sequence[OutputTensor], *, is_raw: bool) -> None:
    """Writes tensors into a response: as bytes, as a client that sends bytes expects, or in `contents`."""
    for tensor in tensors:
        datatype = tensor.type.datatype
        message = response.outputs.add(name=tensor.type.name, datatype=datatype, shape=tensor.shape)
        elements = tensor.elements
        if isinstance(elements, list):
            if is_raw:
                response.raw_output_contents.append(b"".join(_LENGTH.pack(len(text)) + text for text in elements))
            else:
                message.contents.bytes_contents.extend(elements)
            continue
        numbers = np.ascontiguousarray(elements, _DTYPES[datatype])
        if is_raw:
            response.raw_output_contents.append(numbers.tobytes())
        else:
            getattr(message.contents, _CONTENTS[datatype]).extend(numbers.ravel())
