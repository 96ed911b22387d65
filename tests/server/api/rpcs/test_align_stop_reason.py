"""An answer to Align says whether its target was cut: of several segments, too."""

from __future__ import annotations

import pytest
from harness import stub
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1.text_pb2 import (
    STOP_REASON_END_TOKEN,
    STOP_REASON_GIVEN,
    STOP_REASON_LENGTH,
    STOP_REASON_STOP_TEXT,
    Decoding,
    Text,
)

SOURCE = Text(text="I don't want to be your friend.")
# The first and the last sentence have short targets.
DOCUMENT = {
    "source": Text(text="Good morning! My grandmother is still vigorous at 82 years old. Good morning!"),
    "markup": pb.Markup(split_sentences=True),
}
BLANK = {"source": Text(text="<p> </p>"), "markup": pb.Markup(format=pb.MARKUP_FORMAT_HTML)}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"source": SOURCE}, STOP_REASON_END_TOKEN),
        ({"source": SOURCE, "decoding": Decoding(max_new_tokens=3)}, STOP_REASON_LENGTH),
        ({"source": SOURCE, "decoding": Decoding(stop=["nicht"])}, STOP_REASON_STOP_TEXT),
        ({"source": SOURCE, "target": Text(text="Ich will nicht dein Freund sein.")}, STOP_REASON_GIVEN),
        ({"source": SOURCE, "target": Text(text="Ich"), "links": "0-0"}, STOP_REASON_GIVEN),
        (DOCUMENT, STOP_REASON_END_TOKEN),
        (DOCUMENT | {"decoding": Decoding(max_new_tokens=5)}, STOP_REASON_LENGTH),
        (BLANK, STOP_REASON_GIVEN),
    ],
    ids=["whole", "cut", "stop text", "given", "links", "segments", "a segment is cut", "no words"],
)
def test_why_a_target_ends(bundled_server, fields, expected):
    with stub(bundled_server) as service:
        assert service.Align(pb.AlignRequest(**fields), timeout=60).stop_reason == expected
