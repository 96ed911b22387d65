"""What tests of the server share."""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import serving
from model_zoo import build_model
from sidelight.server.engine.engine import Engine
from sidelight.server.models.loader import bundled_model
from sidelight.server.operations import MetricsServer, Security, TokenFile


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


@dataclass(frozen=True)
class ObservedServer:
    """The address of a server and the URL of its metrics."""

    address: str
    metrics_url: str

    def read_metrics(self) -> str:
        """What a scrape gives."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as answer:
            return answer.read().decode()


@pytest.fixture(scope="session")
def observed(bundled) -> Iterator[ObservedServer]:
    """A server on the bundled model with a port for metrics."""
    metrics = MetricsServer("127.0.0.1:0")
    with serving(bundled, metrics=metrics) as address:
        yield ObservedServer(address, metrics.url)


# What a client named "someone" sends, and what an unknown client sends.
TOKENS = {"someone": "a-token-of-thirty-two-characters", "": "another-token-of-other-characters"}


@pytest.fixture
def security(tmp_path) -> Security:
    """A server's security with a token for "someone"."""
    path = tmp_path / "tokens.toml"
    path.write_text(f'[someone]\ntokens = ["{TOKENS["someone"]}"]\n')
    return Security(tokens=TokenFile(str(path)))


@pytest.fixture
def token_metadata() -> dict[str, list[tuple[str, str]]]:
    """What a client sends beside its requests to a server with `security`: "someone", and a client without a name."""
    return {name: [("authorization", f"Bearer {token}")] for name, token in TOKENS.items()}


@pytest.fixture
def copy_model(zoo_folder, tmp_path) -> Callable[[str], Path]:
    """Copies the folder of a model by its name, for tests that damage it. The next copy replaces the copy before."""

    def copy(name: str) -> Path:
        source = bundled_model() if name == "bundled" else build_model(name, zoo_folder)
        target = tmp_path / "model"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(source, target))

    return copy
