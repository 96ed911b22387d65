"""TLS, mutual TLS and tokens through a real socket: who is let in, what others are told, and renewal under load."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from authorities import Authority, replace
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from harness import request, serving, wait_until
from sidelight.client import (
    AsyncClient,
    AttributionStream,
    Client,
    NotFoundError,
    ResourceExhaustedError,
    SidelightError,
    TlsOptions,
    UnauthenticatedError,
    UnavailableError,
)
from sidelight.client.cli.main import main
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.operations import CertificateFiles, Security, TokenFile
from sidelight.v1 import attribution_service_pb2_grpc

WEB, BATCH, OLD, NARROW = "token-of-the-website", "token-of-the-batch-job", "token-that-is-old", "token-with-limits"
QUEUED = "token-with-a-short-queue"
TOKENS = f"""
[web]
tokens = ["{WEB}"]
[batch]
tokens = ["{BATCH}"]
[old]
tokens = ["{OLD}"]
expires = 2020-01-01T00:00:00Z
[narrow]
tokens = ["{NARROW}"]
max_requests = 2
[queued]
tokens = ["{QUEUED}"]
max_waiting = 3
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca", "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "other", "another authority")


def certificates(authority: Authority, name: str = "server", *, mutual: bool = False) -> CertificateFiles:
    return CertificateFiles(*map(str, authority.issue(name)), str(authority.ca) if mutual else None)


@pytest.fixture(scope="module")
def mutual(bundled, authority) -> Iterator[str]:
    with serving(bundled, security=Security(certificates(authority, "mutual", mutual=True))) as address:
        yield address


@pytest.fixture(scope="module")
def token_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_text(TOKENS)
    return path


@pytest.fixture(scope="module")
def guarded(bundled, token_file) -> Iterator[str]:
    """A server that wants tokens, without TLS."""
    security = Security(tokens=TokenFile(str(token_file)), has_reflection=False)
    with serving(bundled, limits=EngineConfig(max_running=2), security=security) as address:
        yield address


# ---- TLS ------------------------------------------------------------------------------------------------------------


def test_clients_with_a_certificate_are_let_in_and_told_apart(mutual, authority):
    files = {name: TlsOptions(authority.ca, *authority.issue(name, hosts=(name,))) for name in ("alice", "bob")}
    with Client(mutual, tls=files["alice"]) as alice, Client(mutual, tls=files["bob"]) as bob:
        assert alice.attribute("A dog.").result().text == bob.attribute("A dog.").result().text
        with alice.attribute("A dog. " * 40, request_id="of-alice") as stream:
            assert stream.started
            with pytest.raises(NotFoundError):
                bob.cancel_attribution("of-alice")
            with Client(mutual, tls=files["alice"]) as again:
                assert again.cancel_attribution("of-alice") == 1


def test_clients_without_a_good_certificate_are_refused_and_told_why(mutual, authority, stranger, capsys):
    for files in ((), stranger.issue("mallory"), authority.issue("late", days=-1)):
        with Client(mutual, tls=TlsOptions(authority.ca, *files)) as client:
            with pytest.raises(UnavailableError, match="certificate of the client that it trusts") as raised:
                client.list_models(timeout=20)
            assert raised.value.reason == "TLS_FAILED"
    with Client(mutual, tls=TlsOptions(authority.ca, *authority.issue("carol"))) as client:
        assert client.list_models()
    assert main(["models", "--address", mutual, "--tls-ca", str(authority.ca)]) == 1
    assert capsys.readouterr().err.startswith(f"sidelight: {mutual}: the server has closed the connection at once")


async def test_a_client_is_told_what_is_wrong_with_a_certificate(bundled, bundled_server, authority, stranger):
    async def error(address: str, tls: bool | Path | TlsOptions) -> str:
        async with AsyncClient(address, tls=tls) as client:
            with pytest.raises(UnavailableError) as raised:
                await client.list_models(timeout=20)
            return raised.value.message

    assert "does not speak TLS" in await error(bundled_server, authority.ca)
    files = certificates(authority)
    with serving(bundled, security=Security(files)) as address:
        async with AsyncClient(address, tls=authority.ca) as client:
            assert (await client.attribute("A dog.").result()).text
        assert "may want TLS" in await error(address, False)
        assert "not trusted (unable to get local issuer certificate)" in await error(address, stranger.ca)
        assert "not trusted" in await error(address, True)
        assert "for another name" in await error(address, TlsOptions(authority.ca, server_name="other.example"))
        authority.issue("server", days=-1)
        assert "not trusted (certificate has expired)" in await error(address, authority.ca)


