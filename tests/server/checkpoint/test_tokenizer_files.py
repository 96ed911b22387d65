"""The files of a tokenizer: which are missing, and which have the wrong form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from damaged_checkpoints import edit, refusal
from sidelight.server.models.loader import load


def test_missing_files_are_named_without_a_tokenizer_class(copy_model):
    path = copy_model("marian")
    (path / "source.spm").unlink()
    assert refusal(path) == "source.spm is missing, and the tokenizer cannot be made without it"
    (path / "vocab.json").unlink()
    assert refusal(path).endswith(" are missing, and the tokenizer cannot be made without them")


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
def test_files_of_a_tokenizer_that_number_no_tokens_are_objects(copy_model, kind):
    path = copy_model("gpt2")
    name = write_tokenizer(path, kind)
    load(path, packed=False)
    (path / name).write_text("[]")
    assert refusal(path).startswith(f"{name} must hold an object with fields")


@pytest.mark.parametrize("id_", [-1, 10**6, 2**31])
def test_a_token_beyond_the_models_vocabulary_is_named(copy_model, id_):
    path = copy_model("marian")
    edit(path / "vocab.json", **{".": id_})
    assert f'vocab.json: the number of the token "." is {id_}, and the model has ' in refusal(path)


@pytest.mark.parametrize("kind", ["x", 3, None, [1]])
def test_a_model_that_the_tokenizers_library_does_not_have_is_named(copy_model, kind):
    path = copy_model("gpt2")
    fields = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    fields["model"]["type"] = kind
    (path / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    assert refusal(path).startswith('tokenizer.json: model.type must be "BPE" or "Unigram"')
