"""The server's certificate, its key, and the authority of its clients' certificates, in PEM files.

The files may be replaced while the server runs. New connections then get the new certificate. Files that do not fit
together, as they are for a moment while one after the other is replaced, change nothing.
"""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path

from .watched_files import WatchedFiles

log = logging.getLogger(__name__)


class CertificateError(Exception):
    """The files are no usable certificates. The message names a file, for the person who starts the server."""


@dataclass(frozen=True)
class Certificates:
    """What the files hold, as PEM.

    Attributes:
        chain: The server's certificate, and the certificates between it and its authority.
        key: The private key. It is not shown.
        client_ca: The authorities whose certificates clients must have; None: clients need no certificate.
    """

    chain: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None


class CertificateFiles:
    """The files with the certificates of a server. For any thread.

    Attributes:
        current: The last certificates that were usable.
    """

    def __init__(self, chain_path: str, key_path: str, client_ca_path: str | None = None) -> None:
        """Reads the files. Raises CertificateError."""
        self._chain_path, self._key_path, self._client_ca_path = chain_path, key_path, client_ca_path
        self._lock = threading.Lock()
        paths = [chain_path, key_path] if client_ca_path is None else [chain_path, key_path, client_ca_path]
        self._files = WatchedFiles(paths)
        self._files.have_changed()
        self.current = self._read()

    @property
    def wants_client_certificates(self) -> bool:
        """Whether clients must have a certificate."""
        return self._client_ca_path is not None

    def renew(self) -> Certificates | None:
        """Reads the files again if they have changed. Returns new certificates; None if the last ones stay."""
        with self._lock:
            if not self._files.have_changed():
                return None
            try:
                certificates = self._read()
            except CertificateError as error:
                log.warning("the certificates stay as they are: %s", error)
                return None
            if certificates == self.current:
                return None
            self.current = certificates
            log.info("%s: new connections get a renewed certificate", self._chain_path)
            return certificates

    def _read(self) -> Certificates:
        chain, key = _read_file(self._chain_path), _read_file(self._key_path)
        client_ca = None if self._client_ca_path is None else _read_file(self._client_ca_path)
        self._check_pair()
        if client_ca is not None:
            _check_authorities(client_ca, self._client_ca_path or "")
        # OpenSSL has read the files once more. They may have been replaced between the two.
        if (chain, key) != (_read_file(self._chain_path), _read_file(self._key_path)):
            raise CertificateError(f"{self._chain_path}: was replaced while it was read")
        return Certificates(chain, key, client_ca)

    def _check_pair(self) -> None:
        """Raises CertificateError unless the key is that of the certificate."""

        def refuse_password() -> str:
            raise CertificateError(f"{self._key_path}: the key is encrypted, which the server cannot read")

        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._chain_path, self._key_path, refuse_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                message = f"{self._key_path}: is not the key of the certificate in {self._chain_path}"
                raise CertificateError(message) from None
            message = f"{self._chain_path}, {self._key_path}: must be a certificate and its private key, as PEM"
            raise CertificateError(message) from None
        except OSError as error:
            raise CertificateError(f"{self._chain_path}: {error.strerror or 'cannot be read'}") from None


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise CertificateError(f"{path}: {getattr(error, 'strerror', None) or 'cannot be read'}") from None


def _check_authorities(pem: bytes, path: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise CertificateError(f"{path}: must be certificates of authorities, as PEM") from None