async def test_a_renewed_certificate_is_taken_under_load_without_a_failed_call(bundled, authority):
    """Calls go on while the server's certificate is replaced five times: half of them over new connections."""
    files = certificates(authority, "renewed")
    with serving(bundled, security=Security(files)) as address:
        is_over = False
        num_calls = 0

        async def call_over_one_connection() -> None:
            nonlocal num_calls
            async with AsyncClient(address, tls=authority.ca) as client:
                while not is_over:
                    assert (await client.attribute("A dog.").result()).text == "Ein Hund."
                    num_calls += 1

        async def call_over_new_connections() -> None:
            nonlocal num_calls
            while not is_over:
                # Without an option of its own, gRPC would share the connection of the client before.
                options = [("grpc.use_local_subchannel_pool", 1)]
                async with AsyncClient(address, tls=authority.ca, options=options) as client:
                    assert await client.list_models(timeout=20)
                    num_calls += 1

        calls = [asyncio.create_task(task()) for task in (call_over_one_connection, call_over_new_connections) * 2]
        served = {await _served_certificate(address)}
        for renewal in range(5):
            wait_for = (renewal + 1) * 6
            while num_calls < wait_for:
                await asyncio.sleep(0.001)
            authority.issue("renewed")  # first the certificate, then the key: they do not fit together meanwhile
            served.add(await _served_certificate(address))
        is_over = True
        await asyncio.gather(*calls)
        assert num_calls > 30
    assert len(served) == 6


async def _served_certificate(address: str) -> str:
    import ssl

    host, _, port = address.rpartition(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))


# ---- tokens ---------------------------------------------------------------------------------------------------------


def test_a_call_needs_a_token_that_is_known_and_valid(guarded, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("SIDELIGHT_TOKEN", raising=False)
    for token, reason in (("", "TOKEN_REQUIRED"), ("no-such-token", "TOKEN_INVALID"), (OLD, "TOKEN_INVALID")):
        with Client(guarded, token=token) as client:
            calls = [
                client.list_models,
                lambda client=client: client.attribute("A dog.").result(),
                lambda client=client: client.align("A dog.", "Ein Hund."),
                lambda client=client: list(client.attribute_many(["A dog."])),
                lambda client=client: client.cancel_attribution("x"),
            ]
            for call in calls:
                with pytest.raises(UnauthenticatedError) as raised:
                    call()
                assert raised.value.reason == reason
                assert token not in raised.value.message or not token
    path = tmp_path / "token"
    path.write_text(f"{WEB}\n")
    with Client(guarded, token=path) as client:
        assert client.attribute("A dog.").result().text == "Ein Hund."
        path.write_text("unknown")  # is read at each call
        with pytest.raises(UnauthenticatedError):
            client.list_models()
    monkeypatch.setenv("SIDELIGHT_ADDRESS", guarded)
    monkeypatch.setenv("SIDELIGHT_TOKEN", WEB)
    with Client() as client:
        assert client.align("A dog.", "Ein Hund.").target_text == "Ein Hund."
    assert main(["models"]) == 0
    path.write_text(OLD)
    assert main(["models", "--token-file", str(path)]) == 1
    assert "the token is unknown or has expired" in capsys.readouterr().err


def test_only_one_authorization_of_the_right_form_counts(guarded):
    with grpc.insecure_channel(guarded) as channel:
        stub = attribution_service_pb2_grpc.AttributionServiceStub(channel)

        def code(*values: str) -> str:
            call = stub.Attribute(request("A dog."), metadata=[("authorization", value) for value in values])
            with contextlib.suppress(grpc.RpcError):
                list(call)
            assert "token-of" not in (call.details() or "")
            return call.code().name

        assert code(f"Bearer {WEB}") == code(f"bearer {WEB}") == "OK"
        for values in ((WEB,), (f"Basic {WEB}",), (f"Bearer {WEB}", f"Bearer {WEB}"), ("Bearer",), (f"Bearer {WEB}x",)):
            assert code(*values) == "UNAUTHENTICATED"


def test_health_needs_no_token_and_reflection_may_be_off(guarded):
    with grpc.insecure_channel(guarded) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert reflection_status(guarded) is grpc.StatusCode.UNIMPLEMENTED


def reflection_status(address: str) -> grpc.StatusCode:
    with grpc.insecure_channel(address) as channel:
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        return reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked, timeout=30).code()


def test_a_request_is_cancelled_only_by_its_own_identity(guarded):
    web, batch, again = (Client(guarded, token=token) for token in (WEB, BATCH, WEB))
    with web, batch, again, web.attribute("A dog. " * 40, request_id="of-web") as stream:
        assert stream.started
        with pytest.raises(NotFoundError):
            batch.cancel_attribution("of-web")
        assert again.cancel_attribution("of-web") == 1


def test_a_token_has_its_own_limit_of_requests(guarded):
    with Client(guarded, token=NARROW) as client, Client(guarded, token=WEB) as other:
        with client.follow() as first, client.follow() as second:
            for stream in (first, second):
                stream.add_source("A dog ")
                assert next(stream)
            for call in (lambda: client.attribute("A dog.").result(), lambda: client.align("A dog.", "Ein Hund.")):
                with pytest.raises(ResourceExhaustedError, match="has 2 requests already") as raised:
                    call()
                assert raised.value.reason == "TOO_MANY_REQUESTS"
                assert raised.value.retry_delay == 1.0
            assert other.attribute("A dog.").result().text
        # One stream of many texts waits for room instead.
        wait_until(lambda: not _reason(client.attribute("A dog.")))
        texts = [result.get().text for result in client.attribute_many(["A dog."] * 12, max_running=12)]
        assert texts == ["Ein Hund."] * 12
        assert len(list(client.align_many([("A dog.", "Ein Hund.")] * 6))) == 6
        assert client.attribute("A dog.").result().text  # all have been given back


