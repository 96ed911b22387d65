"""The arguments of all commands that connect to a server. A token is never an argument: others can read arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..connection import ConnectionOptions, TlsOptions, complete_tls, default_address


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the address, TLS and the token. What is not given comes from the environment."""
    group = parser.add_argument_group(
        "connection", "What is not given comes from the environment: SIDELIGHT_ADDRESS, SIDELIGHT_TLS_CA and so on."
    )
    group.add_argument("--address", default=default_address(), metavar="HOST:PORT", help="the server")
    group.add_argument("--tls", action="store_true", default=None, help="encrypt; the server has a public certificate")
    group.add_argument("--tls-ca", metavar="FILE", help="encrypt; this authority vouches for the server, as PEM")
    group.add_argument("--tls-client-cert", metavar="FILE", help="the client's certificate, as PEM")
    group.add_argument("--tls-client-key", metavar="FILE", help="its private key, as PEM")
    group.add_argument("--tls-server-name", metavar="NAME", help="the name that the server's certificate must have")
    group.add_argument("--token-file", metavar="FILE", help="the file that has the token; or set SIDELIGHT_TOKEN")
    group.add_argument(
        "--insecure", action="store_true", help="send the token to another machine although nothing is encrypted"
    )


def build_connection(args: argparse.Namespace) -> ConnectionOptions:
    """Returns the options of a client."""
    given = TlsOptions(args.tls_ca, args.tls_client_cert, args.tls_client_key, args.tls_server_name)
    return {
        "tls": args.tls if given == TlsOptions() else complete_tls(given),
        "token": None if args.token_file is None else Path(args.token_file),
        "insecure": args.insecure,
    }
