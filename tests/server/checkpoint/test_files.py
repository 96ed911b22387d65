"""The files of a model are whole, and in the model's folder; weights are read from safetensors files only."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from damaged_checkpoints import edit, refusal, shard, write_index
from safetensors.torch import load_file
from sidelight.server.checkpoint import CheckpointError, open_checkpoint
from sidelight.server.models.loader import ModelError, load

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
# Files of a family that it cannot do without, and others.
FILES = {
    "marian": (["config.json", "model.safetensors", "source.spm", "target.spm", "vocab.json"], []),
    "gpt2": (["config.json", "model.safetensors", "tokenizer.json"], ["generation_config.json"]),
    "fsmt": (["vocab-src.json", "vocab-tgt.json", "merges.txt"], ["tokenizer_config.json"]),
}
SHAPES = [b"[]", b"3", b'"x"', b"null", b"[[1]]", b"true", b"{}", b"[" * 100_000, b'{"a": }', b'{"a": 1} x']
OPTIONAL_AS_EMPTY = ("generation_config.json", "tokenizer_config.json")  # `{}` is as good as no file


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(copy_model, name):
    needed, others = FILES[name]
    for file in (*needed, *others):
        path = copy_model(name) / file
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


def test_layers_of_a_part_of_a_model_are_counted(copy_model):
    path = copy_model("gpt2")
    edit(path / "config.json", text_config={"num_hidden_layers": 10**6})
    assert refusal(path).startswith("config.json: text_config.num_hidden_layers is 1,000,000, and model.safetensors")


@pytest.mark.parametrize("path", [["text_config"], ["decoder", "text_config"], ["a"] * 60])
def test_labels_of_a_part_of_a_model_are_counted(copy_model, path):
    folder = copy_model("gpt2")
    part: dict[str, object] = {"num_labels": 5 * 10**6}
    for name in path[:0:-1]:
        part = {name: part}
    edit(folder / "config.json", **{path[0]: part})
    where = ".".join([*path, "num_labels"])
    with pytest.raises(ModelError) as raised:
        load(folder, packed=False)
    assert str(raised.value).endswith(f"config.json: {where} must be at most 1,000,000, not 5,000,000")


@pytest.mark.parametrize("fields", [{"load_in_8bit": True}, {"load_in_4bit": True}, {"quant_method": "bitsandbytes"}])
def test_a_quantization_needs_its_method_or_its_bits(copy_model, fields):
    path = copy_model("gpt2")
    edit(path / "config.json", quantization_config=fields)
    assert open_checkpoint(path).config["quantization_config"] == fields
    for wrong in ({}, [], "x", {"load_in_8bit": False}, {"load_in_4bit": None}):
        edit(path / "config.json", quantization_config=wrong)
        with pytest.raises(CheckpointError, match="quantization_config must be an object with quant_method"):
            open_checkpoint(path)


def test_what_is_no_folder_is_said(tmp_path):
    assert refusal(tmp_path / "nothing" / "here" / "x").startswith("is neither a folder nor an id")
    assert "hub cannot be asked" in refusal("nobody/nothing")
    (tmp_path / "file").write_text("x")
    assert refusal(tmp_path / "file") == "is a file, where a model's folder should be"
    assert refusal(tmp_path) == "config.json is missing"


def test_weights_in_several_files_are_served(copy_model):
    path = copy_model("gpt2")
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
def test_an_index_names_safetensors_alone(copy_model, tmp_path, file):
    path = copy_model("gpt2")
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


def test_a_pickle_alone_is_not_opened(copy_model):
    path = copy_model("gpt2")
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    assert (
        refusal(path)
        == "model.safetensors is missing (and pytorch_model.bin is not opened: only safetensors files are)"
    )


def test_a_pickle_by_the_name_of_safetensors_is_not_read(copy_model, tmp_path):
    path = copy_model("gpt2")
    torch.save(Exploding(tmp_path / "exploded"), path / "model.safetensors")
    assert "is not a whole safetensors file" in refusal(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("way", ["beside", "absolute", "link", "link to a folder"])
def test_weights_are_in_the_models_folder(copy_model, tmp_path, way):
    path = copy_model("gpt2")
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


def test_links_within_the_folder_are_followed(copy_model, tmp_path):
    path = copy_model("gpt2")
    (path / "files").mkdir()
    for file in [file for file in path.iterdir() if file.is_file()]:
        shutil.move(file, path / "files" / file.name)
        (path / file.name).symlink_to(Path("files") / file.name)
    (tmp_path / "link").symlink_to(path)
    load(tmp_path / "link", packed=False)


@pytest.mark.parametrize(
    ("field", "value"), [("transformers_weights", "pytorch_model.bin"), ("transformers_weights", 3)]
)
def test_a_configuration_names_safetensors_alone(copy_model, field, value):
    path = copy_model("gpt2")
    edit(path / "config.json", **{field: value})
    assert refusal(path) == "config.json: transformers_weights must name a safetensors file"


def test_a_configuration_may_name_the_weights(copy_model):
    path = copy_model("gpt2")
    (path / "model.safetensors").rename(path / "weights.safetensors")
    edit(path / "config.json", transformers_weights="weights.safetensors")
    load(path, packed=False)
    shutil.copy(path / "weights.safetensors", path.parent)
    edit(path / "config.json", transformers_weights="../weights.safetensors")
    assert "outside the model's folder" in refusal(path)


@pytest.mark.parametrize("file", ["adapter_config.json", "shard-00000-model-00001-of-00001.safetensors"])
def test_what_would_be_loaded_besides_is_refused(copy_model, file):
    path = copy_model("gpt2")
    (path / file).write_text('{"base_model_name_or_path": "../other"}')
    assert file in refusal(path)


@pytest.fixture
def cached(copy_model, tmp_path, monkeypatch):
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
    for file in copy_model("gpt2").iterdir():
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
