"""Models for the tests of sampling."""

from __future__ import annotations

import pytest
from model_zoo import build_model
from sidelight.server.models.loader import LoadedModel, load


@pytest.fixture(scope="session", params=["nllb", "gpt2"])
def small(request, zoo_folder) -> LoadedModel:
    """A small model, encoder-decoder or decoder-only. Shared: tests leave the model as it is."""
    return load(build_model(request.param, zoo_folder), packed=False)