def test_a_token_has_its_own_limit_of_waiting_requests(guarded):
    with Client(guarded, token=WEB) as other, Client(guarded, token=QUEUED) as client:
        running = [other.attribute("A dog. " * 60) for _ in range(2)]
        assert all(stream.started for stream in running)  # in all slots
        reasons = [_reason(stream) for stream in [client.attribute("A dog.") for _ in range(4)]]
        assert sorted(reasons) == ["", "", "", "CLIENT_QUEUE_FULL"]
        assert other.attribute("A dog.").result().text


def _reason(stream: AttributionStream) -> str:
    """Returns why a request has failed; "" if it has not."""
    try:
        assert stream.result().text == "Ein Hund."
    except ResourceExhaustedError as error:
        return error.reason
    return ""


async def test_tokens_are_replaced_under_load(bundled, tmp_path):
    path = tmp_path / "tokens.toml"
    path.write_text(TOKENS)
    with serving(bundled, security=Security(tokens=TokenFile(str(path)))) as address:
        assert reflection_status(address) is grpc.StatusCode.UNAUTHENTICATED
        is_over = False
        num_calls = 0

        async def call() -> None:
            nonlocal num_calls
            async with AsyncClient(address, token=WEB) as client:
                while not is_over:
                    assert (await client.attribute("A dog.").result()).text == "Ein Hund."
                    num_calls += 1

        calls = [asyncio.create_task(call()) for _ in range(4)]
        for index in range(10):
            token = f"token-number-{index}-of-many"
            async with AsyncClient(address, token=token) as client:
                with pytest.raises(UnauthenticatedError):
                    await client.list_models()
                await asyncio.to_thread(replace, path, f"{TOKENS}\n[new]\ntokens = ['{token}']\n".encode())
                assert await client.list_models()
                await asyncio.to_thread(replace, path, TOKENS.encode())
                with pytest.raises(UnauthenticatedError):
                    await client.list_models()
        is_over = True
        await asyncio.gather(*calls)
        assert num_calls > 10


def test_a_token_is_not_sent_to_another_machine_without_encryption(monkeypatch, authority):
    for address in ("10.0.0.1:50051", "example.org:50051", "dns:///example.org:50051", "[2001:db8::1]:1", "0.0.0.0:1"):
        for client in (Client, AsyncClient):
            with pytest.raises(SidelightError, match="token: is not sent to another machine without encryption"):
                client(address, token=WEB)
        monkeypatch.setenv("SIDELIGHT_TOKEN", WEB)
        with pytest.raises(SidelightError, match="token: is not sent"):
            Client(address)
        monkeypatch.delenv("SIDELIGHT_TOKEN")
        Client(address).close()
        Client(address, token=WEB, tls=authority.ca).close()
        Client(address, token=WEB, insecure=True).close()
    for address in ("127.0.0.1:1", "localhost:1", "dns:///localhost:1", "[::1]:1", "unix:/run/x", "unix-abstract:x"):
        Client(address, token=WEB).close()


async def test_streams_in_both_directions_are_told_that_the_token_is_wrong(guarded):
    """The server ends the call while the client sends, at another moment each time."""

    async def follow(client: AsyncClient, num_sent: int) -> None:
        async with client.follow() as stream:
            for _ in range(num_sent):
                await stream.add_source("A dog ")
            if num_sent > 1:
                await stream.end()
            async for _ in stream:
                pass

    async def run_many(client: AsyncClient, num_sent: int) -> None:
        async for _ in client.attribute_many(["A dog."] * num_sent):
            pass

    for number in range(8):
        async with AsyncClient(guarded, token="no-such-token") as client:
            if number % 2:  # there is a connection
                with pytest.raises(UnauthenticatedError):
                    await client.list_models()
            for call in (follow, run_many):
                with pytest.raises(UnauthenticatedError) as raised:
                    await call(client, 1 + number % 4)
                assert raised.value.reason == "TOKEN_INVALID"


def test_synchronous_streams_in_both_directions_are_told_that_the_token_is_wrong(guarded):
    for number in range(8):
        with Client(guarded, token="no-such-token") as client:
            if number % 2:
                with pytest.raises(UnauthenticatedError):
                    client.list_models()
            with client.follow() as stream:
                for _ in range(number % 4):
                    stream.add_source("A dog ")
                with pytest.raises(UnauthenticatedError):
                    list(stream)
            with pytest.raises(UnauthenticatedError):
                list(client.attribute_many(["A dog."] * (1 + number % 4)))
