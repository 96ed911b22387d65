"""A model is served whole or not at all: what is wrong with its folder is said in a line that names the file."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from model_zoo import FAMILIES, build_model
from safetensors.torch import load_file, save_file
from sidelight.server.checkpoint import fields as checkpoint_fields
from sidelight.server.checkpoint import tokenizer_files
from sidelight.server.checkpoint.files import CheckpointError, open_checkpoint
from sidelight.server.models.loader import ModelError, bundled_model, load

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
# What a line for people does not say.
# Wrong fields that are tried of each file; many more by hand.
TRIALS = int(os.environ.get("SIDELIGHT_TRIALS", "5"))

UNHELPFUL = ("Traceback", "NoneType", "Error while loading", "\n", "list index out of range")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture
def copied(zoo, tmp_path):
    """Copies of a model's folder, to be damaged."""

    def copy(name: str) -> Path:
        source = bundled_model() if name == "bundled" else build_model(name, zoo)
        target = tmp_path / "model"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(source, target))

    return copy


def refusal(path: str | Path, **options) -> str:
    """Why a model is not loaded: the line, without where it is."""
    with pytest.raises(ModelError) as raised:
        load(path, packed=False, **options)
    message = str(raised.value)
    assert message.startswith(f"cannot load {path}: ")
    for words in UNHELPFUL:
        assert words not in message
    assert len(message) < 500 + len(str(path))
    return message.removeprefix(f"cannot load {path}: ")


def edit(path: Path, **fields) -> None:
    """Sets fields of a file in JSON; None takes them out."""
    values = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}), encoding="utf-8")


@contextlib.contextmanager
def weights(path: Path):
    """The tensors of a folder, written again with what has been done to them."""
    tensors = load_file(path / "model.safetensors")
    yield tensors
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path / "model.safetensors", {"format": "pt"})


# ---- damaged files --------------------------------------------------------------------------------------------------

