"""Clients of a Sidelight server, and what can be done with what they bring back. Installs without torch.

from sidelight.client import Client

with Client("127.0.0.1:50051") as client:
    for step in client.attribute("I don't want to be your friend."):
        print(step.text, step.cross.shape)

Its modules are imported when one of their names is first used: the command line, which is in this package too, can so
handle Ctrl-C before anything that takes time has come in. For that, nothing is imported here.
"""

TYPE_CHECKING = False  # as in typing, which takes time to import
if TYPE_CHECKING:
    from .client import AsyncClient, Client
    from .errors import (
        CancelledError,
        DeadlineExceededError,
        InternalError,
        InvalidArgumentError,
        NotFoundError,
        ResourceExhaustedError,
        SidelightError,
        UnavailableError,
        UnimplementedError,
    )
    from .formats.save import save
    from .parameters import (
        Beam,
        Capture,
        Decoding,
        Encoding,
        Greedy,
        Head,
        Kind,
        Reduction,
        Row,
        Sampling,
        Score,
        Source,
    )
    from .request import Options
    from .results import (
        Attribution,
        Hypothesis,
        Layout,
        Model,
        ModelAttention,
        Started,
        Step,
        StopReason,
        Token,
        Usage,
    )
    from .streams import AsyncAttributionStream, AttributionStream

__all__ = [
    "AsyncAttributionStream",
    "AsyncClient",
    "Attribution",
    "AttributionStream",
    "Beam",
    "CancelledError",
    "Capture",
    "Client",
    "DeadlineExceededError",
    "Decoding",
    "Encoding",
    "Greedy",
    "Head",
    "Hypothesis",
    "InternalError",
    "InvalidArgumentError",
    "Kind",
    "Layout",
    "Model",
    "ModelAttention",
    "NotFoundError",
    "Options",
    "Reduction",
    "ResourceExhaustedError",
    "Row",
    "Sampling",
    "Score",
    "SidelightError",
    "Source",
    "Started",
    "Step",
    "StopReason",
    "Token",
    "UnavailableError",
    "UnimplementedError",
    "Usage",
    "save",
]

_MODULES = ("client", "errors", "parameters", "request", "results", "streams", "formats.save")

if not TYPE_CHECKING:
    del TYPE_CHECKING

    def __getattr__(name: str) -> object:
        """Imports what is public, and these modules, when they are first used."""
        from importlib import import_module

        if name in _MODULES:
            return import_module(f".{name}", __name__)
        if name in __all__:
            for module in _MODULES:
                members = vars(import_module(f".{module}", __name__))
                if name in members:
                    return globals().setdefault(name, members[name])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
