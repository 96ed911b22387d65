"""What tests of the server share."""

from __future__ import annotations

import pytest
from sidelight.server.engine.engine import Engine


@pytest.fixture
def engines(monkeypatch) -> list[Engine]:
    """The engines that are started."""
    started: list[Engine] = []
    start = Engine.start

    def noting(engine):
        started.append(engine)
        start(engine)

    monkeypatch.setattr(Engine, "start", noting)
    return started
