"""Results of a real server, to save."""

from __future__ import annotations

import pytest
from sidelight.client import Attribution, Capture, Client

SENTENCES = ["I don't want to be your friend.", "Where is </script><b> the 'station' & \u2028?"]


@pytest.fixture(scope="package")
def sentences() -> list[str]:
    """The sources of `results`. The second has markup, and a character that ends lines in JavaScript."""
    return SENTENCES


@pytest.fixture(scope="package")
def results(bundled_server) -> list[Attribution]:
    capture = Capture(kinds=("cross", "decoder_self", "encoder_self"))
    options = {"capture": capture, "scores": ["probability", "cross_entropy"], "timeout": 60}
    with Client(bundled_server) as client:
        return [client.attribute(sentence, **options).result() for sentence in SENTENCES]
