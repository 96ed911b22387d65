"""Each program of client/examples is built and run against real servers, and decodes the golden vectors.

A program is skipped where its toolchain is not there: `make test-clients` installs what Debian and npm have. Where the
variable EXAMPLE_BUILDS names a folder, the builds are kept there.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import grpc
import pytest
import vectors
from authorities import Authority
from example_programs import EXAMPLES, PROGRAMS, ToolchainError, count_lines
from google.protobuf import json_format
from harness import serving
from sidelight.client import Alignment, Capture, Client, LinkOptions, Markup, WordAlignment
from sidelight.server.operations import CertificateFiles, Security, TokenFile
from sidelight.v1 import attribution_service_pb2_grpc

README = EXAMPLES / "README.md"
TEXT, HTML = "That is an old book.", "I bought a <b>big</b> house."
TOKEN = "token-of-the-example-program"

# Building takes longer than a test may: a busy machine needs minutes for the C++ that protoc writes.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif("TEST_EXAMPLES" not in os.environ, reason="`make test-clients` builds the programs"),
]
every_language = pytest.mark.parametrize("language", PROGRAMS)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Callable[[str], list[str]]:
    """Builds a program at its first use; gives the command that runs it. Skips where there is no toolchain."""
    kept = os.environ.get("EXAMPLE_BUILDS")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # by all workers
    folders = Path(kept) if kept else shared / "examples"

    @cache
    def build(language: str) -> list[str] | str:
        folder = folders / PROGRAMS[language].folder
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(folders / f"{folder.name}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may build the program; then little is left to do
                return PROGRAMS[language].make(folder)
        except ToolchainError as error:
            return str(error)

    def get(language: str) -> list[str]:
        result = build(language)
        if isinstance(result, str):
            pytest.skip(f"{language}: {result}")
        return result

    return get


@pytest.fixture(scope="module")
def run(command) -> Run:
    """Runs a program with arguments and variables; fails if it does, unless it is `expected` to."""

    def call(language: str, *arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SIDELIGHT_")}
        process = subprocess.run(
            [*command(language), *arguments],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
        )
        assert process.returncode == code, process.stderr
        return process

    return call


@pytest.fixture(scope="module")
def expected(bundled_server: str) -> dict[str, str]:
    """What each command prints, by Python's client."""
    with Client(bundled_server) as client:
        stream = client.attribute(TEXT, capture=preset(), link_options=LinkOptions())
        lines = []
        for step in stream:
            assert step.cross is not None
            place = int(step.cross.argmax())
            looked_at = stream.started.source[place]
            words = (step.token.text or step.token.piece, looked_at.text or looked_at.piece)
            lines.append(f"{step.index} {words[0]} <- {words[1]} {step.cross[place]:.2f}")
        result = stream.result()
        assert result.alignment is not None
        lines += [result.text, *links(result.alignment)]
        aligned = client.align(HTML, markup=Markup("html"))
        assert aligned.marked_target_text
        return {
            "stream": "\n".join(lines),
            "align": "\n".join([aligned.marked_target_text, *links(aligned)]),
        }


def preset() -> Capture:
    return Capture(kinds=("cross",), heads="alignment", over_heads="mean")


def links(alignment: WordAlignment | Alignment) -> list[str]:
    words = [(alignment.target[link.target], alignment.source[link.source], link.score) for link in alignment.links]
    return [f"{target.text} <- {source.text} {score:.2f}" for target, source, score in words]


