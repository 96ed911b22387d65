"""The client refuses wrong options before it sends anything, and names them: all options of all public calls."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Sequence
from fractions import Fraction
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sidelight.client import (
    AsyncClient,
    AttributeOptions,
    Beam,
    Capture,
    Client,
    ConnectionOptions,
    Contrast,
    Decoding,
    Greedy,
    InvalidArgumentError,
    Sampling,
    TlsOptions,
    save,
)

# Options that have another path in the contract than in Python.
PATHS = {
    "capture.heads": "capture.heads.list",
    "capture.layers": "capture.heads.layers",
    "contrast.target": "contrast.given",
}

WRONG = [
    None,
    True,
    5,
    -1,
    2**70,
    10**400,
    10**5000,
    1.5,
    "text",
    "\ud800",
    b"bytes",
    object(),
    [],
    {},
    {"a": 1},
    {1, 2},
    [None],
    ["a"],
    [b"a"],
    [1.5],
    [True],
    [[1]],
    [(0, 1, None)],
    [("a", 1)],
    (1, 2, 3),
    np.array(3.5),
    np.array([[1, 2]]),
    np.array(["a"]),
    Capture,
    Decoding,
    Greedy,
    Greedy(),
    Capture(),
    Decoding(),
    Sampling,
    iter([1]),
    lambda: 1,
]


def is_declared(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type. This does not use the client's own check."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(is_declared(value, option) for option in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is Sequence or origin is tuple:
        if not isinstance(value, list | tuple | np.ndarray) or np.ndim(np.array(value, object)) < 1:
            return False
        if origin is tuple:
            return len(value) == len(arguments) and all(map(is_declared, value, arguments))
        return all(is_declared(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float | np.number | Fraction) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def members(declared: type, path: str) -> list[tuple[type, str, Any, str]]:
    return [(declared, name, hint, f"{path}{name}") for name, hint in get_type_hints(declared).items()]


FIELDS = [
    *members(AttributeOptions, ""),
    *members(Capture, "capture."),
    *members(Contrast, "contrast."),
    *members(Decoding, "decoding."),
    *members(Sampling, "decoding.sampling."),
    *members(Beam, "decoding.beam."),
]


def options_with(declared: type, name: str, value: Any) -> dict[str, Any]:
    if declared is AttributeOptions:
        return {name: value}
    if declared is Capture:
        return {"capture": Capture(**{name: value})}
    if declared is Contrast:
        return {"contrast": Contrast(**{name: value})}
    if declared is Decoding:
        return {"decoding": Decoding(**{name: value})}
    required = {"width": 2} if declared is Beam else {}
    return {"decoding": Decoding(declared(**{**required, name: value}))}


def refused_field(client: Client, options: dict[str, Any]) -> str | None:
    """Returns the field that a client refuses; None if it sends the request."""
    try:
        client.attribute("one two", **options).cancel()
    except InvalidArgumentError as error:
        return error.field
    return None


@pytest.mark.parametrize(("declared", "name", "hint", "path"), FIELDS, ids=[field[3] for field in FIELDS])
def test_a_wrong_type_is_refused_and_its_field_named(fake, declared, name, hint, path):
    refused = 0
    with Client(fake.address) as client:
        for value in WRONG:
            if is_declared(value, hint):
                continue
            with pytest.raises(InvalidArgumentError) as error_info:
                client.attribute("one two", **options_with(declared, name, value))
            assert error_info.value.field.startswith(PATHS.get(path, path)), value
            assert error_info.value.field in str(error_info.value)
            assert list(error_info.value.fields) == [error_info.value.field]
            assert len(str(error_info.value)) < 300
            refused += 1
    assert refused > 20
    assert fake.requests == []


@pytest.mark.parametrize(("declared", "name", "hint", "path"), FIELDS, ids=[field[3] for field in FIELDS])
def test_a_value_of_the_declared_type_is_sent_or_its_field_is_named(fake, declared, name, hint, path):
    """A value of the right type may be out of the range of its field on the wire. The error then names the field."""
    head = path.partition(".")[0]
    with Client(fake.address) as client:
        for value in WRONG:
            if is_declared(value, hint):
                field = refused_field(client, options_with(declared, name, value))
                assert field is None or field.startswith("given" if head == "target" else head)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_generated_values_never_raise_anything_else(fake, data):
    declared, name, hint, path = data.draw(st.sampled_from(FIELDS))
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    value = data.draw(st.recursive(scalars, lambda inner: st.lists(inner) | st.tuples(inner, inner), max_leaves=4))
    num_sent = len(fake.requests)
    with Client(fake.address) as client:
        if refused_field(client, options_with(declared, name, value)) is None:
            assert is_declared(value, hint), path
        else:
            assert len(fake.requests) == num_sent


@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ({"tarqet": "Hallo"}, "tarqet", "did you mean target?"),
        ({"max_new_tokens": 3}, "max_new_tokens", "is no option of attribute"),
        ({"decoding": Decoding(stop="Hund")}, "decoding.stop", "must be a sequence, not 'Hund'"),
        ({"decoding": Decoding(stop=["ja", None])}, "decoding.stop", "[1] must be text, not None"),
        ({"decoding": Decoding("sampling")}, "decoding.strategy", "not 'sampling'"),
        ({"decoding": Decoding(Sampling)}, "decoding.strategy", "not the class Sampling"),
        ({"decoding": Decoding}, "decoding", "not the class Decoding"),
        ({"decoding": Greedy()}, "decoding", "must be a Decoding, not a value of type Greedy"),
        ({"decoding": "greedy"}, "decoding", "must be a Decoding, not 'greedy'"),
        ({"capture": Capture}, "capture", "not the class Capture"),
        ({"capture": {"kinds": ["cross"]}}, "capture", "must be a Capture"),
        ({"capture": Capture(kinds="cross")}, "capture.kinds", "must be a sequence, not 'cross'"),
        ({"capture": Capture(heads=[(0,)])}, "capture.heads.list", "[0] must be 2 values or 3 values"),
        ({"capture": Capture(heads=[(0, 1), (0, "1")])}, "capture.heads.list", "[1] [1] must be a whole number"),
        ({"scores": "entropy"}, "scores", "must be a sequence, not 'entropy'"),
        ({"timeout": "5"}, "timeout", "must be a number, not '5'"),
        ({"timeout": math.inf}, "timeout", "above 0"),
        ({"model": None}, "model", "must be text, not None"),
        ({"resume_at": 2**40}, "resume_at", ""),
        ({"request_id": "\ud800"}, "request_id", ""),
        ({"decoding": Decoding(Sampling(temperature=10**400))}, "decoding.sampling.temperature", ""),
    ],
)
def test_messages_for_common_mistakes(fake, options, field, says):
    with Client(fake.address) as client, pytest.raises(InvalidArgumentError) as error_info:
        client.attribute("one two", **options)
    assert error_info.value.field == field
    assert says in str(error_info.value)
    assert fake.requests == []


@pytest.mark.parametrize(
    ("source", "options", "field"),
    [
        ("abc{}d", {}, "source"),
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": "abc{}"}],
            {},
            "source.chat.messages[1].content",
        ),
        ([{"role": "abc{}", "content": "a"}], {}, "source.chat.messages[0].role"),
        ("one", {"target": "abc{}"}, "given"),
        ("one", {"prefix": "abc{}"}, "prefix"),
        ("one", {"model": "abc{}"}, "model"),
        ("one", {"request_id": "abc{}"}, "request_id"),
        ("one", {"source_language": "abc{}"}, "source_language"),
        ("one", {"target_language": "abc{}"}, "target_language"),
        ("one", {"decoding": Decoding(stop=["a", "abc{}", "b"])}, "decoding.stop[1]"),
    ],
)
@pytest.mark.parametrize("code", [0xD800, 0xDBFF, 0xDC00, 0xDFFF])
def test_a_lone_surrogate_is_named(fake, source, options, field, code):
    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{}", chr(code))
        if isinstance(value, Decoding):
            return dataclasses.replace(value, stop=fill(value.stop))
        if isinstance(value, list):
            return [fill(item) for item in value]
        return {name: fill(item) for name, item in value.items()}

    with Client(fake.address) as client, pytest.raises(InvalidArgumentError) as error_info:
        client.attribute(fill(source), **fill(options))
    message = f"has a lone surrogate, U+{code:04X} at index 3: no text may have one"
    assert str(error_info.value) == f"{field}: {message}"
    assert error_info.value.fields == {field: message}
    assert fake.requests == []


def test_a_name_and_an_address_may_have_no_lone_surrogate(fake):
    with Client(fake.address) as client, pytest.raises(InvalidArgumentError, match=r"^name: has a lone surrogate"):
        client.get_model("\udc80")
    with pytest.raises(InvalidArgumentError, match=r"^address: has a lone surrogate"):
        Client("\udc80")


async def test_the_asyncio_client_refuses_the_same(fake):
    async with AsyncClient(fake.address) as client:
        for options in ({"tarqet": "Hallo"}, {"decoding": Decoding(stop="Hund")}, {"timeout": "5"}):
            with pytest.raises(InvalidArgumentError):
                client.attribute("one two", **options)
        with pytest.raises(InvalidArgumentError):
            await client.get_model(5)
        with pytest.raises(InvalidArgumentError):
            await client.list_models(timeout="5")
    assert fake.requests == []


@pytest.mark.parametrize(
    ("source", "field"),
    [
        ([{"role": "user", "content": None}], "source.chat.messages[0].content"),
        ([{"role": "user", "content": "a"}, {"role": 5, "content": "b"}], "source.chat.messages[1].role"),
        ([{"role": "user", "content": ["a"]}], "source.chat.messages[0].content"),
        ([{"role": "user", "content": "\ud800"}], "source.chat.messages[0].content"),
        ([{"role": "user", "content": "a", "name": "b"}], "source.chat.messages[0].name"),
        ([{"role": "user"}], "source"),
        ([{"role": "user", "content": "a"}, 5], "source"),
        ({"role": "user", "content": "a"}, "source"),
        ({1, 2}, "source"),
        ([True], "source"),
        ([1.5], "source"),
        (np.array([[1]]), "source"),
        (np.array([0.5]), "source"),
        (None, "source"),
        (str, "source"),
        (b"x", "source"),
        (iter([1]), "source"),
    ],
)
def test_invalid_sources(fake, source, field):
    with Client(fake.address) as client, pytest.raises(InvalidArgumentError) as error_info:
        client.attribute(source)
    assert error_info.value.field == field
    assert field in str(error_info.value)
    assert fake.requests == []


@pytest.mark.parametrize("make", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"address": 50051}, "address"),
        ({"address": "\ud800"}, "address"),
        ({"tls": 1}, "tls"),
        ({"tls": TlsOptions(ca=1)}, "tls.ca"),
        ({"token": b"secret"}, "token"),
        ({"token": "two words"}, "token"),
        ({"insecure": "yes"}, "insecure"),
        ({"credentials": "secret"}, "credentials"),
        ({"credentials": grpc.ChannelCredentials}, "credentials"),
        ({"options": {"grpc.max_send_message_length": 1}}, "options"),
        ({"options": [("grpc.max_send_message_length",)]}, "options"),
        ({"options": "grpc"}, "options"),
    ],
)
async def test_invalid_arguments_of_a_client(make, arguments, field):
    with pytest.raises(InvalidArgumentError) as error_info:
        make(**arguments)
    assert error_info.value.field == field


def test_names_and_timeouts_of_the_other_calls(fake):
    with Client(fake.address) as client:
        for value in WRONG:
            if not isinstance(value, str) or value == "\ud800":
                with pytest.raises(InvalidArgumentError) as error_info:
                    client.get_model(value)
                assert error_info.value.field == "name"
            if not is_declared(value, float | None):
                for call in (client.get_model, client.list_models):
                    with pytest.raises(InvalidArgumentError) as error_info:
                        call(timeout=value)
                    assert error_info.value.field == "timeout"


@pytest.mark.parametrize("value", ["text", None, 5, [None], {}, Capture()])
def test_values_that_cannot_be_saved(tmp_path, value):
    with pytest.raises(InvalidArgumentError) as error_info:
        save(value, tmp_path / "out.json")
    assert error_info.value.field == "attributions"
    with pytest.raises(InvalidArgumentError) as error_info:
        save([], value if not isinstance(value, str) else b"out.json")
    assert error_info.value.field == "path"


def test_this_module_tests_every_public_call():
    """A new option or argument must be added to the lists above."""
    assert {declared for declared, *_ in FIELDS} == {
        AttributeOptions,
        Capture,
        Contrast,
        Decoding,
        Sampling,
        Beam,
    }
    assert all(not dataclasses.fields(strategy) for strategy in (Greedy,))
    assert set(ConnectionOptions.__annotations__) == {"tls", "token", "insecure", "credentials", "options"}
    for client in (Client, AsyncClient):
        assert set(inspect.signature(client).parameters) == {"address", "options"}
        assert set(inspect.signature(client.get_model).parameters) == {"self", "name", "timeout"}
        assert set(inspect.signature(client.list_models).parameters) == {"self", "timeout"}
    assert set(inspect.signature(save).parameters) == {"attributions", "path"}


def test_numbers_of_numpy_and_long_timeouts_are_accepted(fake):
    decoding = Decoding(Sampling(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint64(2**63)))
    capture = Capture(layers=np.array([1, 0]), heads=None, steps=[0, None], top_k=np.int32(2))
    with Client(fake.address) as client:
        for timeout in (np.float64(30), 30, 10**5000, 1e300, 1e10):
            assert client.attribute("one two", decoding=decoding, capture=capture, timeout=timeout).result().text
            client.get_model(timeout=timeout)
    request = fake.requests[0]
    assert (request.decoding.sampling.top_k, request.decoding.sampling.seed) == (3, 2**63)
    assert list(request.capture.heads.layers.layers) == [1, 0]
    with Client(fake.address) as client:
        assert client.attribute((3, 4), timeout=30).result().text
        assert client.attribute(np.array([3, 4], np.uint16), timeout=30).result().text
        assert client.attribute(range(2), timeout=30).result().text
