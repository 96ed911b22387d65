"""A generation config that makes no sense is refused, and the error names the field."""

from __future__ import annotations

import pytest
from combinations import slow_except
from damaged_checkpoints import edit, refusal

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


@pytest.mark.parametrize("case", slow_except(GENERATION, GENERATION[::3]), ids=str)
def test_a_generation_config_that_makes_no_sense_is_refused(copy_model, case):
    path, (field, value) = copy_model("bundled"), case
    edit(path / "generation_config.json", **{field: value})
    assert refusal(path).startswith(f"generation_config.json: {field} ")


@pytest.mark.parametrize(
    ("field", "value"),
    [("forced_bos_token_id", -3), ("eos_token_id", [0, -1]), ("bad_words_ids", [[5, -2]]), ("pad_token_id", -2)],
)
def test_the_error_of_a_negative_token_says_what_the_token_must_be(copy_model, field, value):
    path = copy_model("bundled")
    edit(path / "generation_config.json", **{field: value})
    least = -1 if field == "pad_token_id" else 0
    assert refusal(path).startswith(f"generation_config.json: {field} must be {least} or above, not -")


def test_the_configurations_own_fields_are_checked_where_there_is_no_other(copy_model):
    path = copy_model("bundled")
    (path / "generation_config.json").unlink()
    edit(path / "config.json", forced_eos_token_id=6001)
    assert refusal(path).startswith("config.json: forced_eos_token_id 6001 is outside the vocabulary of 6,001 tokens")
    path = copy_model("bundled")
    edit(path / "config.json", pad_token_id=-1)
    assert refusal(path).startswith("config.json: pad_token_id -1 is outside")
