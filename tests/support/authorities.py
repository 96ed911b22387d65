"""Certificates for tests: authorities, and what they have signed. All keys are on P-256."""

from __future__ import annotations

import ipaddress
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """An authority, with its own certificate in `ca.pem` of a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self._sign(self._name, self._key, days=1, is_ca=True))

    def issue(self, name: str, days: int = 1, hosts: tuple[str, ...] = ("localhost",)) -> tuple[Path, Path]:
        """Writes a certificate for 127.0.0.1 and some hosts, and its key. Days below 0: it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate_path, key_path = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        replace(certificate_path, self._sign(_name(name), key, days, hosts=hosts))
        form = serialization.PrivateFormat.PKCS8
        replace(key_path, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        return certificate_path, key_path

    def _sign(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        days: int,
        *,
        is_ca: bool = False,
        hosts: tuple[str, ...] = (),
    ) -> bytes:
        now = datetime.now(timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        )
        if hosts:
            names: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def replace(path: Path, data: bytes) -> None:
    """Replaces a file as a whole."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    os.replace(new, path)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
