"""The loaded models by name, and the RPCs GetModel and ListModels."""

from __future__ import annotations

from collections.abc import Sequence

from sidelight.v1 import attribution_service_pb2 as service_pb
from sidelight.v1 import model_pb2

from ..errors import invalid, not_found
from ..frontends import EngineClient
from ..models import ModelInfo
from ..operations import CallLimits
from . import converters
from .call import Call
from .parsing import parse
from .validation import (
    MAX_BEAM_WIDTH,
    MAX_SPANS,
    MAX_STOP_BYTES,
    MAX_STOPS,
)

_MAX_PAGE_SIZE = 1000


class ModelCatalog:
    """The models that a server serves. The first model is the default."""

    def __init__(self, engines: Sequence[EngineClient], limits: CallLimits) -> None:
        self._limits = limits
        self._models = {engine.loaded.name: engine.loaded for engine in engines}
        self._num_slots = {engine.loaded.name: engine.num_slots for engine in engines}
        self._default = engines[0].loaded.name

    def find(self, name: str, field: str = "model") -> ModelInfo:
        """Returns the model of a name; the default model for an empty name. Raises RequestError with the field."""
        if not name:
            return self._models[self._default]
        if name not in self._models:
            loaded = ", ".join(self._models)
            raise not_found(field, "UNKNOWN_MODEL", f"no model of that name is loaded; there is {loaded}")
        return self._models[name]

    async def get_model(self, call: Call) -> None:
        """Answers GetModel."""
        request = parse(service_pb.GetModelRequest, await call.read())
        model = self._describe(self.find(request.name, "name"))
        await call.write(service_pb.GetModelResponse(model=model))

    async def list_models(self, call: Call) -> None:
        """Answers ListModels: a page of models, in the order of their names."""
        request = parse(service_pb.ListModelsRequest, await call.read())
        names = sorted(self._models)
        first = 0
        if request.page_token:  # the last name of the page before
            first = sum(name <= request.page_token for name in names)
            if request.page_token not in names:
                raise invalid("page_token", "UNKNOWN_PAGE", "is not one that this server gave")
        page = names[first : first + min(request.page_size or _MAX_PAGE_SIZE, _MAX_PAGE_SIZE)]
        response = service_pb.ListModelsResponse(
            models=[self._describe(self._models[name]) for name in page],
            next_page_token=page[-1] if page and page[-1] != names[-1] else "",
        )
        await call.write(response)

    def _describe(self, loaded: ModelInfo) -> model_pb2.Model:
        limits = _request_limits(loaded, self._limits, self._num_slots[loaded.name])
        return converters.model_message(loaded, limits, default=loaded.name == self._default)


def _request_limits(loaded: ModelInfo, limits: CallLimits, num_slots: int) -> model_pb2.RequestLimits:
    """Returns the limits that are checked before any work is done for a request."""
    room = loaded.max_target_tokens - 1  # a decoder begins with one token at least
    return model_pb2.RequestLimits(
        max_request_bytes=limits.max_message_bytes,
        max_source_bytes=loaded.tokenizer.max_bytes(loaded.max_source_tokens),
        max_target_bytes=loaded.tokenizer.max_bytes(loaded.max_target_tokens),
        max_chat_messages=loaded.max_source_tokens,
        max_stop_texts=MAX_STOPS,
        max_stop_bytes=MAX_STOP_BYTES,
        max_texts_per_stream=limits.max_texts_per_stream,
        max_beam_width=min(MAX_BEAM_WIDTH, num_slots) if num_slots > 1 else 0,
        max_spans=MAX_SPANS,
        max_follow_streams=loaded.limits.max_follow_streams,
        max_new_tokens=min(room, loaded.limits.max_new_tokens or room),
    )
