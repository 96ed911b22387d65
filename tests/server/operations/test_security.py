"""What `sidelight serve` refuses before it listens, and certificates that are renewed."""

from __future__ import annotations

import logging

import pytest
from authorities import Authority, replace
from sidelight.client.cli.main import main
from sidelight.server.operations import CertificateFiles
from sidelight.server.operations.certificates import CertificateError


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca", "authority")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--address", "0.0.0.0:0"], "other machines can reach this address"),
        (["--address", "[::]:0"], "other machines can reach this address"),
        (["--tls-cert", "x"], "--tls-cert and --tls-key go together"),
        (["--tls-client-ca", "x"], "--tls-client-ca needs"),
        (["--unix-mode", "0660"], "--unix-mode goes with --address unix:PATH"),
        (["--tls-cert", "/no/cert", "--tls-key", "/no/key"], "/no/cert: No such file or directory"),
        (["--tokens", "/no/tokens"], "/no/tokens: No such file or directory"),
    ],
)
def test_a_server_that_is_not_protected_does_not_start(monkeypatch, capsys, arguments, said):
    from sidelight.server.models import loader

    monkeypatch.setattr(loader, "load", None)
    if "--address" not in arguments:
        arguments = ["--address", "127.0.0.1:0", *arguments]
    assert main(["serve", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sidelight: {said}")


@pytest.mark.parametrize("mode", ["660x", "0888", "0100", "1777", ""])
def test_a_mode_is_octal(capsys, mode):
    with pytest.raises(SystemExit):
        main(["serve", "--unix-mode", mode])
    assert "must be a text of octal digits, from 0600 to 0777" in capsys.readouterr().err


def test_files_that_do_not_fit_together_are_named(authority, tmp_path):
    certificate, key = (str(path) for path in authority.issue("server"))
    other_key = str(authority.issue("other")[1])
    encrypted = tmp_path / "encrypted.key"
    from cryptography.hazmat.primitives import serialization

    loaded = serialization.load_pem_private_key((authority.folder / "server.key").read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    encrypted.write_bytes(loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))
    for files, said in (
        ((certificate, other_key), "is not the key of the certificate in"),
        ((key, certificate), "must be a certificate and its private key, as PEM"),
        ((certificate, str(encrypted)), "the key is encrypted"),
        ((certificate, key, key), "must be certificates of authorities"),
    ):
        with pytest.raises(CertificateError, match=said):
            CertificateFiles(*files)


def test_certificates_are_renewed_when_both_files_fit_together(authority, caplog):
    certificate, key = authority.issue("renewed")
    files = CertificateFiles(str(certificate), str(key))
    assert files.renew() is None
    new_certificate, new_key = (path.read_bytes() for path in authority.issue("next"))
    with caplog.at_level(logging.WARNING):
        replace(certificate, new_certificate)
        assert files.renew() is None  # the key is the old one
        assert files.renew() is None
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    replace(key, new_key)
    renewed = files.renew()
    assert renewed is not None
    assert (renewed.chain, renewed.key) == (new_certificate, new_key)
    assert files.current is renewed
    assert files.renew() is None
    assert b"PRIVATE" not in repr(renewed).encode()
