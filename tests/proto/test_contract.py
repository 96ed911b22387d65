"""The contract keeps promises that `buf lint` and `buf breaking` cannot check."""

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from packaging.requirements import Requirement
from packaging.version import Version
from sidelight.v1 import attention_pb2, attribution_service_pb2, model_pb2, text_pb2

CONTRACT = Path(__file__).parents[2] / "proto" / "sidelight" / "v1"
FILES = [module.DESCRIPTOR for module in (attention_pb2, attribution_service_pb2, model_pb2, text_pb2)]


def messages() -> list[Descriptor]:
    return [message for file in FILES for message in file.message_types_by_name.values()]


def enums() -> list[EnumDescriptor]:
    return [enum for file in FILES for enum in file.enum_types_by_name.values()]


def comments() -> str:
    lines = [
        line.strip() for path in CONTRACT.glob("*.proto") for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return " ".join(line.removeprefix("//").strip() for line in lines if line.startswith("//"))


def test_each_file_of_the_contract_is_tested():
    assert sorted(file.name for file in FILES) == sorted(
        f"sidelight/v1/{path.name}" for path in CONTRACT.glob("*.proto")
    )


def test_the_contract_is_self_contained():
    imported = {dependency.name for file in FILES for dependency in file.dependencies}
    assert all(name.startswith(("sidelight/v1/", "google/protobuf/")) for name in imported)


@pytest.mark.parametrize(
    ("rpc", "client_streams", "server_streams"),
    [
        ("Attribute", False, True),
        ("AttributeMany", True, True),
        ("Follow", True, True),
        ("Align", False, False),
        ("GetModel", False, False),
        ("ListModels", False, False),
    ],
)
def test_rpc_streams_as_promised(rpc: str, client_streams: bool, server_streams: bool):
    method = attribution_service_pb2.DESCRIPTOR.services_by_name["AttributionService"].methods_by_name[rpc]
    assert (method.client_streaming, method.server_streaming) == (client_streams, server_streams)


def test_fields_as_in_attribute_request_are_of_its_types():
    """FollowStart and AlignRequest say "As in AttributeRequest" of their fields."""

    def fields(message: type[Message]) -> dict[str, FieldDescriptor]:
        return {field.name: field for field in message.DESCRIPTOR.fields}

    def type_of(field: FieldDescriptor) -> tuple[object, ...]:
        return field.type, field.is_repeated, field.has_presence, field.message_type, field.enum_type

    model = fields(attribution_service_pb2.AttributeRequest)
    for message in (attribution_service_pb2.FollowStart, attribution_service_pb2.AlignRequest):
        shared = model.keys() & fields(message).keys()
        assert {"request_id", "model", "source_language", "target_language"} <= shared
        assert {name: type_of(fields(message)[name]) for name in shared} == {
            name: type_of(model[name]) for name in shared
        }


def test_comments_name_only_what_exists():
    """Comments name constants, such as ROW_PREDICTING, and fields, such as Finished.text: each must exist."""
    text = comments()
    values = {value.name for enum in enums() for value in enum.values}
    prefixes = tuple(name.removesuffix("UNSPECIFIED") for name in values if name.endswith("_UNSPECIFIED"))
    constants = {name for name in re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", text) if name.startswith(prefixes)}
    assert constants
    assert constants <= values

    fields = {f"{message.name}.{field.name}" for message in messages() for field in message.fields}
    names = {message.name for message in messages()}
    named = {name for name in re.findall(r"\b[A-Z][A-Za-z]+\.[a-z_]+\b", text) if name.split(".")[0] in names}
    assert named
    assert named <= fields


@pytest.mark.parametrize(
    ("package", "marker"),
    [
        ("grpcio", r"GRPC_GENERATED_VERSION = '([\d.]+)'"),
        ("protobuf", r"Protobuf Python Version: ([\d.]+)"),
    ],
)
def test_the_lowest_version_runs_the_generated_code(package: str, marker: str):
    """Generated code refuses a runtime older than its generator."""
    code = "".join(path.read_text(encoding="utf-8") for path in CONTRACT.glob("*_pb2*.py"))
    generators = {Version(version) for version in re.findall(marker, code)}
    (needed,) = [r for r in map(Requirement, requires("sidelight") or []) if r.name == package and r.marker is None]
    (lowest,) = [Version(bound.version) for bound in needed.specifier if bound.operator == ">="]
    assert generators
    assert max(generators) <= lowest
