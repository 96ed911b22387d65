"""The live page: `sidelight ui`. It needs the extra `ui`.

app         the web application: the page, its files, the models, results, and the WebSocket of streams
guard       which requests are answered: hosts, origins, and the headers that every answer carries
streams     one WebSocket for each stream: attribute, align, follow
requests    the messages of the page, read as options of the client
frames      what the server answers, as messages for the page
results     finished results, kept for their export
serving     the process: a socket, uvicorn, and how they end
static/     the page: HTML, CSS and JavaScript modules, without a build step

The page talks to the application only, and the application talks to the server: the token and the certificates of the
server never reach a browser.
"""

from .app import build_app
from .serving import Listener, ListenError, listen, serve

__all__ = ["ListenError", "Listener", "build_app", "listen", "serve"]