@pytest.fixture(scope="module")
def secured_server(bundled, tmp_path_factory) -> Iterator[dict[str, str]]:
    """A server with TLS that wants a token; gives the variables with which a program calls it."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder / "ca", "authority")
    certificate, key = authority.issue("server")
    tokens = folder / "tokens.toml"
    tokens.write_text(f'[example]\ntokens = ["{TOKEN}"]\n', encoding="utf-8")
    security = Security(certificates=CertificateFiles(str(certificate), str(key)), tokens=TokenFile(str(tokens)))
    with serving(bundled, security=security) as address:
        port = address.rpartition(":")[2]
        yield {"SIDELIGHT_ADDRESS": f"localhost:{port}", "SIDELIGHT_TLS_CA": str(authority.ca)}


@every_language
def test_a_program_decodes_all_golden_vectors(run, language):
    """All programs count the same messages, arrays and texts."""
    found = [vectors.read(name) for name in vectors.names()]
    messages = sum(len(vector.requests) + len(vector.responses) + (vector.status is not None) for vector in found)
    arrays = sum(len(vector.arrays) for vector in found)
    output = run(language, "vectors", str(vectors.FOLDER)).stdout
    assert re.fullmatch(
        rf"{len(found)} vectors, {messages} messages, {arrays} arrays, 460 texts at their offsets\n", output
    )


@every_language
def test_a_program_finds_a_wrong_number(run, language, tmp_path):
    """A number in the JSON that is not that of the bytes."""
    (tmp_path / "index.json").write_text('["uint8"]', encoding="utf-8")
    for path in vectors.FOLDER.glob("uint8.*"):
        text = path.read_bytes()
        if path.suffix == ".json":
            text = re.sub(rb'("values":\[0\.\d+),(0\.\d+)', rb"\1,0.75", text, count=1)
            assert text != path.read_bytes()
        (tmp_path / path.name).write_bytes(text)
    process = run(language, "vectors", str(tmp_path), code=1)
    assert "uint8" in process.stderr


@every_language
def test_a_program_calls_each_method(run, language, bundled_server, expected):
    address = {"SIDELIGHT_ADDRESS": bundled_server}
    for name, text in (("stream", TEXT), ("align", HTML)):
        assert run(language, name, text, **address).stdout.strip() == expected[name]
    assert run(language, "deadline", TEXT, **address).stdout.strip() == "DEADLINE_EXCEEDED"
    assert run(language, "cancel", TEXT, **address).stdout.strip() == "CANCELLED"
    assert run(language, "error", TEXT, **address).stdout.strip() == (
        "INVALID_ARGUMENT LAYER_OUT_OF_RANGE capture.heads.layers.layers[1]: "
        "1000 is out of range: cross has layers 0 to 2"
    )
    assert run(language, "many", "A dog.", "", "Good morning!", **address).stdout.splitlines() == [
        "0 Ein Hund.",
        "1 INVALID_ARGUMENT EMPTY attribute.source.text: must not be empty",
        "2 Guten Morgen!",
    ]


@every_language
def test_a_program_connects_with_tls_and_a_token(run, language, secured_server):
    output = run(language, "many", "A dog.", SIDELIGHT_TOKEN=TOKEN, **secured_server).stdout
    assert output.strip() == "0 Ein Hund."
    for token in ("another-token", ""):
        process = run(language, "align", HTML, code=1, SIDELIGHT_TOKEN=token, **secured_server)
        assert "UNAUTHENTICATED" in process.stderr


@every_language
def test_a_program_names_the_file_of_an_authority_that_is_missing(run, language, secured_server, tmp_path):
    """gRPC would take the authorities of the system instead."""
    missing = tmp_path / "missing-authority.pem"
    process = run(language, "align", HTML, code=1, **{**secured_server, "SIDELIGHT_TLS_CA": str(missing)})
    assert missing.name in process.stderr


@every_language
def test_a_program_sends_no_token_without_tls(run, language, bundled_server):
    address = {"SIDELIGHT_ADDRESS": bundled_server, "SIDELIGHT_TOKEN": TOKEN}
    process = run(language, "align", HTML, code=1, **address)
    assert TOKEN not in process.stderr


def test_the_load_client_counts_what_the_server_sends(command, bundled_server):
    texts = '["A dog.", "Good morning!"]'
    process = subprocess.run(
        [*command("Go"), "load", "2", "6"],
        env={**os.environ, "SIDELIGHT_ADDRESS": bundled_server},
        input=texts,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    counts = json.loads(process.stdout)
    with Client(bundled_server) as client:
        tokens = sum(len(client.attribute(text).result().steps) for text in ("A dog.", "Good morning!"))
    assert (counts["streams"], counts["requests"], counts["tokens"]) == (2, 6, 3 * tokens)
    assert counts["messages"] >= 6 * 3  # Started, at least one Steps, Finished


def test_the_table_has_the_lines_of_each_program_and_the_number_of_golden_vectors():
    row = r"^\| \[(\S+)\]\((\w+)\) \|.*\| (\d+) of (\d+) \| (\d+) \|$"
    rows = re.findall(row, README.read_text(encoding="utf-8"), re.MULTILINE)
    recorded = len(vectors.names())
    assert {(name, folder, *map(int, counts)) for name, folder, *counts in rows} == {
        (name, program.folder, recorded, recorded, count_lines(program)) for name, program in PROGRAMS.items()
    }


def test_the_calls_of_grpcurl_are_of_the_contract(bundled_server):
    """grpcurl itself is not run: its bodies are read as it reads them, as the JSON of protobuf."""
    text = README.read_text(encoding="utf-8").replace("\\\n", " ")
    calls = re.findall(r"^grpcurl -plaintext (?:-d '(.*?)'\s+)?127\.0\.0\.1:50051 (\S+)$", text, re.MULTILINE)
    assert len(calls) >= 4
    with grpc.insecure_channel(bundled_server) as channel:
        stub = attribution_service_pb2_grpc.AttributionServiceStub(channel)
        for body, path in calls:
            service, _, name = path.partition("/")
            assert service == "sidelight.v1.AttributionService"
            method = vectors.METHODS[name]
            bodies = [json_format.Parse(part, vectors.request_type(name)()) for part in (body or "{}").split("\n")]
            argument = iter(bodies) if method.client_streaming else bodies[0]
            answer = getattr(stub, name)(argument, timeout=60)
            answers = [*answer] if method.server_streaming else [answer]
            assert answers
            assert all(isinstance(item, vectors.response_type(name)) for item in answers)
