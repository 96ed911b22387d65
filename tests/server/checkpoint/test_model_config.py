"""A config.json that makes no sense is refused before memory is taken; other failures blame no field."""

from __future__ import annotations

import pytest
from damaged_checkpoints import edit, refusal


@pytest.mark.covering(1)
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
def test_a_failure_that_is_not_the_files_blames_no_field(copy_model, monkeypatch, caplog, name, fields, step, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    path = copy_model(name)
    edit(path / "config.json", **fields)
    monkeypatch.setattr(f"sidelight.server.models.loader.{step}", fail)
    assert refusal(path) == "the model cannot be run; the log says why"
    (said,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert said.exc_info is not None
    assert said.exc_info[1] is error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder_layers", 10**6),
        ("decoder_layers", 10**9),
        ("d_model", 10**9),
        ("vocab_size", 10**12),
        ("max_position_embeddings", 10**12),
        ("max_position_embeddings", 10**6),  # which would be computed in Python for minutes
        ("encoder_ffn_dim", 10**11),
        ("num_labels", 10**12),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(copy_model, field, value):
    path = copy_model("marian")
    edit(path / "config.json", **{field: value})
    assert "config.json" in refusal(path)
