"""Requests whose options are drawn at random across the whole contract: each field of AttributeRequest occurs.

Most requests are valid. The others contradict themselves, or have a value out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from drawn_captures import CaptureDrawer, Chance
from google.protobuf.descriptor import FieldDescriptor
from request_forms import inner_messages
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import model_pb2
from sidelight.v1 import text_pb2 as text

# Emoji of several code points, combining marks, characters beyond the BMP, scripts without spaces, right to left.
TEXTS = (
    "A dog.",
    "I don't want to be your friend. Do you?",
    "The lazy 😀 dog, 👩‍👩‍👧 and e\u0323\u0301 cafe\u0301.",
    "𠀋 漢字 and 日本語です。 A dog",
    "שלום the مرحبا dog 🤖🏽",
    "two  spaces,\ta tab\nand a line",
    "ﬁne … naïve </s> <unk>",
    "😀",
)
_SUBTRACTIVE = ("A cat.", "A dog.")
# Numbers at the limits of their types, for fields that are drawn without regard to their meaning.
_INTEGERS = (0, 1, 2, 3, 7, 100, 2**31 - 1, 2**32 - 1)
_FLOATS = (0.0, 0.5, 1.0, 2.0, -1.0, 1e-45, 3e38, float("inf"), float("nan"))


class RequestDrawer:
    """Draws requests for one model."""

    def __init__(self, model: model_pb2.Model, seed: int) -> None:
        """`model` is what GetModel says of the model."""
        self._model = model
        self._chance = Chance(f"{model.name} {seed}")
        self._captures = CaptureDrawer(model, self._chance)
        self._is_encoder_decoder = model.architecture == model_pb2.ARCHITECTURE_ENCODER_DECODER

    def draw(self) -> pb.AttributeRequest:
        """Returns another request."""
        message = pb.AttributeRequest(model=self._model.name)
        if self._chance.may(0.1):
            message.request_id = "a name"
        if self._chance.may(0.3):
            message.offset_unit = self._chance.value_of(text.OffsetUnit)
        self._draw_texts(message)
        self._draw_target(message)
        if self._chance.may(0.9):
            self._captures.draw(message)
        if self._chance.may(0.4):
            self._draw_scores(message)
        if self._chance.may(0.25):
            message.resume_at = self._chance.choice((0, 1, 2, 5))
        if self._chance.may(0.25):
            self._draw_contrast(message)
        if self._chance.may(0.04):
            message.signals = True
        if self._chance.may(0.04):
            _fill(message.link_options, self._chance)
        if self._chance.may(0.15):
            _spoil(message, self._chance)
        return message

    # ---- texts ------------------------------------------------------------------------------------------------------

    def _draw_texts(self, message: pb.AttributeRequest) -> None:
        if self._model.feature_shape:
            self._fill_features(message.source.features)
        elif not self._is_encoder_decoder and self._chance.may(0.15):
            for role in self._chance.choice((("user",), ("system", "user"), ("user", "assistant", "user"))):
                message.source.chat.messages.add(role=role, content=self._chance.choice(TEXTS))
        else:
            self._fill_text(message.source, ids=0.2, length=12)
        kind = message.source.WhichOneof("kind")
        if kind == "token_ids" and self._chance.may(0.4):
            message.padding = self._chance.value_of(text.Padding)
        if self._chance.may(0.15):
            message.special_tokens_in_text = self._chance.value_of(text.SpecialTokensInText)
        if kind == "text" and self._chance.may(0.15):
            message.add_special_tokens = self._chance.may(0.5)
        if kind in ("text", "token_ids") and self._chance.may(0.3):
            message.truncate = self._chance.value_of(text.Truncation)
            if kind == "text" and self._chance.may(0.7):
                message.source.text = f"{message.source.text} " * self._chance.choice((2, 20, 20, 400))
        for name, share in (("source_language", 0.1), ("target_language", 0.3)):
            if self._chance.may(share if self._model.languages else 0.03):
                setattr(message, name, self._chance.choice([*self._model.languages, "xx"]))

    def _fill_text(self, message: text.Text, ids: float, length: int) -> None:
        if self._chance.may(ids):
            count = self._chance.randint(1, length)
            message.token_ids.ids.extend(self._chance.randrange(self._model.vocabulary_size) for _ in range(count))
        elif self._chance.may(0.04):  # only a source can be one of these
            message.chat.messages.add(role="user", content="A dog.")
        elif self._chance.may(0.04):
            message.features.shape.append(1)
            message.features.values = b"1234"
        else:
            message.text = self._chance.choice(TEXTS)

    def _fill_features(self, message: text.Features) -> None:
        shape = list(self._model.feature_shape)
        message.shape.extend(shape)
        numbers = np.random.default_rng(self._chance.randrange(2**32)).standard_normal(shape)
        message.values = numbers.astype("<f4").tobytes()

    # ---- the target -------------------------------------------------------------------------------------------------

    def _draw_target(self, message: pb.AttributeRequest) -> None:
        if self._chance.may(0.35):
            self._fill_text(message.given, ids=0.3, length=10)
            return
        if self._chance.may(0.25):
            self._fill_text(message.prefix, ids=0.3, length=5)
        decoding = message.decoding
        decoding.max_new_tokens = self._chance.randint(1, 12)
        strategy = self._chance.choice(("greedy", "sampling", "beam", None))
        if strategy == "greedy":
            decoding.greedy.SetInParent()
        elif strategy == "sampling":
            self._fill_sampling(decoding.sampling)
        elif strategy == "beam":
            self._fill_beam(decoding.beam)
        if self._chance.may(0.15):
            decoding.stop.extend(self._chance.sample(("e", " der", "zzz", "."), 2))
        if self._chance.may(0.3):
            decoding.ignore_eos = True
        if self._chance.may(0.15):
            decoding.min_new_tokens = self._chance.randint(0, 12)
        if self._chance.may(0.15):
            decoding.repetition_penalty = self._chance.choice((0.5, 1.0, 1.3, 1000.0))
        if self._chance.may(0.15):
            decoding.no_repeat_ngram_size = self._chance.randint(0, 3)
        if self._chance.may(0.02):
            message.ClearField("decoding")

    def _fill_sampling(self, message: text.Sampling) -> None:
        message.SetInParent()
        if self._chance.may(0.9):
            message.seed = self._chance.randrange(2**64)
        if self._chance.may(0.3):
            message.temperature = self._chance.choice((0.001, 0.5, 1.5, 1000.0))
        if self._chance.may(0.3):
            message.top_k = self._chance.choice((0, 1, 5, 2**32 - 1))
        if self._chance.may(0.3):
            message.top_p = self._chance.choice((0.01, 0.9, 1.0))

    def _fill_beam(self, message: text.Beam) -> None:
        message.width = self._chance.randint(2, 4)
        if self._chance.may(0.5):
            message.hypotheses = self._chance.randint(0, message.width)
        if self._chance.may(0.3):
            message.length_penalty = self._chance.choice((-5.0, 0.0, 2.0))
        if self._chance.may(0.3):
            message.early_stopping = self._chance.value_of(text.EarlyStopping)

    # ---- scores, contrast -------------------------------------------------------------------------------------------

    def _draw_scores(self, message: pb.AttributeRequest) -> None:
        plain = range(attention.SCORE_PROBABILITY, attention.SCORE_CONTRAST_LOGITS)
        message.scores.extend(self._chance.sample(plain, self._chance.randint(1, 3)))
        if self._chance.may(0.2):
            message.score_top_p = self._chance.choice((0.01, 0.5, 1.0))

    def _draw_contrast(self, message: pb.AttributeRequest) -> None:
        contrast, is_given = message.contrast, message.WhichOneof("target") == "given"
        contrast_scores = attention.Score.values()[attention.SCORE_CONTRAST_LOGITS :]
        if self._chance.may(0.9):
            message.scores.extend(self._chance.sample(contrast_scores, self._chance.randint(1, 3)))
        if is_given and self._chance.may(0.5):
            contrast.subtract_attention = True
            if message.source.WhichOneof("kind") == "text" and self._chance.may(0.7):
                message.source.text, contrast.source.text = _SUBTRACTIVE
                for name in ("source_spans", "source_slices"):
                    message.capture.units.ClearField(name)
        if not contrast.HasField("source") and self._chance.may(0.6):
            self._change(message.source, contrast.source)
        if self._chance.may(0.2):
            self._fill_text(contrast.prefix, ids=0.3, length=5)
        if is_given and self._chance.may(0.5):
            if self._chance.may(0.8):
                self._change(message.given, contrast.given)
            else:
                self._fill_text(contrast.given, ids=0.3, length=10)
            if message.given.WhichOneof("kind") == "token_ids" and self._chance.may(0.4):
                last = len(message.given.token_ids.ids) - 1
                for step in sorted(self._chance.sample(range(last + 1), self._chance.randint(1, last + 1))):
                    contrast.alignments.add(target=step, contrast=self._chance.randint(0, last))
        if self._chance.may(0.2):
            contrast.kl_top_p = self._chance.choice((0.1, 1.0))
        if self._chance.may(0.2):
            contrast.kl_top_k = self._chance.choice((0, 1, 20))

    def _change(self, message: text.Text, other: text.Text) -> None:
        """Writes another text of the same form: token ids are as many."""
        kind = message.WhichOneof("kind")
        if kind == "features":
            self._fill_features(other.features)
        elif kind == "token_ids":
            ids = list(message.token_ids.ids)
            other.token_ids.ids.extend(self._chance.sample(ids, len(ids)))
        elif kind == "chat":
            other.chat.messages.add(role="user", content=self._chance.choice(TEXTS))
        else:
            other.text = self._chance.choice(TEXTS)


# ---- wrong values ----------------------------------------------------------------------------------------------------


def _spoil(message: pb.AttributeRequest, chance: Chance) -> None:
    """Sets, changes or clears a field, without regard to its meaning."""
    inner_ones = (inner for inner in inner_messages(message) if inner.DESCRIPTOR.fields)
    owner: Any = chance.choice([message, *inner_ones])
    field: FieldDescriptor = chance.choice(owner.DESCRIPTOR.fields)
    if chance.may(0.2):
        owner.ClearField(field.name)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        inner = getattr(owner, field.name)
        inner.add() if field.is_repeated else inner.SetInParent()
    elif field.is_repeated:
        getattr(owner, field.name).append(_value(field, chance))
    else:
        setattr(owner, field.name, _value(field, chance))


def _fill(message: Any, chance: Chance) -> None:
    """Sets some fields, and fields of inner messages, without regard to their meaning."""
    message.SetInParent()
    for field in message.DESCRIPTOR.fields:
        if not chance.may(0.5):
            continue
        value = getattr(message, field.name)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            _fill(value.add() if field.is_repeated else value, chance)
        elif field.is_repeated:
            value.append(_value(field, chance))
        else:
            setattr(message, field.name, _value(field, chance))


def _value(field: FieldDescriptor, chance: Chance) -> Any:
    """A value of the type of a field."""
    values: dict[int, Sequence[Any]] = {
        FieldDescriptor.TYPE_STRING: ("", "x", "\n", "e\u0301 😀", "a" * 300),
        FieldDescriptor.TYPE_BYTES: (b"", b"\x00" * 4),
        FieldDescriptor.TYPE_BOOL: (False, True),
        FieldDescriptor.TYPE_FLOAT: _FLOATS,
        FieldDescriptor.TYPE_ENUM: (0, 1, 2, 3, 7, 99, -1),
    }
    return chance.choice(values.get(field.type, _INTEGERS))