# Files of a family that it cannot do without, and others.
FILES = {
    "marian": (["config.json", "model.safetensors", "source.spm", "target.spm", "vocab.json"], []),
    "gpt2": (["config.json", "model.safetensors", "tokenizer.json"], ["generation_config.json"]),
    "fsmt": (["vocab-src.json", "vocab-tgt.json", "merges.txt"], ["tokenizer_config.json"]),
}
SHAPES = [b"[]", b"3", b'"x"', b"null", b"[[1]]", b"true", b"{}", b"[" * 100_000, b'{"a": }', b'{"a": 1} x']
OPTIONAL_AS_EMPTY = ("generation_config.json", "tokenizer_config.json")  # `{}` is as good as no file


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(copied, name):
    needed, others = FILES[name]
    for file in (*needed, *others):
        path = copied(name) / file
        whole = path.read_bytes()
        damages = [None] * (file in needed) + [POINTER, bytes(range(128, 256)) * 20]
        if not file.endswith(".txt"):  # what is left of lines is lines
            damages += [b"", whole[: len(whole) // 2]]
        if file.endswith(".json"):
            damages += [shape for shape in SHAPES if shape != b"{}" or file not in OPTIONAL_AS_EMPTY]
        for damage in damages:
            path.unlink(missing_ok=True)
            if damage is not None:
                path.write_bytes(damage)
            assert file in refusal(path.parent), damage
        path.unlink()
        path.mkdir()
        assert f"{file} is not a file" in refusal(path.parent)
        path.rmdir()
        os.mkfifo(path)  # which would be waited for
        assert f"{file} is not a file" in refusal(path.parent)


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


@pytest.mark.parametrize("name", ["marian", "gpt2", "t5", "mbart", "fsmt"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_wrong_field_is_named_in_plain_words_or_does_no_harm(copied, name, file):
    path = copied(name)
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
        ("marian", "generation_config.json", "early_stopping", [1], "early_stopping cannot be [1]"),
        ("marian", "generation_config.json", "top_k", "x", 'top_k must be a whole number, 0 or above, not "x"'),
        ("marian", "tokenizer_config.json", "eos_token", -1, "eos_token cannot be -1"),
        ("gpt2", "tokenizer_config.json", "unk_token", "", 'unk_token cannot be ""'),
        ("gpt2", "tokenizer.json", "added_tokens", [1, 2], "added_tokens cannot be [1, 2]"),
        ("gpt2", "tokenizer.json", "decoder", "x", 'decoder cannot be "x"'),
        ("gpt2", "tokenizer.json", "model", None, "model must be an object with fields, not null"),
        ("marian", "vocab.json", "</s>", "x", 'the number of the token "</s>" must be a whole number, not "x"'),
    ],
)
def test_the_error_of_a_wrong_field_says_what_the_field_must_be(copied, name, file, field, value, said):
    path = copied(name)
    fields = json.loads((path / file).read_text(encoding="utf-8"))
    (path / file).write_text(json.dumps(fields | {field: value}), encoding="utf-8")
    assert refusal(path).startswith(f"{file}: {said}")


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA driver version is insufficient"), OSError(28, "No space left on device"), KeyError(3)]
)
@pytest.mark.parametrize(
    ("name", "fields", "step"),
    [
        ("bundled", {}, "select_backend"),  # its numbers are of half precision
        ("bart", {"dtype": "float16"}, "find_attention_layers"),
        ("t5", {"dtype": "bfloat16"}, "select_backend"),
        ("gpt2", {"n_inner": -1}, "load_weights"),  # which would fail later, and otherwise
    ],
)
def test_a_failure_that_is_not_the_files_blames_no_field(copied, monkeypatch, caplog, name, fields, step, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    path = copied(name)
    edit(path / "config.json", **fields)
    monkeypatch.setattr(f"sidelight.server.models.loader.{step}", fail)
    assert refusal(path) == "the model cannot be run; the log says why"
    (said,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert said.exc_info is not None
    assert said.exc_info[1] is error


def test_a_trial_stops_at_the_size_of_the_files_and_in_time(copied, monkeypatch):
    monkeypatch.setattr(checkpoint_fields, "_MAX_SEARCH_SECONDS", 1.0)
    path = copied("t5")
    edit(path / "config.json", model_type="switch_transformers", architectures=None, d_model=-1, num_experts=10**6)
    began = time.monotonic()
    assert refusal(path) == "the model cannot be run; the log says why"
    assert time.monotonic() - began < 60  # a single model without bounds takes many minutes


def test_the_search_for_a_field_ends_in_time_for_all_files_together(copied, monkeypatch):
    trials = 0

    def fail(*_: object) -> None:
        nonlocal trials
        trials += 1
        time.sleep(0.1)
        raise ValueError("it cannot be made")

    path = copied("fsmt")
    monkeypatch.setattr(tokenizer_files, "_make", fail)
    monkeypatch.setattr(checkpoint_fields, "_MAX_SEARCH_SECONDS", 0.3)
    assert refusal(path).endswith("no tokenizer can be made of what is there: it cannot be made")
    assert trials <= 1 + 4


def test_missing_files_are_named_without_a_tokenizer_class(copied):
    path = copied("marian")
    (path / "source.spm").unlink()
    assert refusal(path) == "source.spm is missing, and the tokenizer cannot be made without it"
    (path / "vocab.json").unlink()
    assert refusal(path).endswith(" are missing, and the tokenizer cannot be made without them")


@pytest.mark.parametrize(
    "device",
    [
        "foo",
        "",
        "CPU",
        "cpu:3",
        "cpu:00",
        "cpu:-1",
        "meta",
        "cuda:",
        "cuda:x",
        "cuda:00",
        "cuda:01",
        "cuda:9999",
        "mps",
    ],
)
def test_the_error_of_an_unknown_device_lists_the_devices(device):
    with pytest.raises(ModelError) as raised:
        load(device=device)
    assert str(raised.value) == f'cannot use device "{device}": it must be auto, cpu, cuda, or a GPU such as cuda:1'


def test_a_missing_gpu_is_an_error(monkeypatch):
    with pytest.raises(ModelError, match=r"^cannot use device cuda:99: "):
        load(device="cuda:99")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelError, match=r"^cannot use device cuda:2: torch finds cuda:0 to cuda:1$"):
        load(device="cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"^cannot use device cuda: torch finds no GPU that it can use$"):
        load(device="cuda")


def test_too_little_memory_is_an_error(copied, monkeypatch):
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("sidelight.server.models.loader.find_attention_layers", fail)
    monkeypatch.delattr("sidelight.server.models.loader.model_error")  # no field is looked for
    assert refusal(copied("gpt2")) == "it needs more memory than there is on cpu"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder_layers", 10**6),
        ("decoder_layers", 10**9),
        ("d_model", 10**9),
        ("vocab_size", 10**12),
        ("max_position_embeddings", 10**12),
        ("encoder_ffn_dim", 10**11),
        ("num_labels", 10**12),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(copied, field, value):
    path = copied("marian")
    edit(path / "config.json", **{field: value})
    assert "config.json" in refusal(path)


def test_layers_of_a_part_of_a_model_are_counted(copied):
    path = copied("gpt2")
    edit(path / "config.json", text_config={"num_hidden_layers": 10**6})
    assert refusal(path).startswith("config.json: text_config.num_hidden_layers is 1,000,000, and model.safetensors")


@pytest.mark.parametrize("path", [["text_config"], ["decoder", "text_config"], ["a"] * 800])
def test_labels_of_a_part_of_a_model_are_counted(copied, path):
    folder = copied("gpt2")
    part: dict[str, object] = {"num_labels": 5 * 10**6}
    for name in path[:0:-1]:
        part = {name: part}
    edit(folder / "config.json", **{path[0]: part})
    where = ".".join([*path, "num_labels"])
    with pytest.raises(ModelError) as raised:
        load(folder, packed=False)
    assert str(raised.value).endswith(f"config.json: {where} must be at most 1,000,000, not 5,000,000")


@pytest.mark.parametrize("fields", [{"load_in_8bit": True}, {"load_in_4bit": True}, {"quant_method": "bitsandbytes"}])
def test_a_quantization_needs_its_method_or_its_bits(copied, fields):
    path = copied("gpt2")
    edit(path / "config.json", quantization_config=fields)
    assert open_checkpoint(path).config["quantization_config"] == fields
    for wrong in ({}, [], "x", {"load_in_8bit": False}, {"load_in_4bit": None}):
        edit(path / "config.json", quantization_config=wrong)
        with pytest.raises(CheckpointError, match="quantization_config must be an object with quant_method"):
            open_checkpoint(path)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_an_error(name):
    with pytest.raises(ModelError, match=r"^the model's name is empty: "):
        load(name)


def test_what_is_no_folder_is_said(tmp_path):
    assert refusal(tmp_path / "nothing" / "here" / "x").startswith("is neither a folder nor an id")
    assert "hub cannot be asked" in refusal("nobody/nothing")
    (tmp_path / "file").write_text("x")
    assert refusal(tmp_path / "file") == "is a file, where a model's folder should be"
    assert refusal(tmp_path) == "config.json is missing"


def write_tokenizer(path: Path, kind: str) -> str:
    """Gives a GPT-2 a tokenizer with a file in JSON that numbers no tokens. Returns this file's name."""
    words = ["<s>", "</s>", "<pad>", "<unk>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "a", "b", "c"]
    if kind == "WhisperTokenizer":  # beside what there is
        (path / "normalizer.json").write_text('{"colour": "color"}')
        edit(path / "tokenizer_config.json", tokenizer_class=kind)
        return "normalizer.json"
    for file in path.glob("*token*.json"):
        file.unlink()
    (path / "vocab.txt").write_text("\n".join(words))
    if kind == "RoCBertTokenizer":
        for file in ("word_shape.json", "word_pronunciation.json"):
            (path / file).write_text(json.dumps({word: [1, 2] for word in words}))
        fields = {"tokenizer_class": kind}
        written = "word_shape.json"
    else:
        (path / "emoji.json").write_text('{"emoji": {"x": "a"}, "emoji_inv": {"a": "x"}}')
        fields = {"tokenizer_class": kind} | {f"{end}_token": "</s>" for end in ("bos", "eos", "unk", "pad")}
        written = "emoji.json"
    (path / "tokenizer_config.json").write_text(json.dumps(fields))
    return written


@pytest.mark.parametrize("kind", ["GPTNeoXJapaneseTokenizer", "RoCBertTokenizer", "WhisperTokenizer"])
def test_files_of_a_tokenizer_that_number_no_tokens_are_objects(copied, kind):
    path = copied("gpt2")
    name = write_tokenizer(path, kind)
    load(path, packed=False)
    (path / name).write_text("[]")
    assert refusal(path).startswith(f"{name} must hold an object with fields")


# ---- tensors that are not there, or are not finite ------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tensor_that_is_missing_is_named(copied, name):
    generator = torch.Generator().manual_seed(len(name))
    names = sorted(load_file(copied(name) / "model.safetensors"))
    # Biases of scores are zeros where they are missing, as they should be.
    names = [name for name in names if name != "final_logits_bias" and "embed_positions" not in name]
    for place in torch.randperm(len(names), generator=generator)[:3].tolist():
        path = copied(name)
        with weights(path) as tensors:
            del tensors[names[place]]
        message = refusal(path)
        assert message.startswith("model.safetensors lacks")
        assert names[place].split(".")[-1] in message


@pytest.mark.parametrize(("name", "layer"), [("marian", ".decoder.layers.1."), ("gpt2", ".h.2."), ("t5", ".block.1.")])
def test_a_layer_that_is_missing_is_named(copied, name, layer):
    path = copied(name)
    with weights(path) as tensors:
        for tensor in [tensor for tensor in tensors if layer in tensor]:
            del tensors[tensor]
    message = refusal(path)
    assert "lacks" in message
    assert layer in message


@pytest.mark.parametrize(
    ("name", "field"),
    [("marian", "decoder_layers"), ("gpt2", "n_layer"), ("llama", "num_hidden_layers"), ("t5", "num_layers")],
)
@pytest.mark.parametrize("count", [0, 1])
def test_layers_that_are_not_used_are_named(copied, name, field, count):
    path = copied(name)
    edit(path / "config.json", **{field: count}, layer_types=None)
    assert refusal(path).startswith("model.safetensors has more layers than config.json says")


def test_tensors_of_another_use_are_left(copied):
    path = copied("gpt2")
    with weights(path) as tensors:
        tensors["classifier.3.weight"] = torch.ones(3, 3)
    load(path, packed=False)


def test_another_shape_is_an_error(copied):
    path = copied("marian")
    with weights(path) as tensors:
        name = "model.decoder.layers.1.fc1.weight"
        tensors[name] = tensors[name][:, :7]
    assert refusal(path) == f"model.safetensors: the tensor {name} is 64x7, and 64x32 by config.json"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["marian", "t5", "gpt2", "fsmt"])
def test_a_tensor_that_is_not_finite_is_named(copied, name, value):
    names = sorted(load_file(copied(name) / "model.safetensors"))
    for tensor in (names[0], names[len(names) // 2], names[-1]):
        path = copied(name)
        with weights(path) as tensors:
            tensors[tensor].view(-1)[-1] = value
        message = refusal(path)
        assert message.startswith("model.safetensors: NaN or infinity, as float32, in the tensor")


def test_numbers_that_the_type_does_not_hold_are_named(copied):
    path = copied("gpt2")
    with weights(path) as tensors:
        tensors["transformer.h.1.ln_1.weight"][3] = 1e6
    load(path, packed=False)
    expected = "model.safetensors: NaN or infinity, as float16, in the tensor transformer.h.1.ln_1.weight"
    assert refusal(path, dtype="float16") == expected


# ---- generation configs ---------------------------------------------------------------------------------------------

GENERATION = [
    ("eos_token_id", 10**6),
    ("eos_token_id", [0, 6001]),
    ("eos_token_id", "</s>"),
    ("decoder_start_token_id", 6001),
    ("decoder_start_token_id", -1),
    ("forced_bos_token_id", 6001),
    ("forced_eos_token_id", 6001),
    ("bad_words_ids", [[6001]]),
    ("bad_words_ids", [[1], []]),
    ("bad_words_ids", [3]),
    ("suppress_tokens", [5, 6001]),
    ("begin_suppress_tokens", [-1]),
    ("sequence_bias", [[[6001], 1.0]]),
    ("sequence_bias", [[[5], "x"]]),
    ("temperature", 0.0),
    ("temperature", -1.0),
    ("temperature", "hot"),
    ("top_k", -1),
    ("top_p", 0.0),
    ("top_p", 1.5),
    ("min_p", 2.0),
    ("typical_p", 0.0),
    ("epsilon_cutoff", 1.0),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", 0),
    ("encoder_repetition_penalty", -0.5),
    ("no_repeat_ngram_size", -2),
    ("min_new_tokens", -1),
    ("min_length", -1),
    ("max_new_tokens", 0),
    ("max_length", -5),
    ("stop_strings", [3]),
]


@pytest.mark.parametrize(("field", "value"), GENERATION, ids=str)
def test_a_generation_config_that_makes_no_sense_is_refused(copied, field, value):
    path = copied("bundled")
    edit(path / "generation_config.json", **{field: value})
    assert refusal(path).startswith(f"generation_config.json: {field} ")


@pytest.mark.parametrize(
    ("field", "value"),
    [("forced_bos_token_id", -3), ("eos_token_id", [0, -1]), ("bad_words_ids", [[5, -2]]), ("pad_token_id", -2)],
)
def test_the_error_of_a_negative_token_says_what_the_token_must_be(copied, field, value):
    path = copied("bundled")
    edit(path / "generation_config.json", **{field: value})
    least = -1 if field == "pad_token_id" else 0
    assert refusal(path).startswith(f"generation_config.json: {field} must be {least} or above, not -")


def test_the_configurations_own_fields_are_checked_where_there_is_no_other(copied):
    path = copied("bundled")
    (path / "generation_config.json").unlink()
    edit(path / "config.json", forced_eos_token_id=6001)
    assert refusal(path).startswith("config.json: forced_eos_token_id 6001 is outside the vocabulary of 6,001 tokens")
    path = copied("bundled")
    edit(path / "config.json", pad_token_id=-1)
    assert refusal(path).startswith("config.json: pad_token_id -1 is outside")


@pytest.mark.parametrize(("name", "least"), [("bundled", 2), ("nllb", 3), ("gpt2", 2), ("llama", 2), ("fsmt", 2)])
def test_a_length_that_no_text_has_is_refused(copied, name, least):
    path = copied(name)
    assert f"max_length {least - 1} is too few" in refusal(path, max_length=least - 1)
    load(path, packed=False, max_length=least)


# ---- safetensors alone ----------------------------------------------------------------------------------------------


def shard(path: Path) -> dict[str, str]:
    """Puts a folder's weights into two files. Returns which tensor is where."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    places = {name: f"model-{place % 2 + 1:05}-of-00002.safetensors" for place, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, path / file, {"format": "pt"})
    write_index(path, places)
    return places


def write_index(path: Path, places: object, **fields) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": places} | fields
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def test_weights_in_several_files_are_served(copied):
    path = copied("gpt2")
    places = shard(path)
    load(path, packed=False)
    (path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(path)
    write_index(path, dict.fromkeys(places, "model-00001-of-00002.safetensors"))
    assert refusal(path).startswith("model.safetensors.index.json lacks")
    for wrong in ({}, [], None, "x"):
        write_index(path, wrong)
        assert refusal(path).startswith("model.safetensors.index.json: weight_map")
    write_index(path, places, metadata=None)
    assert refusal(path).startswith("model.safetensors.index.json has no metadata")


class Exploding:
    """What runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "weights.pt", "x", "", 3, None, ["a.safetensors"]])
def test_an_index_names_safetensors_alone(copied, tmp_path, file):
    path = copied("gpt2")
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    if file == "pytorch_model.bin":
        torch.save(tensors, path / file)
    elif isinstance(file, str) and file:
        torch.save(Exploding(tmp_path / "exploded"), path / file)
    write_index(path, dict.fromkeys(tensors, file))
    message = refusal(path)
    assert message.startswith("model.safetensors.index.json: ")
    assert "must be in a safetensors file" in message
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_alone_is_not_opened(copied):
    path = copied("gpt2")
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    assert (
        refusal(path)
        == "model.safetensors is missing (and pytorch_model.bin is not opened: only safetensors files are)"
    )


def test_a_pickle_by_the_name_of_safetensors_is_not_read(copied, tmp_path):
    path = copied("gpt2")
    torch.save(Exploding(tmp_path / "exploded"), path / "model.safetensors")
    assert "is not a whole safetensors file" in refusal(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("way", ["beside", "absolute", "link", "link to a folder"])
def test_weights_are_in_the_models_folder(copied, tmp_path, way):
    path = copied("gpt2")
    outside = tmp_path / "elsewhere.safetensors"
    shutil.move(path / "model.safetensors", outside)
    names = dict.fromkeys(load_file(outside), "")
    if way == "beside":
        write_index(path, dict.fromkeys(names, "../elsewhere.safetensors"))
    elif way == "absolute":
        write_index(path, dict.fromkeys(names, str(outside)))
    elif way == "link":
        (path / "model.safetensors").symlink_to(outside)
    else:
        (path / "sub").symlink_to(tmp_path)
        write_index(path, dict.fromkeys(names, "sub/elsewhere.safetensors"))
    assert "is outside the model's folder" in refusal(path)


def test_links_within_the_folder_are_followed(copied, tmp_path):
    path = copied("gpt2")
    (path / "files").mkdir()
    for file in [file for file in path.iterdir() if file.is_file()]:
        shutil.move(file, path / "files" / file.name)
        (path / file.name).symlink_to(Path("files") / file.name)
    (tmp_path / "link").symlink_to(path)
    load(tmp_path / "link", packed=False)


@pytest.mark.parametrize(
    ("field", "value"), [("transformers_weights", "pytorch_model.bin"), ("transformers_weights", 3)]
)
def test_a_configuration_names_safetensors_alone(copied, field, value):
    path = copied("gpt2")
    edit(path / "config.json", **{field: value})
    assert refusal(path) == "config.json: transformers_weights must name a safetensors file"


def test_a_configuration_may_name_the_weights(copied):
    path = copied("gpt2")
    (path / "model.safetensors").rename(path / "weights.safetensors")
    edit(path / "config.json", transformers_weights="weights.safetensors")
    load(path, packed=False)
    shutil.copy(path / "weights.safetensors", path.parent)
    edit(path / "config.json", transformers_weights="../weights.safetensors")
    assert "outside the model's folder" in refusal(path)


@pytest.mark.parametrize("file", ["adapter_config.json", "shard-00000-model-00001-of-00001.safetensors"])
def test_what_would_be_loaded_besides_is_refused(copied, file):
    path = copied("gpt2")
    (path / file).write_text('{"base_model_name_or_path": "../other"}')
    assert file in refusal(path)


@pytest.fixture
def cached(copied, tmp_path, monkeypatch):
    """A model as the hub's cache has it: links to blobs, in a snapshot's folder."""
    import huggingface_hub.constants
    import transformers.utils.hub

    cache = tmp_path / "hub"
    repository = cache / "models--somebody--a-model"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    for file in copied("gpt2").iterdir():
        shutil.copy(file, repository / "blobs" / f"blob-of-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob-of-{file.name}")
    for module in (huggingface_hub.constants, transformers.utils.hub):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache), raising=False)
    return snapshot


def test_a_snapshot_of_the_hub_is_served_by_its_id(cached):
    assert load("somebody/a-model", packed=False).name == "somebody/a-model"
    load(cached, packed=False)


def test_a_snapshot_of_the_hub_is_checked_as_a_folder_is(cached, tmp_path):
    weights = cached / "model.safetensors"
    shutil.copy(weights, tmp_path / "elsewhere.safetensors")
    names = load_file(weights)
    weights.unlink()
    assert "model.safetensors is missing" in refusal("somebody/a-model")
    write_index(cached, dict.fromkeys(names, "pytorch_model.bin"))
    assert "must be in a safetensors file" in refusal("somebody/a-model")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    assert refusal("somebody/a-model") == "model.safetensors is outside the model's folder"
    assert refusal(cached) == "model.safetensors is outside the model's folder"
