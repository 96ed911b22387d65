"""AttributionService, the contract's service over grpc.aio: which method answers which RPC.

`Calls` turns errors into statuses.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from sidelight.v1 import attribution_service_pb2 as service_pb

from ..frontends import EngineClient
from .calls import Calls
from .model_catalog import ModelCatalog
from .rpcs import (
    Aligner,
    AlignMethod,
    AnswerStarter,
    AttributeManyMethod,
    AttributeMethod,
    CancelAttributionMethod,
    FollowMethod,
)

SERVICE = service_pb.DESCRIPTOR.services_by_name["AttributionService"]


class AttributionService:
    """The contract's service over the engines of the loaded models. The first engine's model is the default.

    Attributes:
        starter: Starts requests on the engines, for other services too.
    """

    def __init__(self, engines: Sequence[EngineClient], calls: Calls) -> None:
        self._calls = calls
        self._catalog = ModelCatalog(engines, calls.limits)
        by_name = {engine.loaded.name: engine for engine in engines}
        self.starter = AnswerStarter(by_name, self._catalog)
        self._aligner = Aligner(self.starter)
        self._follow = FollowMethod(by_name, self._catalog)

    def handler(self) -> grpc.GenericRpcHandler:
        """Returns the handlers of all RPCs. They get requests as bytes, which `parsing` parses."""
        methods = {
            "Attribute": AttributeMethod(self.starter).answer,
            "AttributeMany": AttributeManyMethod(self.starter, self._aligner).answer,
            "Follow": self._follow.answer,
            "Align": AlignMethod(self._aligner).answer,
            "CancelAttribution": CancelAttributionMethod(self._calls).answer,
            "GetModel": self._catalog.get_model,
            "ListModels": self._catalog.list_models,
        }
        assert set(methods) == {method.name for method in SERVICE.methods}
        # To cancel what still runs shortens the end of the server.
        handlers = {
            name: self._calls.make_handler(
                method, SERVICE.methods_by_name[name], serves_to_end=name == "CancelAttribution"
            )
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)

    def close(self) -> None:
        """Ends the service's threads."""
        self.starter.close()
        self._follow.close()
