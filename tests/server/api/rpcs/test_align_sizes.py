"""The answer to a long pair has a bound, which follows from the limits of its request."""

from __future__ import annotations

import pytest
from harness import stub
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2


def pair(source: str, target: str, links: str, **fields) -> pb.AlignRequest:
    source_text, target_text = text_pb2.Text(text=source), text_pb2.Text(text=target)
    return pb.AlignRequest(source=source_text, target=target_text, links=links, **fields)


@pytest.mark.parametrize("is_html", [False, True])
def test_an_answer_is_at_most_14_times_as_long_as_its_pair(bundled_server, is_html):
    """The limits of texts, links and tags bound the answer. Words of one letter make the longest one."""
    count = 16 * 1024
    target = "." * count
    if is_html:
        markup = pb.Markup(format=pb.MARKUP_FORMAT_HTML)
        message = pair("<wbr>." * (count // 8), target, "0-0", markup=markup)
    else:
        message = pair(target, target, " ".join(f"{each // 10}-{each % 10}" for each in range(count)))
    with stub(bundled_server) as service:
        response = service.Align(message, timeout=60)
    assert len(response.target) == count
    assert 5 * message.ByteSize() < response.ByteSize() < 14 * message.ByteSize()
