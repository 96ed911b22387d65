"""The web application: the page and its files, the models of the server, and the results that the page exports."""

from __future__ import annotations

import importlib.resources
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from ..client import AsyncClient
from ..errors import SidelightError
from ..formats import encode
from . import frames
from .guard import Guard
from .results import Results
from .streams import Streams

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_EXPORTS = {"json": "application/json", "npz": "application/octet-stream"}
_MODELS_TIMEOUT = 10.0


def build_app(connect: Callable[[], AsyncClient], hosts: Collection[str]) -> Starlette:
    """Builds the application.

    Args:
        connect: Makes the client, in the event loop that uses it. The application closes it at its end.
        hosts: The names and ports under which browsers find the application.
    """
    results = Results()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        async with connect() as client:
            app.state.client, app.state.streams = client, Streams(client, results)
            yield

    async def list_models(request: Request) -> Response:
        client: AsyncClient = request.app.state.client
        try:
            models = await client.list_models(timeout=_MODELS_TIMEOUT)
        except SidelightError as error:
            return JSONResponse(frames.error_message(error), 502)
        return JSONResponse([frames.model_message(model) for model in models])

    async def export(request: Request) -> Response:
        attribution = results.find(request.path_params["name"])
        suffix: str = request.path_params["suffix"]
        if attribution is None or suffix not in _EXPORTS:
            return PlainTextResponse("this result is not kept any more", 404)
        try:
            data = encode(attribution, f"sidelight.{suffix}")
        except ValueError as error:
            return PlainTextResponse(str(error), 400)
        headers = {"Content-Disposition": "attachment"}  # the page names the file
        return Response(data, media_type=_EXPORTS[suffix], headers=headers)

    async def stream(socket: WebSocket) -> None:
        await socket.app.state.streams.handle(socket)

    return Starlette(
        routes=[
            *_file_routes(),
            Route("/models", list_models),
            Route("/results/{name}.{suffix}", export),
            WebSocketRoute("/stream", stream),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        lifespan=lifespan,
    )


def _file_routes() -> list[Route]:
    """Returns a route for each file of the page: nothing else can be asked for."""
    routes: list[Route] = []
    for file in importlib.resources.files("sidelight.client.ui").joinpath("static").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            path = "/" if file.name == "index.html" else f"/{file.name}"
            routes.append(Route(path, _answer_file(file.read_bytes(), kind)))
    return routes


def _answer_file(data: bytes, kind: str) -> Callable[[Request], Any]:
    async def answer(_: Request) -> Response:
        return Response(data, headers={"Content-Type": kind})

    return answer
