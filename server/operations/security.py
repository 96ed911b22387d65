"""Who may connect to a server and how, checked before the server listens.

A server that other machines can reach must encrypt its connections, unless its operator says otherwise.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from .certificates import CertificateError, CertificateFiles
from .tokens import TokenFile, TokenFileError

log = logging.getLogger(__name__)


class SecurityError(Exception):
    """The options do not go together, or a file is wrong. The message is for the person who starts the server."""


@dataclass(frozen=True)
class Security:
    """How a server is protected.

    Attributes:
        certificates: For TLS; None: connections are not encrypted.
        tokens: Calls need one of these tokens; None: calls need no token.
        has_reflection: Whether clients may ask for the contract.
        unix_mode: The permissions of a unix socket; None: the process's umask decides.
    """

    certificates: CertificateFiles | None = None
    tokens: TokenFile | None = None
    has_reflection: bool = True
    unix_mode: int | None = None


def make_security(
    *,
    is_local: bool,
    is_path: bool,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_client_ca: str | None = None,
    tokens: str | None = None,
    unix_mode: int | None = None,
    insecure: bool = False,
    reflection: bool | None = None,
) -> Security:
    """Reads the files of the options of `sidelight serve`. Raises SecurityError.

    Args:
        is_local: Whether only this machine can reach the address.
        is_path: Whether the address is a socket in the file system.
        tls_cert: The file with the server's certificate.
        tls_key: The file with its key.
        tls_client_ca: The file with the authorities of clients.
        tokens: The file with the tokens.
        unix_mode: The permissions of a socket in the file system.
        insecure: Whether connections from other machines may be without encryption.
        reflection: Whether clients may ask for the contract; None: if only this machine can reach the address.
    """
    if (tls_cert is None) != (tls_key is None):
        raise SecurityError("--tls-cert and --tls-key go together")
    if tls_client_ca is not None and tls_cert is None:
        raise SecurityError("--tls-client-ca needs --tls-cert and --tls-key")
    if unix_mode is not None and not is_path:
        raise SecurityError("--unix-mode goes with --address unix:PATH")
    if tls_cert is None and not is_local:
        if not insecure:
            raise SecurityError(
                "other machines can reach this address, and connections would not be encrypted: give --tls-cert and "
                "--tls-key, listen on 127.0.0.1, or say --insecure"
            )
        log.warning("other machines can reach the server, and connections are not encrypted")
    try:
        return Security(
            certificates=None if tls_cert is None else CertificateFiles(tls_cert, tls_key or "", tls_client_ca),
            tokens=None if tokens is None else TokenFile(tokens),
            has_reflection=is_local if reflection is None else reflection,
            unix_mode=unix_mode,
        )
    except (CertificateError, TokenFileError) as error:
        raise SecurityError(str(error)) from None
