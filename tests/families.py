"""Writes server/models/FAMILIES.md: the families of models that are tested, and how the server runs each.

`make families` runs this file. What the table says is what the families of the zoo declare; `test_parity`,
`test_families` and `test_speech` compare the declarations with loaded models, and the numbers with the models' own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "server" / "models" / "FAMILIES.md"

sys.path.insert(0, str(ROOT / "tests" / "support"))

from further_families import FURTHER_FAMILIES  # noqa: E402
from model_zoo import FAMILIES, Family  # noqa: E402
from speech_zoo import WHISPER  # noqa: E402

_HEADER = """# Tested families

`make families` writes this file. Each family here is tested with a small random model. Attention rows are compared with
the model's own `output_attentions=True`, and tokens with `generate`: within 1e-5, decoded and given, all layers and
heads, several requests side by side. The names are those of transformers, or of a variant.

- *rows*: the server computes only the rows that a request asks for. *matrices*: the model computes whole matrices. This
  is slower.
- *slots*: requests share a batch. *one by one*: each request runs by itself, between the others.
- *program*: on a CPU with AVX2 a step is one compiled program. *modules*: transformers' own modules run.
- *value norms*, *rollout*: whether requests may ask for this method. A server verifies this for its model when it
  starts, and lists the methods in `Model.methods`.

| family | kinds of attention | attention from | requests | run by | value norms | rollout | test |
|---|---|---|---|---|---|---|---|
"""


def table() -> str:
    """The file as it must be."""
    return _HEADER + "".join(_lines())


def _lines() -> Iterator[str]:
    for name, family in FAMILIES.items():
        yield _line(name, family, "test_parity")
    for name, family in FURTHER_FAMILIES.items():
        yield _line(name, family, "test_families")
    yield _line("whisper", WHISPER, "test_speech")


def _line(name: str, family: Family, test: str) -> str:
    kinds = "cross, decoder_self, encoder_self" if family.is_encoder_decoder else "decoder_self"
    cells = (
        name,
        kinds,
        "rows" if family.captures_rows else "matrices",
        "slots" if family.in_slots else "one by one",
        "program" if family.has_program else "modules",
        *("yes" if method in family.methods else "no" for method in ("value_norms", "rollout")),
        f"[{test}](../../tests/parity/{test}.py)",
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    TARGET.write_text(table(), encoding="utf-8")
