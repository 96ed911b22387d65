"""Responses of the protocol: what Attribute answers, as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sidelight.open_inference import grpc_service_pb2 as oip

from ...errors import RequestError
from .inference_request import VERSION, InferenceRequest
from .outputs import Output, TextOutputs, build_outputs
from .tensors import fill_outputs


def make_response(
    request: InferenceRequest, texts: Sequence[TextOutputs], outputs: Iterable[Output] | None = None
) -> oip.ModelInferResponse:
    """Returns the response to a request, with some of its outputs; None: with all."""
    response = oip.ModelInferResponse(model_name=request.model, model_version=VERSION, id=request.client_id)
    tensors = build_outputs(request.outputs if outputs is None else outputs, texts)
    fill_outputs(response, tensors, is_raw=request.is_raw)
    return response


def make_stream_response(response: oip.ModelInferResponse, *, is_final: bool) -> oip.ModelStreamInferResponse:
    """Returns a response on a stream. `is_final` says that it is the last one of its request."""
    response.parameters["triton_final_response"].bool_param = is_final
    return oip.ModelStreamInferResponse(infer_response=response)


def make_stream_error(
    error: RequestError, model: str, client_id: str, *, index: int | None = None, is_final: bool = True
) -> oip.ModelStreamInferResponse:
    """Returns the failure of a request, or of its text `index`.

    The message is for people. Parameters of the response have the rest of what a status and its details would say.
    """
    response = oip.ModelInferResponse(model_name=model, id=client_id)
    for name, value in {
        "error_code": error.code.name,
        "error_reason": error.reason,
        "error_field": error.field,
        "error_reference": error.reference,
    }.items():
        if value:
            response.parameters[name].string_param = value
    if error.retry_after is not None:
        response.parameters["error_retry_delay_ms"].int64_param = round(error.retry_after * 1000)
    if index is not None:
        response.parameters["text_index"].int64_param = index
    stream_response = make_stream_response(response, is_final=is_final)
    stream_response.error_message = str(error)
    return stream_response
