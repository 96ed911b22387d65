"""Which client a call comes from: by its bearer token, or by the certificate of its connection. And gRPC's TLS."""

from __future__ import annotations

from typing import Any

import grpc

from ..errors import unauthenticated
from ..operations import CertificateFiles, Certificates, Identity, TokenFile

_SCHEME = "bearer "


class Authenticator:
    """Names the clients of a server. For one event loop."""

    def __init__(self, tokens: TokenFile | None = None) -> None:
        """With `tokens`, every call needs one."""
        self._tokens = tokens

    def identify(self, context: grpc.aio.ServicerContext[Any, Any]) -> Identity | None:
        """Returns the client of a call; None where neither a token nor a certificate names the client.

        Raises UNAUTHENTICATED for a token that is absent, wrong or expired. All three are compared with all tokens.
        """
        if self._tokens is None:
            return _identify_certificate(context)
        values = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        value = values[0] if len(values) == 1 and isinstance(values[0], str) else ""
        has_scheme = value[: len(_SCHEME)].lower() == _SCHEME
        identity = self._tokens.identify(value[len(_SCHEME) :].strip() if has_scheme else "")
        if identity is None:
            raise unauthenticated(has_token=has_scheme)
        return identity


def _identify_certificate(context: grpc.aio.ServicerContext[Any, Any]) -> Identity | None:
    """Returns the client whom gRPC has verified: by the certificate's alternative names, or else its common name."""
    names = context.peer_identities()
    return Identity("certificate", b",".join(names).decode("utf-8", "replace")) if names else None


def make_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """Returns TLS credentials that ask for the certificates again at each new connection. gRPC asks in its threads."""

    def fetch() -> Any:  # the stubs do not know that None means no change
        renewed = files.renew()
        return None if renewed is None else _configure(renewed)

    return grpc.dynamic_ssl_server_credentials(_configure(files.current), fetch, files.wants_client_certificates)


def _configure(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    pairs = [(certificates.key, certificates.chain)]
    return grpc.ssl_server_certificate_configuration(pairs, root_certificates=certificates.client_ca)
