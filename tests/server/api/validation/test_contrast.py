"""A wrong second context is refused with the path of the field, before any work is done for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from harness import serving
from sidelight.client import Capture, Client, Contrast, Decoding, InvalidArgumentError, ResourceExhaustedError
from sidelight.server.api.validation import contrast
from sidelight.server.operations import ModelLimits

SOURCE, OTHER = "He is my friend.", "She is my friend."
TARGET = "Er ist mein Freund."  # six tokens
GIVEN = {"target": TARGET, "scores": ["pcxmi"]}
DECODED = {"scores": ["pcxmi"]}
DIVERGENCE = {"scores": ["kl_divergence"]}
SUBTRACTED = Contrast(source=OTHER, subtract_attention=True)

BAD = [
    ({"scores": ["pcxmi"]}, "contrast"),
    ({"scores": ["probability", "kl_divergence"], "target": TARGET}, "contrast"),
    ({**DECODED, "contrast": Contrast()}, "contrast"),
    ({**DECODED, "contrast": Contrast(kl_top_k=3)}, "contrast"),
    ({"scores": ["probability"], "contrast": Contrast(source=OTHER)}, "contrast"),
    ({**DECODED, "contrast": Contrast(source="")}, "contrast.source.text"),
    ({**DECODED, "contrast": Contrast(source="dog " * 300)}, "contrast.source.text"),
    ({**DECODED, "contrast": Contrast(source=[5, 60_001])}, "contrast.source.token_ids.ids[1]"),
    ({**DECODED, "contrast": Contrast(source=[])}, "contrast.source.token_ids.ids"),
    ({**DECODED, "contrast": Contrast(source=[{"role": "user", "content": "Hello"}])}, "contrast.source.chat"),
    ({**DECODED, "contrast": Contrast(prefix=" ")}, "contrast.prefix.text"),
    ({**DECODED, "contrast": Contrast(prefix="Hund " * 300)}, "contrast.prefix"),
    ({**GIVEN, "contrast": Contrast(prefix="Hund " * 252)}, "contrast.prefix"),
    (
        {**DECODED, "contrast": Contrast(prefix="Er ist"), "decoding": Decoding(max_new_tokens=254)},
        "contrast.prefix",
    ),
    ({**DECODED, "contrast": Contrast(target=TARGET)}, "contrast.given"),
    ({**GIVEN, "contrast": Contrast(target="")}, "contrast.given.text"),
    ({**GIVEN, "contrast": Contrast(target="Hund " * 300)}, "contrast.given.text"),
    ({**GIVEN, "contrast": Contrast(target=[4, 5])}, "contrast.given"),
    ({**GIVEN, "contrast": Contrast(source=OTHER, alignments=[(0, 0)])}, "contrast.alignments"),
    ({**GIVEN, "contrast": Contrast(target=[4, 5], alignments=[(0, 0), (6, 1)])}, "contrast.alignments[1].target"),
    ({**GIVEN, "contrast": Contrast(target=[4, 5], alignments=[(0, 2)])}, "contrast.alignments[0].contrast"),
    ({**GIVEN, "contrast": Contrast(target=[4, 5], alignments=[(1, 0), (1, 1)])}, "contrast.alignments[1].target"),
    ({**GIVEN, "contrast": Contrast(target=[4, 5], alignments=[(2, 0), (1, 1)])}, "contrast.alignments[1].target"),
    ({**DECODED, "contrast": Contrast(source=OTHER, kl_top_p=0.5)}, "contrast.kl_top_p"),  # no score uses it
    ({**DECODED, "contrast": Contrast(source=OTHER, kl_top_k=5)}, "contrast.kl_top_k"),
    ({**DIVERGENCE, "contrast": Contrast(source=OTHER, kl_top_p=0.0)}, "contrast.kl_top_p"),
    ({**DIVERGENCE, "contrast": Contrast(source=OTHER, kl_top_p=1.5)}, "contrast.kl_top_p"),
    ({**DIVERGENCE, "contrast": Contrast(source=OTHER, kl_top_p=float("nan"))}, "contrast.kl_top_p"),
    ({**DIVERGENCE, "contrast": Contrast(source=OTHER, kl_top_k=100_000)}, "contrast.kl_top_k"),
    ({"contrast": SUBTRACTED}, "contrast.subtract_attention"),
    ({"target": TARGET, "contrast": SUBTRACTED, "capture": Capture(none=True)}, "contrast.subtract_attention"),
    ({"target": TARGET, "contrast": SUBTRACTED, "capture": Capture(encoding="uint8")}, "capture.encoding"),
    (
        {"target": TARGET, "contrast": Contrast(target=[4, 5], alignments=[(1, 0)], subtract_attention=True)},
        "contrast.alignments",
    ),
    ({"target": TARGET, "contrast": Contrast(target=[4, 5], subtract_attention=True)}, "contrast.given"),
    ({"target": TARGET, "contrast": Contrast(source=OTHER + " No.", subtract_attention=True)}, "contrast.source"),
    (
        {
            "target": TARGET,
            "contrast": Contrast(prefix="Er", subtract_attention=True),
            "capture": Capture(kinds=("decoder_self",)),
        },
        "contrast.prefix",
    ),
]


@pytest.fixture(scope="module")
def client(bundled_server) -> Iterator[Client]:
    with Client(bundled_server) as client:
        yield client


@pytest.mark.parametrize(("options", "field"), BAD, ids=[f"{i}-{field}" for i, (_, field) in enumerate(BAD)])
def test_a_bad_contrast_names_its_field(client, options, field):
    with pytest.raises(InvalidArgumentError) as raised:
        client.attribute(SOURCE, timeout=60, **options).result()
    assert raised.value.field == field


def test_rows_that_have_the_same_positions_can_be_subtracted(client):
    """Only the kinds that are captured count: cross-attention has no positions of a prefix."""
    prefixed = Contrast(prefix="Er", subtract_attention=True)
    result = client.attribute(SOURCE, target=TARGET, contrast=prefixed, capture=Capture(kinds=("cross",))).result()
    assert result.cross.shape[:2] == (len(result.source), 6)
    longer = Contrast(source=OTHER + " No.", subtract_attention=True)
    capture_own = Capture(kinds=("decoder_self",))
    result = client.attribute(SOURCE, target=TARGET, contrast=longer, capture=capture_own).result()
    assert result.decoder_self.shape[:2] == (7, 6)


def test_prompts_of_different_lengths_cannot_be_subtracted(zoo):
    longer = Contrast(source="The lazy dog sleeps", subtract_attention=True)
    with serving(zoo("gpt2")) as address, Client(address) as client, pytest.raises(InvalidArgumentError) as raised:
        client.attribute("The lazy dog", target=" sleeps", contrast=longer).result()
    assert raised.value.field == "contrast.source"


def test_both_contexts_count_in_the_size(bundled):
    """Float32 and all positions, whatever is sent: the difference is computed before it is encoded."""
    few = Capture(kinds=("cross",), top_k=1, encoding="float16")
    one = 6 * 7 * 12 * 4  # steps, positions, heads, bytes
    with serving(replace(bundled, limits=ModelLimits(max_pass_bytes=one))) as address, Client(address) as client:
        assert len(client.attribute(SOURCE, target=TARGET, capture=few).result().source) == 6
        with pytest.raises(ResourceExhaustedError) as raised:
            client.attribute(SOURCE, target=TARGET, contrast=SUBTRACTED, capture=few).result()
    assert (raised.value.field, raised.value.reason) == ("capture", "CAPTURE_TOO_LARGE")


@pytest.mark.parametrize("limit", ["MAX_PASS_TOKENS", "MAX_LOGITS_BYTES"])
def test_given_targets_that_are_too_long_to_be_read_at_once_are_refused(client, monkeypatch, limit):
    contexts = Contrast(target=TARGET)
    start_and_steps = 1 + 6
    least = {"MAX_PASS_TOKENS": start_and_steps, "MAX_LOGITS_BYTES": 2 * 6 * 4 * client.get_model().vocabulary_size}
    monkeypatch.setattr(contrast, limit, least[limit])
    assert client.attribute(SOURCE, contrast=contexts, **GIVEN).result().text
    monkeypatch.setattr(contrast, limit, least[limit] - 1)
    with pytest.raises(ResourceExhaustedError) as raised:
        client.attribute(SOURCE, contrast=contexts, **GIVEN).result()
    assert raised.value.field == "contrast"
    decoding = Decoding(max_new_tokens=9)
    assert client.attribute(SOURCE, contrast=Contrast(source=OTHER), decoding=decoding, **DECODED).result().text
