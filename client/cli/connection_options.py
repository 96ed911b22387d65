"""The arguments of commands that connect to a server, or use one of its models.

A token is never an argument: others can read arguments.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..connection import DEFAULT_ADDRESS, ConnectionOptions, TlsOptions, complete_tls, default_address


def add_connection_arguments(parser: argparse.ArgumentParser, default_server: str = DEFAULT_ADDRESS) -> None:
    """Adds the address, TLS and the token. What is not given comes from the environment.

    `default_server` says in the help which server it is where no address is given.
    """
    group = parser.add_argument_group(
        "connection",
        "What is not given comes from the environment: SIDELIGHT_ADDRESS, SIDELIGHT_TLS_CA and so on. "
        "Without any of it, nothing is encrypted.",
    )
    group.add_argument(
        "--address", default=default_address(), metavar="HOST:PORT", help=f"the server; default {default_server}"
    )
    group.add_argument(
        "--tls", action="store_true", default=None, help="encrypt; a public authority vouches for the server"
    )
    group.add_argument(
        "--tls-ca", metavar="FILE", help="encrypt; the authority in this PEM file vouches for the server"
    )
    group.add_argument("--tls-client-cert", metavar="FILE", help="the certificate that this client shows, a PEM file")
    group.add_argument("--tls-client-key", metavar="FILE", help="the private key of that certificate, a PEM file")
    group.add_argument("--tls-server-name", metavar="NAME", help="the name that the server's certificate must have")
    group.add_argument(
        "--token-file", metavar="FILE", help="a file with the token that the server asks for; or set SIDELIGHT_TOKEN"
    )
    group.add_argument(
        "--insecure", action="store_true", help="send the token to another machine although nothing is encrypted"
    )


def add_model_arguments(parser: argparse.ArgumentParser, unit: str) -> None:
    """Adds the model, its languages, and the time for each unit of the input: a text, a pair or a line."""
    parser.add_argument(
        "--model", default="", metavar="NAME", help="one of `sidelight models`; without it, the server's first model"
    )
    for side in ("source", "target"):
        parser.add_argument(
            f"--{side}-language", default="", metavar="CODE", help="such as de; for models of several languages"
        )
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help=f"the longest time for one {unit}; without it, no limit"
    )


def build_connection(args: argparse.Namespace) -> ConnectionOptions:
    """Returns the options of a client."""
    given = TlsOptions(args.tls_ca, args.tls_client_cert, args.tls_client_key, args.tls_server_name)
    return {
        "tls": args.tls if given == TlsOptions() else complete_tls(given),
        "token": None if args.token_file is None else Path(args.token_file),
        "insecure": args.insecure,
    }
