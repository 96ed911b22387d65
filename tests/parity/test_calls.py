"""Each line of client/guides/calls.md: their call, our call, and the same values where the table says so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sidelight.client
from documents import ADDRESS, tokens
from sidelight.server.models.loader import bundled_model

PAGE = "client/guides/calls.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of Inseq, and of what Inseq imports
]


def tables() -> Iterator[list[tuple[str, str, str]]]:
    """The lines of each table, as their call, our call and what is compared."""
    cells: list[str] = []
    for token, after in pairwise(tokens(PAGE)):
        if token.type == "td_open":
            cells.append(after.content)
        elif token.type == "table_close":
            yield [(cells[i].strip("`"), cells[i + 1].strip("`"), cells[i + 2]) for i in range(0, len(cells), 3)]
            cells = []


def prelude() -> str:
    """The variables with which all calls begin."""
    (block,) = [token.content for token in tokens(PAGE) if token.type == "fence" and token.info == "py"]
    return block


def evaluate(source: str, namespace: dict[str, Any]) -> Any:
    """The value of an expression; None of a statement."""
    try:
        code = compile(source, PAGE, "eval")
    except SyntaxError:
        exec(compile(source, PAGE, "exec"), namespace)
        return None
    return eval(code, namespace)


def check(lines: list[tuple[str, str, str]], address: str, more: dict[str, Any], adjust: Callable[[dict], None]) -> int:
    """Runs the lines of a table. Returns how many are compared. `adjust` is called after the first line."""
    namespace = {name: getattr(sidelight.client, name) for name in sidelight.client.__all__}
    namespace |= {"np": np, "MODEL": str(bundled_model()), **more}
    exec(prelude(), namespace)
    compared = 0
    with contextlib.ExitStack() as stack:
        for number, (theirs, ours, result) in enumerate(lines):
            left, right = (evaluate(call.replace(ADDRESS, address), namespace) for call in (theirs, ours))
            if number == 0:
                stack.callback(namespace["client"].close)
                adjust(namespace)
            if result != "equal":
                assert result == "–", theirs
                continue
            compared += 1
            assert left is not None, theirs
            if isinstance(left, str) or isinstance(np.asarray(left[0]).flat[0], str):
                assert left == right, theirs
            else:
                np.testing.assert_allclose(np.asarray(right), np.asarray(left), rtol=0, atol=1e-5, err_msg=theirs)
    return compared


def test_inseqs_calls(bundled_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inseq = pytest.importorskip("inseq", reason="Inseq is not installed: it supports Python up to 3.13")
    import torch
    from inseq_peer import unscale_targets

    def adjust(namespace: dict[str, Any]) -> None:
        unscale_targets(namespace["model"])
        # Inseq gives no step scores with attention: its method "dummy" does.
        namespace["score_model"] = inseq.load_model(namespace["MODEL"], "dummy", model_kwargs={"dtype": torch.float32})
        unscale_targets(namespace["score_model"])

    monkeypatch.chdir(tmp_path)
    lines, _ = tables()
    assert check(lines, bundled_server, {"inseq": inseq, "torch": torch}, adjust) >= 10


def test_ctranslate2s_calls(bundled_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    from ctranslate2_peer import convert
    from transformers import AutoTokenizer

    convert(bundled_model(), tmp_path / "ct2-model")
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())

    def adjust(namespace: dict[str, Any]) -> None:
        namespace["pieces"] = tokenizer.convert_ids_to_tokens(tokenizer(namespace["text"]).input_ids)

    _, lines = tables()
    assert check(lines, bundled_server, {"ctranslate2": ctranslate2}, adjust) >= 8
