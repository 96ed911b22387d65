"""Where gRPC listens, and how it stays up.

addresses           Address: where the server listens; checked and held before models are loaded
path_safe_server    PathSafeServer: a grpc.aio server that outlives every path that a client can send
"""

from .addresses import Address, AddressError

__all__ = ["Address", "AddressError"]
