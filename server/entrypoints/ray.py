"""Replicas on Ray Serve. Each replica has models, engines and services, as a server of `sidelight serve` has.

Ray starts the replicas, watches them, changes their number with the load, and has HAProxy choose a replica for each
call. A call stays with its replica: the replica's own gRPC server accepts it, and hands it to the services here.

`serve deploy ray-serve.yaml` imports `build` and `add_services`. This module is the only one that imports Ray.
"""

# Ray is optional, and this module has its name.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import logging
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from ray import serve
from sidelight.v1 import attribution_service_pb2 as service_pb

from ..settings import SETTINGS, Settings, SettingsError, read_settings
from .loading import load_models
from .ray_context import RayContext
from .serve import call_limits, import_server

log = logging.getLogger(__name__)

_HEALTH: Any = health_pb2.DESCRIPTOR  # the stubs name the class of gRPC's C extension
_SERVICES: tuple[ServiceDescriptor, ...] = (
    service_pb.DESCRIPTOR.services_by_name["AttributionService"],
    _HEALTH.services_by_name["Health"],
)

# What Ray reads when its processes start. With Ray's own proxy, and with methods in a thread of their own, a replica
# goes on for a reader that takes nothing. And from Ray's own proxy, errors come without their details.
_REQUIRED_VARIABLES = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}

# Settings of sockets and of ends, which are Ray's.
_FOREIGN_SETTINGS = frozenset(
    ("address", "tls_cert", "tls_key", "tls_client_ca", "unix_mode", "reflection", "metrics_address", "grace")
)

# Seconds between two checks of a replica's health, and those that Ray leaves a replica for calls in flight.
_CHECK_SECONDS, _SHUTDOWN_SECONDS = 5.0, 60.0


def add_services(servicer: object, server: Any) -> None:  # noqa: ARG001  (Ray's convention)
    """Adds the services to a gRPC server of Ray, which replaces the methods by its own."""
    for service in _SERVICES:
        # All methods are streams: the same on the wire, and one way for all of them. Requests stay bytes.
        handlers = {method.name: grpc.stream_stream_rpc_method_handler(_refuse) for method in service.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


async def _refuse(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:  # noqa: ARG001
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Ray answers this method")


def build(args: Mapping[str, Any]) -> serve.Application:
    """Returns the application for Ray Serve. Raises SettingsError.

    Args:
        args: Settings of `sidelight serve` by their names, `config` and `models` among them. They come before variables
            of the environment, and these before the file, where the replica runs.
    """
    settings = _read(args)
    # Requests beyond these limits get a status from the engines, and no call a bare one from Ray.
    num_requests = sum(model.values.max_slots + model.values.max_waiting for model in settings.models)
    deployment = serve.deployment(
        name="sidelight",
        max_ongoing_requests=2 * num_requests,
        health_check_period_s=_CHECK_SECONDS,
        graceful_shutdown_timeout_s=_SHUTDOWN_SECONDS,
    )
    return deployment(Replica).bind(dict(args))


def _read(args: Mapping[str, Any]) -> Settings:
    """Reads the settings. Raises SettingsError."""
    known = {setting.name for setting in SETTINGS} - _FOREIGN_SETTINGS | {"config", "models"}
    for name in args:
        if name not in known:
            reason = "is up to Ray" if name in _FOREIGN_SETTINGS else "is no setting"
            raise SettingsError(f"args.{name} {reason}")
    models = [(name, dict(table)) for name, table in dict(args.get("models") or {}).items()]
    values = {name: value for name, value in args.items() if name not in ("config", "models")}
    settings = read_settings(argparse.Namespace(config=args.get("config"), models=models, **values))
    if not settings.values.insecure:
        raise SettingsError(
            "Ray's sockets are open to other machines, and their connections are not encrypted: say insecure = true, "
            "and let only those reach the ports who may"
        )
    return settings


class Replica:
    """One replica: a server without sockets of its own. Ray calls its methods by the names of the contract's."""

    async def __init__(self, args: Mapping[str, Any]) -> None:
        """Loads the models and starts the engines. Raises SettingsError, SecurityError and ModelError."""
        for name, value in _REQUIRED_VARIABLES.items():
            if os.environ.get(name) != value:
                raise SettingsError(f"environment {name} must be {value} where Ray starts")
        settings = _read(args)
        values = settings.values
        if values.offline:
            os.environ["HF_HUB_OFFLINE"] = "1"  # which the hub's library reads when it is imported
        import_server()
        from ..api import Server
        from ..operations import LogOptions, configure_log, make_security, make_telemetry

        level = getattr(logging, values.log_level.upper())
        configure_log(LogOptions(level, values.log_format == "json", values.log_texts))
        security = make_security(
            is_local=False, is_path=False, tokens=values.tokens, insecure=values.insecure, reflection=False
        )
        loaded, configs = await asyncio.to_thread(load_models, settings)
        self._telemetry = make_telemetry(importlib.metadata.version("sidelight"))
        self._server = Server(loaded, None, configs, security, self._telemetry, call_limits(values))
        await self._server.start()
        log.info("serving %s", ", ".join(model.name for model in loaded))

    async def check_health(self) -> None:
        """Raises RuntimeError while a model does not serve. Ray replaces a replica that stays so."""
        if not self._server.is_serving:
            raise RuntimeError("a model does not serve: its engine has stalled or failed; the log says why")

    async def __del__(self) -> None:  # Ray awaits it, after the last call
        """Ends the engines."""
        await self._server.stop()
        if self._telemetry is not None:
            self._telemetry.close()


def _add_method(service: ServiceDescriptor, name: str) -> None:
    """Gives replicas a method for an RPC. Ray finds the method by its name."""
    full_name = f"/{service.full_name}/{name}"

    async def method(self: Any, requests: Any, grpc_context: Any) -> AsyncIterator[Message]:
        context: Any = RayContext(requests, grpc_context)
        async for message in context.respond(lambda context: self._server.answer(full_name, context)):
            yield message

    method.__name__ = name
    setattr(Replica, name, method)


for _service in _SERVICES:
    for _method in _service.methods:
        _add_method(_service, _method.name)
