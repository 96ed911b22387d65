"""Fields that name code, unknown classes or files elsewhere are refused, and hostile models do no harm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import hostile_models
import pytest
from damaged_checkpoints import edit, refusal
from hostile_models import mutate
from model_zoo import build_model
from sidelight.server.models.loader import load

CODE = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("config.json", {"auto_map": CODE}, "auto_map asks for code"),
        ("config.json", {"decoder": {"text_config": {"auto_map": CODE}}}, "decoder.text_config.auto_map asks for code"),
        ("tokenizer_config.json", {"auto_map": ["evil.Evil", None]}, "auto_map asks for code"),
        ("preprocessor_config.json", {"auto_map": {"AutoProcessor": "evil.Evil"}}, "auto_map asks for code"),
        ("processor_config.json", {"trust_remote_code": True}, "trust_remote_code asks for code"),
        ("generation_config.json", {"custom_generate": "owner/code"}, "custom_generate asks for code"),
        ("config.json", {"custom_pipelines": {"a": {"impl": "evil.Evil"}}}, "custom_pipelines asks for code"),
        ("config.json", {"attn_implementation": "owner/code"}, "attn_implementation must be the name"),
        ("config.json", {"_attn_implementation": {"": "a", "b": "owner/c"}}, "_attn_implementation must be the name"),
        ("config.json", {"attn_implementation": "flash_attention_2"}, "attn_implementation must be the name"),
        (
            "config.json",
            {"decoder": {"_attn_implementation": "flash_attention_3"}},
            "decoder._attn_implementation must",
        ),
        ("config.json", {"_attn_implementation_internal": "owner/code@v1"}, "_attn_implementation_internal must be"),
        ("config.json", {"experts_implementation": "deepgemm"}, "experts_implementation must be the name"),
        ("config.json", {"experts_implementation": "owner/code:f"}, "experts_implementation must be the name"),
        ("config.json", {"architectures": ["Evil"]}, "architectures must be a list of transformers' models"),
        ("config.json", {"architectures": ["AutoTokenizer"]}, "architectures must be a list of transformers' models"),
        ("config.json", {"tokenizer_class": "Evil"}, "tokenizer_class must be a tokenizer of transformers"),
        # which would read pytorch_model.bin
        ("tokenizer_config.json", {"tokenizer_class": "AutoModel"}, "tokenizer_class must be a tokenizer"),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "vocab_file must be the name of a file"),
        ("tokenizer_config.json", {"merges_file": "../other.txt"}, "merges_file must be the name of a file"),
        ("tokenizer_config.json", {"tokenizer_file": "https://x/y"}, "tokenizer_file must be the name of a file"),
        ("tokenizer_config.json", {"sp_model_kwargs": {"model_file": "/x"}}, "sp_model_kwargs.model_file must be the"),
        ("tokenizer_config.json", {"files": ["a", "..\\b"]}, "files.1 must be the name of a file"),
        ("special_tokens_map.json", {"vocab_file": ".."}, "vocab_file must be the name of a file"),
        ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}, "init_inputs must be absent or empty"),
    ],
)
def test_a_field_that_is_not_safe_is_refused_by_its_path(copy_model, file, fields, said):
    path = copy_model("gpt2")
    if not (path / file).exists():
        (path / file).write_text("{}", encoding="utf-8")
    edit(path / file, **fields)
    (path / "evil.py").write_text(hostile_models.CANARY, encoding="utf-8")
    assert refusal(path).startswith(f"{file}: {said}")
    assert not (path / "executed").exists()


def test_fields_of_these_names_that_do_no_harm_are_served(copy_model):
    path = copy_model("gpt2")
    edit(path / "config.json", auto_map={}, trust_remote_code=False, _attn_implementation="sdpa", custom_pipelines={})
    harmless = {
        "name_or_path": "/home/somebody/gpt2",
        "special_tokens_map_file": "/tmp/x.json",
        "vocab_file": "vocab.json",
    }
    edit(path / "tokenizer_config.json", **harmless)
    load(path, packed=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model_type": "gpt2", "a": {"b": [1, NaN]}}', "config.json: a.b.1 must be a finite number"),
        ('{"model_type": "gpt2", "eps": 1e999}', "config.json: eps must be a finite number"),
        ('{"model_type": "gpt2", "eps": -Infinity}', "config.json: eps must be a finite number"),
        (f'{{"model_type": "gpt2", "n": 1{"0" * 5000}}}', "config.json is not JSON that can be read: a number has"),
        (f'{{"a": {"[" * 65}1{"]" * 65}}}', "config.json is nested too deeply at a.0.0"),
        ('{"model_type": "a\\n\\u001b[1m"}', "config.json: model_type 'a\\n\\x1b[1m' is none"),
    ],
)
def test_json_that_no_model_has_is_refused(copy_model, text, said):
    path = copy_model("gpt2")
    (path / "config.json").write_text(text, encoding="utf-8")
    assert refusal(path).startswith(said)


def test_a_name_from_a_file_is_printed_in_one_line(copy_model):
    path = copy_model("gpt2")
    edit(path / "config.json", **{"a\n\x1b[31m\ud800": {"num_labels": 10**9}})
    assert refusal(path) == r"config.json: a\n\x1b[31m\ud800.num_labels must be at most 1,000,000, not 1,000,000,000"


def test_a_limit_may_be_infinite(copy_model):
    path = copy_model("gpt2")
    edit(path / "config.json", time_step_limit=[0.0, float("inf")])
    load(path, packed=False)


@pytest.mark.parametrize(("file", "size"), [("config.json", 17 << 20), ("tokenizer.json", 257 << 20)])
def test_a_huge_file_is_refused_before_it_is_read(copy_model, file, size):
    path = copy_model("gpt2")
    with (path / file).open("r+b") as stream:
        stream.truncate(size)  # the file has a hole, and takes no space
    assert refusal(path).startswith(f"{file} has {size:,} bytes, and may have ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["marian", "llama"])
def test_a_hostile_model_is_refused_in_a_line_or_served(tmp_path, name):
    folder = build_model(name, tmp_path)
    script = Path(hostile_models.__file__)
    run = subprocess.run(
        [sys.executable, script, folder, "--count", "100"], capture_output=True, text=True, check=False, timeout=1500
    )
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert (run.returncode, len(results)) == (0, 100), run.stderr[-2000:]
    for result in results:
        assert result["end"] in ("refused", "served", "answered"), result
        assert result["seconds"] < 60, result
        assert "\n" not in result["line"]
        if result["end"] == "answered":
            assert re.match("INVALID_ARGUMENT|FAILED_PRECONDITION", result["line"]), result
        if result["end"] == "refused" and not result["line"].startswith("model.safetensors"):
            assert result["file"] in result["line"], result
    assert len({result["end"] for result in results}) > 1  # some are refused, and some are served


def test_the_code_of_hostile_models_would_leave_a_trace(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    mutate(tmp_path, hostile_models.Mutation("config.json", ("a",), 1))
    subprocess.run([sys.executable, tmp_path / "evil.py"], check=True)
    assert (tmp_path / "executed").exists()
