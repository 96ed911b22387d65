"""What a request asks to be made of rows of its own, whatever it captures: links and signals.

Raises RequestError with the path of the field.
"""

from __future__ import annotations

from typing import NamedTuple

from sidelight.v1 import attribution_service_pb2 as service_pb

from ....alignment import Linker
from ....capture import CapturePlan
from ....errors import invalid
from ....models import ModelInfo
from ....request import Observer
from .links import check_link_options, make_linker


class Observers(NamedTuple):
    """The plans of the observers of a request, and what links the rows of "links"."""

    plans: dict[Observer, CapturePlan]
    linker: Linker | None


def validate_observers(message: service_pb.AttributeRequest, loaded: ModelInfo) -> Observers:
    """Returns what a request asks to be made of rows of its own. Raises RequestError."""
    linker: Linker | None = None
    plans: dict[Observer, CapturePlan] = {}
    if message.HasField("link_options"):
        _check_request("link_options", message, loaded)
        options = message.link_options
        check_link_options(options)
        for field in ("reverse_model", "symmetrization"):
            if getattr(options, field):
                problem = "goes with Align: links that come while a target is written have one direction"
                raise invalid(f"link_options.{field}", "CONTRADICTION", problem)
        linker = make_linker(options, loaded, is_live=True)
        plans["links"] = loaded.links_plan
    if message.signals:
        _check_request("signals", message, loaded)
        plans["signals"] = loaded.signals_plan
    return Observers(plans, linker)


def _check_request(field: str, message: service_pb.AttributeRequest, loaded: ModelInfo) -> None:
    """Refuses what has no rows to observe."""
    if not loaded.is_encoder_decoder:
        raise invalid(field, "NO_SUCH_ATTENTION", "needs cross-attention, which only an encoder-decoder has")
    if message.source.HasField("features"):
        raise invalid(field, "CONTRADICTION", "goes with a source of tokens, not with source.features")
    if message.decoding.HasField("beam"):
        raise invalid(field, "CONTRADICTION", "goes without decoding.beam")
