"""What all tests share: no network, and one server on the bundled model for each worker."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import harness
import pytest
import torch
from combinations import covering
from harness import serving
from model_zoo import build_model
from sidelight.server.models.loader import LoadedModel, load
from sidelight.server.operations import logs

# Imports and the collection of the tests make a million objects that live as long as the process. The collector would
# look at all of them again and again, and take a tenth of the time of all tests.
gc.disable()

# torch notes which functions make tensors when a device is first a context. Tests that replace one come later.
with torch.device("meta"):
    torch.empty(0)

# A shell makes a process in the background ignore SIGINT. The processes that a test starts would ignore SIGINT, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Workers run side by side; more threads for such small models only get in each other's way.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--front-ends", type=int, default=1, help="let servers of tests have so many front ends")


def pytest_configure(config: pytest.Config) -> None:
    harness.num_front_ends = config.getoption("--front-ends")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks cases as slow, of tests with the mark `covering`."""
    cases: dict[str, list[pytest.Function]] = {}
    for item in items:
        is_quick = isinstance(item, pytest.Function) and not item.get_closest_marker("slow")
        if is_quick and item.get_closest_marker("covering"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for functions in cases.values():
        mark = functions[0].get_closest_marker("covering")
        quick = covering([function.callspec.params for function in functions], *mark.args)
        for place, function in enumerate(functions):
            if place not in quick:
                function.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def root_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts the log of the process back after each test: `sidelight serve` within a test configures it."""
    root, own = logging.getLogger(), logging.getLogger("sidelight")
    levels, handlers = (root.level, own.level), set(root.handlers)
    monkeypatch.setattr(logs, "_has_texts", False)
    yield
    for handler in set(root.handlers) - handlers:
        root.removeHandler(handler)
    for logger, level in zip((root, own), levels, strict=True):
        if logger.level != level:  # each change makes all loggers forget which levels are enabled
            logger.setLevel(level)


@pytest.fixture(scope="session")
def bundled() -> LoadedModel:
    """The model that comes with the package. Shared: tests leave it as it is."""
    return load()


@pytest.fixture(scope="session")
def bundled_server(bundled: LoadedModel) -> Iterator[str]:
    """The address of a server on the bundled model."""
    with serving(bundled) as address:
        yield address


@pytest.fixture(scope="session")
def zoo_folder(tmp_path_factory) -> Path:
    """The folder of all models of the zoo that these tests build. Shared: tests leave the models as they are."""
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="session")
def zoo(bundled, zoo_folder) -> Callable[[str], LoadedModel]:
    """Loads a model of the zoo by the name of its family, or "bundled", once for each worker.

    Shared: tests leave the models as they are.
    """
    loaded = {"bundled": bundled}

    def get(name: str) -> LoadedModel:
        if name not in loaded:
            loaded[name] = load(build_model(name, zoo_folder))
        return loaded[name]

    return get
