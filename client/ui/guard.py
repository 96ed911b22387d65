"""Which requests are answered: those of the page itself, and those of no other page.

A page of another site can make a browser call this machine. The header Host tells under which name the browser has
found the application (a name that somebody else controls may lead here), and Origin tells whose page has called.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Scripts and styles come from files of the page only, and scripts cannot make markup of a text (Trusted Types).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self' {sockets}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}


class Guard:
    """Refuses requests of other hosts and of other pages, and adds the headers of security to all answers."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        """`hosts` are the values of Host that are answered, such as "localhost:8090"."""
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._origins = {f"{scheme}://{host}" for scheme in ("http", "https") for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        # A browser names the origin of each WebSocket. Of other calls it names it where they come from elsewhere.
        is_own = (origin is None and scope["type"] == "http") or (origin or "").lower() in self._origins
        if host not in self._hosts or not is_own:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})  # before it is accepted: status 403
            else:
                await PlainTextResponse("this page is for another address", 403)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(scope=message)
                own.update(_HEADERS)
                # Not every browser counts the WebSocket of the own origin as 'self'.
                own["Content-Security-Policy"] = _POLICY.format(sockets=f"ws://{host} wss://{host}")
            await send(message)

        await self._app(scope, receive, send_with_headers)
