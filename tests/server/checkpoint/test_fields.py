"""The error of a wrong field names the file and the field, and says in JSON's words what the field must be."""

from __future__ import annotations

import json
import os
import random
import re
import time

import pytest
from combinations import slow_except
from damaged_checkpoints import edit, refusal
from sidelight.server.checkpoint import fields as checkpoint_fields
from sidelight.server.checkpoint import tokenizer_files
from sidelight.server.models.loader import ModelError, load

# How many wrong fields of each file a test tries. A run by hand tries many more.
TRIALS = int(os.environ.get("SIDELIGHT_TRIALS", "5"))
WRONG = [None, "512", "x", "", -1, 0, 1.5, 10**12, 1e308, True, [], [1, 2], [None], {}, {"a": 1}]
# What a library says: names of types and of classes, and words of Python.
CODE = re.compile(
    r"[Ee]rror|Traceback|Exception|\bobject (of|has|is)|<class|None|True|False|torch|__|\b(str|int|dict|bool|float)\b|"
    r"\b[A-Z][a-z]+[A-Z]\w*|\w\(\)"
)
# Where the tensors, which are right, say other sizes than the field.
BY_TENSORS = re.compile(
    r"^model\.safetensors(: the tensor .* by config\.json| lacks | has more layers than config\.json)"
)


@pytest.mark.parametrize("name", slow_except(["marian", "gpt2", "t5", "mbart", "fsmt"], {"marian", "gpt2"}))
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_wrong_field_is_named_in_plain_words_or_does_no_harm(copy_model, name, file):
    path = copy_model(name)
    if not (path / file).exists():
        pytest.skip(f"this model has no {file}")
    fields = json.loads((path / file).read_text(encoding="utf-8"))
    chance = random.Random(f"{name} {file}")
    for _ in range(TRIALS):
        field, value = chance.choice(sorted(fields)), chance.choice(WRONG)
        (path / file).write_text(json.dumps(fields | {field: value}), encoding="utf-8")
        try:
            load(path, packed=False)
        except ModelError as error:
            line = str(error).removeprefix(f"cannot load {path}: ")
            assert "\n" not in line
            assert len(line) < 500
            assert BY_TENSORS.match(line) or not CODE.search(line.replace(json.dumps(value), "")), line
            names_its_use = line.startswith("its tokenizer has") or "separate source and target" in line
            if field == "langs":  # without which FSMT's tokenizer cannot be made either, so that it is not found
                names_its_use |= file in line
            assert (file in line and field in line) or BY_TENSORS.match(line) or names_its_use, (
                field,
                value,
                line,
            )


@pytest.mark.parametrize(
    ("name", "file", "field", "value", "said"),
    [
        ("marian", "config.json", "d_model", "512", 'd_model must be a whole number, not "512"'),
        ("marian", "config.json", "d_model", [], "d_model must be a whole number, not []"),
        ("marian", "config.json", "d_model", -1, "d_model cannot be -1"),
        ("marian", "config.json", "use_cache", "x", 'use_cache must be true or false, not "x"'),
        ("marian", "config.json", "eos_token_id", "x", 'eos_token_id must be a whole number, a list or null, not "x"'),
        ("marian", "config.json", "init_std", 1, "init_std must be a number with a decimal point, not 1"),
        ("marian", "config.json", "activation_function", "x", 'activation_function cannot be "x"'),
        ("marian", "config.json", "decoder_layers", -2, "decoder_layers must be 0 or above, not -2"),
        ("gpt2", "config.json", "n_head", 0, "n_head cannot be 0"),
        ("gpt2", "config.json", "dtype", "x", 'dtype cannot be "x"'),
        ("llama", "config.json", "max_position_embeddings", 1, "max_position_embeddings: 1 positions are too few"),
        ("marian", "generation_config.json", "early_stopping", [1], 'early_stopping must be true, false or "never"'),
        ("marian", "generation_config.json", "top_k", "x", 'top_k must be a whole number, 0 or above, not "x"'),
        ("marian", "tokenizer_config.json", "eos_token", -1, "eos_token cannot be -1"),
        ("gpt2", "tokenizer_config.json", "unk_token", "", 'unk_token cannot be ""'),
        ("gpt2", "tokenizer.json", "added_tokens", [1, 2], "added_tokens cannot be [1, 2]"),
        ("gpt2", "tokenizer.json", "decoder", "x", 'decoder must be an object with fields or null, not "x"'),
        ("gpt2", "tokenizer.json", "model", None, "model must be an object with fields, not null"),
        ("marian", "vocab.json", "</s>", "x", 'the number of the token "</s>" must be a whole number, not "x"'),
    ],
)
def test_the_error_of_a_wrong_field_says_what_the_field_must_be(copy_model, name, file, field, value, said):
    path = copy_model(name)
    fields = json.loads((path / file).read_text(encoding="utf-8"))
    (path / file).write_text(json.dumps(fields | {field: value}), encoding="utf-8")
    assert refusal(path).startswith(f"{file}: {said}")


def test_a_trial_stops_at_the_size_of_the_files_and_in_time(copy_model, monkeypatch):
    monkeypatch.setattr(checkpoint_fields, "_MAX_SEARCH_SECONDS", 1.0)
    path = copy_model("t5")
    edit(path / "config.json", model_type="switch_transformers", architectures=None, d_model=-1, num_experts=10**6)
    began = time.monotonic()
    assert refusal(path) == "the model cannot be run; the log says why"
    assert time.monotonic() - began < 60  # a single model without bounds takes many minutes


def test_the_search_for_a_field_ends_in_time_for_all_files_together(copy_model, monkeypatch):
    trials = 0

    def fail(*_: object) -> None:
        nonlocal trials
        trials += 1
        time.sleep(0.1)
        raise ValueError("it cannot be made")

    path = copy_model("fsmt")
    monkeypatch.setattr(tokenizer_files, "_make", fail)
    monkeypatch.setattr(checkpoint_fields, "_MAX_SEARCH_SECONDS", 0.3)
    assert refusal(path).endswith("no tokenizer can be made of what is there: it cannot be made")
    assert trials <= 1 + 4
