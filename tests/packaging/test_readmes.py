"""What READMEs, guides and the changelog say is so: links lead somewhere, commands and options exist, code runs."""

from __future__ import annotations

import contextlib
import io
import json
import re
from importlib.util import find_spec
from pathlib import Path

import grpc
import pytest
from documents import GUIDES, NAMES, ROOT, RUNS_ELSEWHERE, DocumentRunner, anchors, command_lines, has_block, tokens
from google.protobuf import json_format
from sidelight.client.cli.main import main
from sidelight.server.models.loader import bundled_model
from sidelight.server.settings import SETTINGS
from sidelight.v1 import attribution_service_pb2, attribution_service_pb2_grpc

WITH_CODE = [name for name in NAMES if has_block(name, "python", "sh")]
# Their commands are processes of their own, or load other libraries: these tests take seconds.
SLOW = {"README.md", "client/README.md", *(path.relative_to(ROOT).as_posix() for path in GUIDES.glob("*.md"))}
# Libraries that not every Python has.
NEEDED = {"client/guides/decoders.md": "ctranslate2", "client/guides/results.md": "inseq"}


def help_of(*command: str) -> str:
    """What a command of `sidelight` prints of its options."""
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    return output.getvalue()


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def test_the_packages_have_readmes():
    assert {"README.md", "proto/README.md", "server/README.md", "kernels/README.md"} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str):
    targets = [token.attrs.get("href", token.attrs.get("src")) for token in tokens(name)]
    for link in map(str, filter(None, targets)):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), link
        assert not anchor or anchor in anchors(file.resolve().relative_to(ROOT).as_posix()), link


@pytest.mark.parametrize("name", [name for name in NAMES if has_block(name, "", "sh")])
def test_commands_exist(name: str):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in command_lines(name):
        command, *arguments = line.split() or [""]
        if command == "make" and arguments[:1] == ["-C"]:
            assert (ROOT / arguments[1] / "Makefile").exists(), line
        elif command == "make" and arguments:
            assert re.search(rf"^{re.escape(arguments[0])}:", makefile, re.MULTILINE), line
        elif command == "sidelight" and arguments:
            length = 2 if arguments[0] == "kernels" and len(arguments) > 1 else 1
            assert options_in(line) <= options_in(help_of(*arguments[:length])), line
        elif command == "bash":
            assert (ROOT / arguments[0]).exists(), line


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        (name, commands)
        for name, commands in (
            ("client/README.md", ["attribute", "demo", "models"]),
            ("server/README.md", ["serve", "top"]),
            ("kernels/README.md", ["kernels audit", "kernels bench", "kernels build"]),
        )
        if name in NAMES
    ],
)
def test_every_option_is_explained(name: str, commands: list[str]):
    text = (ROOT / name).read_text(encoding="utf-8")
    for command in commands:
        assert options_in(help_of(*command.split())) - {"--help"} <= options_in(text), command


def test_the_table_of_the_servers_settings_has_each_setting_with_its_default():
    rows = re.findall(
        r"^\| `(--[\w-]+|MODEL)` \| (.*?) \|", (ROOT / "server/README.md").read_text(encoding="utf-8"), re.M
    )
    documented = {flag: default.strip("`") for flag, default in rows}
    assert len(documented) == len(rows)
    assert documented.keys() == {setting.flag for setting in SETTINGS if setting.has_flag} | {"--config", "--model"}
    fixed = {
        setting.flag: str(setting.default)
        for setting in SETTINGS
        if setting.has_flag and setting.default not in (None, False)
    }
    assert len(fixed) == 15
    assert {flag: documented[flag] for flag in fixed} == fixed


def test_the_table_of_keys_has_each_setting_without_a_flag_with_its_default():
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d.]+) \| [A-Z]", (ROOT / "server/README.md").read_text(encoding="utf-8"), re.M
    )
    assert dict(rows) == {setting.name: str(setting.default) for setting in SETTINGS if not setting.has_flag}


@pytest.mark.parametrize("test", RUNS_ELSEWHERE.values())
def test_what_runs_elsewhere_runs(test: str):
    path, _, function = test.partition("::")
    assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # BertViz leaves its files to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in WITH_CODE]
)
def test_code_runs(name: str, bundled_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs each block of Python and of the shell, and compares what it prints with the block after it."""
    monkeypatch.chdir(tmp_path)
    if (library := NEEDED.get(name)) and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if name == "client/guides/decoders.md":
        import ctranslate2_peer

        (tmp_path / "model").symlink_to(bundled_model())
        ctranslate2_peer.convert(bundled_model(), tmp_path / "ct2-model")
    assert DocumentRunner(name, bundled_server, tmp_path).run()


def test_the_request_in_json_is_one_of_the_contract(bundled_server: str):
    (line,) = [line for line in command_lines("README.md") if line.startswith("grpcurl")]
    data, service, method = re.findall(r"-d '(.*)'\s+127\.0\.0\.1:50051 (\S+)/(\w+)", line)[0]
    request = json_format.Parse(data, attribution_service_pb2.AttributeRequest())
    assert json.loads(data).keys() == {field.name for field, _ in request.ListFields()}
    assert service == attribution_service_pb2.DESCRIPTOR.services_by_name["AttributionService"].full_name
    with grpc.insecure_channel(bundled_server) as channel:
        stub = attribution_service_pb2_grpc.AttributionServiceStub(channel)
        events = list(getattr(stub, method)(request))
    assert events[-1].finished.text
    assert len(events[-2].steps.steps[-1].cross.shape) == 2


def test_the_tree_of_the_house_has_every_folder_of_code():
    (tree,) = [
        token.content for token in tokens("README.md") if token.type == "fence" and token.content.startswith("proto/")
    ]
    in_tree: set[str] = set()
    parent = ""
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+?)/ ", line).groups()  # pyright: ignore[reportOptionalMemberAccess]
        parent = parent if indent else name
        in_tree.add(f"{parent}/{name}" if indent else name)
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for top in ("client", "server", "kernels")
        for path in ROOT.glob(f"{top}/**/*.py")
    }
    assert {folder for folder in folders if folder.count("/") < 2} <= in_tree
    assert all((ROOT / folder).is_dir() for folder in in_tree)
