"""gRPC and protobuf. No other package of the server knows them.

server                 Server: engines and their services in one process
grpc_server            GrpcServer: a grpc.aio server with the services of engines, started and stopped in order
transport              where gRPC listens, and how it stays up
service                AttributionService: which method answers which RPC
rpcs                   Attribute, AttributeMany, Follow, CancelAttribution: requests on the engines
inference_protocol     the Open Inference Protocol of KServe and Triton, over the same requests
model_catalog          GetModel, ListModels, and finding a model by its name
validation             messages become Requests: each field is checked, each default is filled in
parsing                bytes become a protobuf message, or an error that names the field
alignment_messages     the links of a pair become a message
converters             outputs and models become messages
offsets                offsets in the unit of the client
enums                  the numbers of enums, and the domain's words for them
status                 a RequestError becomes a status with details
call                   one call, and what it waits for
calls                  the open calls: their handlers, and the ends of those that wait too long
authentication         which client a call comes from; the credentials of TLS
standard_services      gRPC's health and reflection services
"""

from typing import TYPE_CHECKING

from .transport import Address, AddressError

if TYPE_CHECKING:
    from .grpc_server import GrpcServer
    from .server import Server
    from .validation import validate_request

__all__ = ["Address", "AddressError", "GrpcServer", "Server", "validate_request"]


def __getattr__(name: str) -> object:
    """Imports the modules that need torch when they are first used: `sidelight serve` holds its address before that."""
    if name == "Server":
        from .server import Server

        return Server
    if name == "GrpcServer":
        from .grpc_server import GrpcServer

        return GrpcServer
    if name == "validate_request":
        from .validation import validate_request

        return validate_request
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
