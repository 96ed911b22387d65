"""The table of Inseq's features is whole, and the tests that it names exist."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import inseq
import pytest
from inseq.attr import step_functions
from inseq.data import FeatureAttributionOutput

ROOT = Path(__file__).parents[2]
TEXT = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("|") and not re.match(r"\|[-|]*$|\| Inseq ", line)
]


@cache
def functions(path: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body if hasattr(node, "name")}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_row_has_a_test_that_exists_or_says_why_not(row: list[str]):
    feature, ours, shown_by = row
    assert feature
    if ours.startswith("—"):
        assert len(ours) > 10
        assert not shown_by
        return
    assert ours
    path, name = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown_by).groups()  # pyright: ignore[reportOptionalMemberAccess]
    assert name in functions(path)


def test_no_feature_of_inseq_is_missing():
    arguments = {*inspect.signature(inseq.AttributionModel.attribute).parameters} - {"self", "kwargs"}
    step_arguments = {
        name
        for function in step_functions.STEP_SCORES_MAP.values()
        for name in inspect.signature(function).parameters
        if function is not step_functions.mc_dropout_prob_avg_fn
    } - {"args"}
    methods = {name for name, _ in inspect.getmembers(FeatureAttributionOutput, callable) if not name.startswith("_")}
    features = {
        *arguments,
        *step_arguments,
        *methods,
        *inseq.list_step_functions(),
        *inseq.list_aggregation_functions(),
        *inseq.list_aggregators(),
    }
    named = {word for feature, *_ in ROWS for word in re.findall(r"`(\w+)", feature)}
    assert features <= named, features - named
    assert len(features) > 50
