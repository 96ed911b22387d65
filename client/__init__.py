"""The Python client of a Sidelight server, and its command line. The package installs without torch.

from sidelight.client import Client

with Client("127.0.0.1:50051") as client:
    for step in client.attribute("I don't want to be your friend."):
        print(step.text, step.cross.shape)

client          Client and AsyncClient, of a server
connection      the way to a server: address, TLS, token
streams         AttributionStream and AsyncAttributionStream: running requests, step by step
many            AttributionManyStream and AsyncAttributionManyStream: many texts on one stream
many_state      ManyResult, and the texts of such a stream: which run, what has arrived
alignments/     Markup, LinkOptions, Alignment: word links, and markup that is carried over
parts           what has arrived of one answer, and the request for the rest
resumption      when a broken stream is called again
follow/         FollowStream and AsyncFollowStream: streams whose source and target grow
request         AttributeOptions, and the request built from them
parameters      Capture, Decoding and the values that a request may ask for
offset_units    Token and Span: places in a text; texts sliced by offsets in other units than code points
results         Step, Unit, Attribution: what a server answers, as NumPy arrays
models          Model: what a server says of a model
errors          the exceptions
contrasts       the message of a Contrast
validation      checks values against their declared types before a request is sent
converters/     between these types and protobuf messages
cli/            the command line
views/          a heatmap in the terminal, a page in the browser
formats/        files: Inseq's JSON, NumPy's npz, the page
ui/             the live page of `sidelight ui`, which needs the extra `ui`
notebook/       results in Jupyter, pandas, xarray, matplotlib and BertViz

This module imports the other modules when one of their names is first used. The command line lies in this package too,
and must handle Ctrl-C before any import that takes time. For this reason, this module imports nothing at its top.
"""

TYPE_CHECKING = False  # the same as typing.TYPE_CHECKING, but importing typing takes time
if TYPE_CHECKING:
    from .alignments import (
        Alignment,
        LinkFeature,
        LinkMethod,
        LinkOptions,
        ManyAlignment,
        Markup,
        MarkupReport,
        MarkupSpan,
        Pair,
    )
    from .client import AsyncClient, Client
    from .connection import ConnectionOptions, TlsOptions
    from .errors import (
        CancelledError,
        DeadlineExceededError,
        InternalError,
        InvalidArgumentError,
        NotFoundError,
        ResourceExhaustedError,
        SidelightError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
    )
    from .follow import AsyncFollowStream, AwaitingSource, FollowEvent, FollowOptions, FollowStream, StepCount
    from .formats import from_inseq, save, save_picture, to_inseq
    from .many import (
        AlignmentManyStream,
        AsyncAlignmentManyStream,
        AsyncAttributionManyStream,
        AttributionManyStream,
    )
    from .many_state import ManyResult, ManySource, OnStep
    from .models import Calibration, Model, ModelAttention, RequestLimits
    from .offset_units import Span, Token
    from .parameters import (
        AlignAtt,
        AttentionKind,
        Beam,
        Capture,
        Contrast,
        Decoding,
        Encoding,
        Greedy,
        Grouping,
        Head,
        Method,
        Reduction,
        Row,
        Sampling,
        Score,
        Source,
        SpecialTokens,
        TextSpan,
        UnitOptions,
    )
    from .request import AlignOptions, AttributeOptions
    from .results import (
        AttentionLayout,
        Attribution,
        EncoderSelf,
        Finished,
        Hypothesis,
        Link,
        PolicyDecision,
        Signals,
        Started,
        Step,
        StopReason,
        Unit,
        Usage,
        WordAlignment,
    )
    from .streams import AsyncAttributionStream, AttributionStream

__all__ = [
    "AlignAtt",
    "AlignOptions",
    "Alignment",
    "AlignmentManyStream",
    "AsyncAlignmentManyStream",
    "AsyncAttributionManyStream",
    "AsyncAttributionStream",
    "AsyncClient",
    "AsyncFollowStream",
    "AttentionKind",
    "AttentionLayout",
    "AttributeOptions",
    "Attribution",
    "AttributionManyStream",
    "AttributionStream",
    "AwaitingSource",
    "Beam",
    "Calibration",
    "CancelledError",
    "Capture",
    "Client",
    "ConnectionOptions",
    "Contrast",
    "DeadlineExceededError",
    "Decoding",
    "EncoderSelf",
    "Encoding",
    "Finished",
    "FollowEvent",
    "FollowOptions",
    "FollowStream",
    "Greedy",
    "Grouping",
    "Head",
    "Hypothesis",
    "InternalError",
    "InvalidArgumentError",
    "Link",
    "LinkFeature",
    "LinkMethod",
    "LinkOptions",
    "ManyAlignment",
    "ManyResult",
    "ManySource",
    "Markup",
    "MarkupReport",
    "MarkupSpan",
    "Method",
    "Model",
    "ModelAttention",
    "NotFoundError",
    "OnStep",
    "Pair",
    "PolicyDecision",
    "Reduction",
    "RequestLimits",
    "ResourceExhaustedError",
    "Row",
    "Sampling",
    "Score",
    "SidelightError",
    "Signals",
    "Source",
    "Span",
    "SpecialTokens",
    "Started",
    "Step",
    "StepCount",
    "StopReason",
    "TextSpan",
    "TlsOptions",
    "Token",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Unit",
    "UnitOptions",
    "Usage",
    "WordAlignment",
    "from_inseq",
    "save",
    "save_picture",
    "to_inseq",
]

_MODULES = (
    "alignments",
    "client",
    "connection",
    "errors",
    "follow",
    "many",
    "many_state",
    "models",
    "offset_units",
    "parameters",
    "request",
    "results",
    "streams",
    "formats",
)

if not TYPE_CHECKING:
    del TYPE_CHECKING

    def __getattr__(name: str) -> object:
        """Imports a public name, or one of the modules above, at its first use."""
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
