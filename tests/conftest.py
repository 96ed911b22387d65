"""What all tests share: no network, and one server on the bundled model for each worker."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from harness import serving
from sidelight.server.models.loader import LoadedModel, load

# torch notes which functions make tensors when a device is first a context. Tests that replace one come later.
with torch.device("meta"):
    torch.empty(0)

# Workers run side by side; more threads for such small models only get in each other's way.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bundled() -> LoadedModel:
    """The model that comes with the package. Shared: tests leave it as it is."""
    return load()


@pytest.fixture(scope="session")
def bundled_server(bundled: LoadedModel) -> Iterator[str]:
    """The address of a server on the bundled model."""
    with serving(bundled) as address:
        yield address
