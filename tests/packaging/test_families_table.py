"""The table of tested families says what the families of the zoo declare."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_is_up_to_date():
    """If this fails, run `make families`."""
    script = runpy.run_path(str(ROOT / "tests" / "families.py"))
    assert script["TARGET"].read_text(encoding="utf-8") == script["table"]()
