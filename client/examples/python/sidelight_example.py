"""Calls a Sidelight server in each of the ways that the contract has, with generated code and grpcio.

    python sidelight_example.py stream TEXT      the target, and where each token looks, as soon as the token exists
    python sidelight_example.py deadline TEXT    a call that takes longer than its deadline
    python sidelight_example.py cancel TEXT      a call that the client cancels
    python sidelight_example.py error TEXT       a wrong request: the status, its reason and the field
    python sidelight_example.py many TEXT...     many texts on one stream
    python sidelight_example.py align HTML       a translation that keeps the markup, and the links of its words
    python sidelight_example.py vectors FOLDER   decodes the golden vectors

The program shows the contract as it is. `sidelight.client` is the client for Python: it does all of this, and more.
"""

# google.rpc has no stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import grpc
from attention_arrays import decode
from golden_vectors import check_vectors
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as service
from sidelight.v1 import attribution_service_pb2_grpc as service_grpc
from sidelight.v1 import text_pb2 as text

Stub = service_grpc.AttributionServiceStub


def connect() -> grpc.Channel:
    """Opens a channel as the environment says.

    SIDELIGHT_ADDRESS; SIDELIGHT_TLS (1) or SIDELIGHT_TLS_CA (a file with the authority that vouches for the server);
    SIDELIGHT_TOKEN, which gRPC sends over TLS alone.
    """
    address = os.environ.get("SIDELIGHT_ADDRESS") or "127.0.0.1:50051"
    # gRPC receives at most 4 MiB by default. One step of a large model can be larger.
    options = [("grpc.max_receive_message_length", -1)]
    authority, token = os.environ.get("SIDELIGHT_TLS_CA"), os.environ.get("SIDELIGHT_TOKEN")
    if not authority and os.environ.get("SIDELIGHT_TLS") != "1":
        if token:
            sys.exit("SIDELIGHT_TOKEN needs TLS")
        return grpc.insecure_channel(address, options)
    credentials = grpc.ssl_channel_credentials(Path(authority).read_bytes() if authority else None)
    if token:
        credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
    return grpc.secure_channel(address, credentials, options)


def plain(value: str) -> text.Text:
    """A text."""
    return text.Text(text=value)


def stream(stub: Stub, value: str) -> None:
    """Prints each token with the source token that it looks at most, and the links of the words at the end."""
    request = service.AttributeRequest(
        source=plain(value),
        capture=attention.Capture(
            kinds=[attention.ATTENTION_KIND_CROSS],
            heads=attention.HeadSelection(preset="alignment"),
            over_heads=attention.REDUCTION_MEAN,
        ),
        link_options=service.LinkOptions(),
        offset_unit=text.OFFSET_UNIT_CODE_POINT,  # a string of Python is code points
    )
    source: Sequence[text.Token] = ()
    for response in stub.Attribute(request, timeout=60):
        event = response.WhichOneof("event")
        if event == "started":
            source = response.started.source
        elif event == "steps":
            for step in response.steps.steps:
                row = decode(step.cross, 0, len(source))
                greatest = int(row.argmax())
                print(f"{step.index} {show(step.token)} <- {show(source[greatest])} {row[greatest]:.2f}", flush=True)
        elif event == "finished":
            print(response.finished.text)
            links = response.finished.alignment
            print_links(links.source, links.target, links.links)


def show(token: text.Token) -> str:
    """The characters of a token, or the name of a special token, which has no characters."""
    return token.text or token.piece


def print_links(source: Sequence[service.Span], target: Sequence[service.Span], links: Iterable[service.Link]) -> None:
    """Prints a line for each link."""
    for link in links:
        print(f"{target[link.target].text} <- {source[link.source].text} {link.score:.2f}")


def long(value: str) -> service.AttributeRequest:
    """A request that takes a while: the end of the sentence does not end it."""
    decoding = text.Decoding(max_new_tokens=200, ignore_eos=True)
    return service.AttributeRequest(source=plain(value), decoding=decoding)


def deadline(stub: Stub, value: str) -> None:
    """Sends a request whose time is too short."""
    try:
        for _ in stub.Attribute(long(value), timeout=0.02):
            pass
    except grpc.RpcError as error:
        print(describe(error).split()[0])


def cancel(stub: Stub, value: str) -> None:
    """Cancels a request after three steps. The server ends it, and frees its place in the batch."""
    call = stub.Attribute(long(value))
    steps = 0
    try:
        for response in call:
            steps += len(response.steps.steps)
            if steps >= 3:
                call.cancel()
    except grpc.RpcError as error:
        print(describe(error).split()[0])


def wrong_request(stub: Stub, value: str) -> None:
    """Asks for a layer that no model has."""
    layers = attention.HeadSelection(layers=attention.LayerList(layers=[0, 1000]))
    request = service.AttributeRequest(source=plain(value), capture=attention.Capture(heads=layers))
    try:
        next(stub.Attribute(request))
    except grpc.RpcError as error:
        print(describe(error))


def describe(error: grpc.RpcError) -> str:
    """The code of an error, its reason, and the fields that are wrong."""
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType]
    if status is None:  # no details: the error comes from gRPC
        return f"{error.code().name} {error.details()}"
    return describe_status(status)


def describe_status(status: status_pb2.Status) -> str:
    """The code of a status, its reason, and the fields that are wrong."""
    words = [code_name(status.code)]
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(info):
            words.append(info.reason)
        elif detail.Unpack(bad_request):
            words += [f"{violation.field}: {violation.description}" for violation in bad_request.field_violations]
    return " ".join(words)


def code_name(number: int) -> str:
    """The name of a gRPC status code."""
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


def many(stub: Stub, *values: str) -> None:
    """Sends texts over one stream, and prints the results in the order of the texts."""

    def requests() -> Iterator[service.AttributeManyRequest]:
        for number, value in enumerate(values):
            capture = attention.Capture(none=True)
            request = service.AttributeRequest(request_id=str(number), source=plain(value), capture=capture)
            yield service.AttributeManyRequest(attribute=request)

    results: dict[str, str] = {}
    for response in stub.AttributeMany(requests(), timeout=60):
        for item in response.batch.responses or [response]:
            if item.response.HasField("finished"):
                results[item.request_id] = item.response.finished.text
            elif item.HasField("error"):
                error = item.error
                results[item.request_id] = f"{code_name(error.code)} {error.reason} {error.message}"
    for number in range(len(values)):
        print(number, results[str(number)])


def align(stub: Stub, html: str) -> None:
    """Translates HTML, and prints the translation with its markup and the links of the words."""
    markup = service.Markup(format=service.MARKUP_FORMAT_HTML)
    response = stub.Align(service.AlignRequest(source=plain(html), markup=markup), timeout=60)
    print(response.marked_target_text)
    print_links(response.source, response.target, response.links)


COMMANDS: dict[str, Callable[..., None]] = {
    "stream": stream,
    "deadline": deadline,
    "cancel": cancel,
    "error": wrong_request,
    "many": many,
    "align": align,
}


def main() -> int:
    """Runs the command."""
    _, command, *arguments = [*sys.argv, "", ""][: max(3, len(sys.argv))]
    if command == "vectors":
        check_vectors(Path(arguments[0]), describe_status)
        return 0
    if command not in COMMANDS:
        sys.exit(__doc__)
    with connect() as channel:
        try:
            COMMANDS[command](Stub(channel), *arguments)
        except grpc.RpcError as error:
            print(describe(error), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
