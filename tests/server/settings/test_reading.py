"""Where settings come from, which one holds, and what is said of a wrong one."""

from __future__ import annotations

import json

import pytest
from sidelight.client.cli.main import main

FILE = """
max_slots = 4
max_waiting = 5
max_length = 6
log_level = "warning"

[models.b]
path = "/file"
dtype = "int8"
"""


@pytest.fixture
def config(tmp_path, capsys, monkeypatch):
    """Runs `sidelight config` with a file. Returns the status and the lines that it prints."""
    path = tmp_path / "sidelight.toml"
    monkeypatch.setenv("SIDELIGHT_CONFIG", str(path))

    def run(*flags: str, file: str = FILE) -> tuple[int, list[str]]:
        path.write_text(file, encoding="utf-8")
        status = main(["config", *flags])
        printed = capsys.readouterr()
        return status, (printed.err if status else printed.out).replace(str(path), "FILE").splitlines()

    return run


def test_flags_come_before_the_environment_the_file_and_the_defaults(config, monkeypatch):
    monkeypatch.setenv("SIDELIGHT_MAX_SLOTS", "7")
    monkeypatch.setenv("SIDELIGHT_MAX_WAITING", "8")
    monkeypatch.setenv("SIDELIGHT_OFFLINE", "1")
    status, lines = config("--max-slots", "9", "--no-offline", "--model", "b=/flag,max-slots=3")
    assert status == 0
    assert {
        "max_slots = 9  # flag --max-slots",
        "offline = false  # flag --offline",
        "max_waiting = 8  # environment SIDELIGHT_MAX_WAITING",
        "max_length = 6  # file FILE:max_length",
        "max_feature_mib = 256  # default",
        "# threads is not set  # default",
        "[models.b]",
        'path = "/flag"  # flag --model',
        "max_slots = 3  # flag --model",
        'dtype = "int8"  # file FILE:models.b.dtype',
    } <= set(lines)


def test_what_is_printed_is_a_file_with_the_same_settings(config):
    file = FILE.replace("/file", r"ä\"\\\t 𝛼").replace("models.b", 'models."b.c"')
    status, lines = config("--memory-fraction", "0.25", file=file)
    assert status == 0
    again = config(file="\n".join(lines))
    assert again[0] == 0
    assert [line.partition("  # ")[0] for line in again[1]] == [line.partition("  # ")[0] for line in lines]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("max_slot = 4", "max_slot is no setting; the nearest one is max_slots (file FILE:max_slot)"),
        ('max_slots = "x"', 'max_slots must be a whole number from 1 to 1,000,000,000, not "x" (file FILE:max_slots)'),
        (
            "max_slots = true",
            "max_slots must be a whole number from 1 to 1,000,000,000, not true (file FILE:max_slots)",
        ),
        ("memory_fraction = nan", "memory_fraction must be a number above 0 and at most 1, not NaN (file FILE:"),
        ("address = 5", "address must be a text, not 5 (file FILE:address)"),
        ("[models.b]\ndtype = 'int8'", "models.b.path is missing (file FILE:models.b)"),
        ("[models.b]\npath = '/x'\ndtyp = 'int8'", "models.b.dtyp is no setting; the nearest one is dtype (file FILE:"),
        ("[models.b]\npath = '/x'\ndtype = 'int7'", "models.b.dtype must be one of auto, float32, float16, bfloat16, "),
        ("models = 3", "models must be a table with keys, not 3 (file FILE:models)"),
        ("a = [", "file FILE is not TOML: "),
        ("name = 'a'\n[models.b]\npath = '/x'", "name is for the model that MODEL gives, and no MODEL is given (file "),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_key(config, file, said):
    status, lines = config(file=file)
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"sidelight: {said}")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SIDELIGHT_MAX_SLOT", "1", "environment SIDELIGHT_MAX_SLOT is no setting; the nearest one is SIDELIGHT_MAX_"),
        ("SIDELIGHT_DTYPE", "int7", "dtype must be one of auto, float32, float16, bfloat16, int8, not"),
        ("SIDELIGHT_COMPILE", "often", 'compile must be true or false, not "often" (environment SIDELIGHT_COMPILE)'),
        ("SIDELIGHT_MODELS", "x", "models must be an object in JSON (environment SIDELIGHT_MODELS)"),
        (
            "SIDELIGHT_MODELS",
            json.dumps({"b": {"path": "/x", "threads": 0}}),
            "models.b.threads must be a whole number from 1 to 1,0",
        ),
        ("SIDELIGHT_CONFIG", "/no/file", "file /no/file cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_variable_is_one_line_that_names_it(config, monkeypatch, variable, value, said):
    monkeypatch.setenv(variable, value)
    status, lines = config()
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"sidelight: {said}")


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("b", "must be NAME=PATH"),
        ("b=/x,dtyp=int8", "'dtyp=int8' must be KEY=VALUE"),
        ("b=/x,threads=0", "threads of b must be a whole number from 1 to 1,024"),
        ("b=/x,path=/y", "'path=/y' must be KEY=VALUE"),
    ],
)
def test_a_wrong_model_on_the_command_line_is_named(capsys, flag, said):
    with pytest.raises(SystemExit) as raised:
        main(["serve", "--model", flag])
    assert raised.value.code == 2
    assert f"argument --model: {said}" in capsys.readouterr().err
