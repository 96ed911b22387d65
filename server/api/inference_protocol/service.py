"""GRPCInferenceService over grpc.aio: which method answers which RPC, and what describes the server and its models."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

import grpc
from sidelight.open_inference import grpc_service_pb2 as oip

from ..call import Call
from ..calls import Calls
from ..parsing import parse
from ..rpcs import AnswerStarter
from ..standard_services import Health
from .infer import ModelInferMethod
from .inference_request import INPUTS, VERSION, check_reads_texts, check_version
from .outputs import outputs_of
from .stream_infer import ModelStreamInferMethod
from .tensors import TensorType

INFERENCE_SERVICE = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]

# Public as the health service is: probes can send no token.
_PUBLIC = ("ServerLive", "ServerReady", "ModelReady")


class InferenceService:
    """The service of the Open Inference Protocol, over the engines of the contract's service."""

    def __init__(self, starter: AnswerStarter, calls: Calls, health: Health) -> None:
        self._starter = starter
        self._calls = calls
        self._health = health

    def handler(self) -> grpc.GenericRpcHandler:
        """Returns the handlers of all RPCs."""
        methods = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": ModelInferMethod(self._starter).answer,
            "ModelStreamInfer": ModelStreamInferMethod(self._starter).answer,
        }
        assert set(methods) == {method.name for method in INFERENCE_SERVICE.methods}
        handlers = {
            name: self._calls.make_handler(method, INFERENCE_SERVICE.methods_by_name[name], is_public=name in _PUBLIC)
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(INFERENCE_SERVICE.full_name, handlers)

    async def _server_live(self, call: Call) -> None:
        parse(oip.ServerLiveRequest, await call.read())
        await call.write(oip.ServerLiveResponse(live=True))

    async def _server_ready(self, call: Call) -> None:
        parse(oip.ServerReadyRequest, await call.read())
        await call.write(oip.ServerReadyResponse(ready=self._health.is_serving("")))

    async def _model_ready(self, call: Call) -> None:
        request = parse(oip.ModelReadyRequest, await call.read())
        loaded = self._starter.find(request.name, "name")
        check_version(request.version, "version")
        await call.write(oip.ModelReadyResponse(ready=self._health.is_serving(loaded.name)))

    async def _server_metadata(self, call: Call) -> None:
        parse(oip.ServerMetadataRequest, await call.read())
        version = metadata.version("sidelight")
        await call.write(oip.ServerMetadataResponse(name="sidelight", version=version, extensions=["parameters"]))

    async def _model_metadata(self, call: Call) -> None:
        request = parse(oip.ModelMetadataRequest, await call.read())
        loaded = self._starter.find(request.name, "name")
        check_version(request.version, "version")
        check_reads_texts(loaded)
        response = oip.ModelMetadataResponse(name=loaded.name, versions=[VERSION], platform="sidelight")
        _fill_types(response.inputs, INPUTS)
        _fill_types(response.outputs, (output.type for output in outputs_of(loaded).values()))
        await call.write(response)


def _fill_types(messages: object, types: Iterable[TensorType]) -> None:
    for each in types:
        messages.add(name=each.name, datatype=each.datatype, shape=each.shape)  # pyright: ignore[reportAttributeAccessIssue]
