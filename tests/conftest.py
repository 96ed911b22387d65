"""What all tests share: no network, and one server on the bundled model for each worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"

import harness
import pytest
import torch
from harness import serving
from sidelight.server.models.loader import LoadedModel, load
from sidelight.server.operations import logs

# torch notes which functions make tensors when a device is first a context. Tests that replace one come later.
with torch.device("meta"):
    torch.empty(0)

# Workers run side by side; more threads for such small models only get in each other's way.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--front-ends", type=int, default=1, help="let servers of tests have so many front ends")


def pytest_configure(config: pytest.Config) -> None:
    harness.num_front_ends = config.getoption("--front-ends")


@pytest.fixture(autouse=True)
def root_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts the log of the process back after each test: `sidelight serve` within a test configures it."""
    root, own = logging.getLogger(), logging.getLogger("sidelight")
    levels, handlers = (root.level, own.level), set(root.handlers)
    monkeypatch.setattr(logs, "_has_texts", False)
    yield
    for handler in set(root.handlers) - handlers:
        root.removeHandler(handler)
    root.setLevel(levels[0])
    own.setLevel(levels[1])


@pytest.fixture(scope="session")
def bundled() -> LoadedModel:
    """The model that comes with the package. Shared: tests leave it as it is."""
    return load()


@pytest.fixture(scope="session")
def bundled_server(bundled: LoadedModel) -> Iterator[str]:
    """The address of a server on the bundled model."""
    with serving(bundled) as address:
        yield address
