"""Where gRPC listens.

addresses    Address: where the server listens; checked and held before models are loaded
"""

from .addresses import Address, AddressError

__all__ = ["Address", "AddressError"]
