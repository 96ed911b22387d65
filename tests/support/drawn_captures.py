"""Captures that are drawn at random: kinds, heads, reductions, methods, groupings and spans."""

from __future__ import annotations

import random
from typing import Any

from request_forms import CODES
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import model_pb2


class Chance(random.Random):
    """Random choices."""

    def may(self, share: float) -> bool:
        """Whether something happens that happens so often."""
        return self.random() < share

    def value_of(self, enum: Any) -> Any:
        """Any value of an enum."""
        return self.choice(enum.values())


class CaptureDrawer:
    """Draws captures for one model."""

    def __init__(self, model: model_pb2.Model, chance: Chance) -> None:
        """`model` is what GetModel says of the model."""
        self._model = model
        self._chance = chance
        self._sizes = {size.kind: size for size in model.attentions}

    def draw(self, message: pb.AttributeRequest) -> None:
        """Draws the capture of a request that has its texts and its unit of offsets."""
        capture = message.capture
        if self._chance.may(0.08):
            capture.none = True
            return
        kinds = list(self._sizes)
        capture.kinds.extend(self._chance.sample(kinds, self._chance.randint(0, len(kinds))))
        self._draw_heads(capture)
        for name, enum in (("row", attention.Row), ("encoding", attention.Encoding)):
            if self._chance.may(0.4):
                setattr(capture, name, self._chance.value_of(enum))
        if self._chance.may(0.3):
            capture.special_tokens = self._chance.value_of(attention.SpecialTokens)
        if self._chance.may(0.2):
            capture.top_k = self._chance.choice((1, 2, 3, 1000))
        if self._chance.may(0.3):
            capture.method = self._chance.choice([*self._model.methods, self._chance.value_of(attention.Method)])
        if self._chance.may(0.2):
            capture.steps.begin = self._chance.randint(0, 4)
            if self._chance.may(0.7):
                capture.steps.end = capture.steps.begin + self._chance.randint(1, 4)
        self._draw_units(message)

    def _draw_heads(self, capture: attention.Capture) -> None:
        num_layers = min(self._sizes[kind].layers for kind in capture.kinds or self._sizes)
        num_heads = min(self._sizes[kind].heads for kind in capture.kinds or self._sizes)
        selection = self._chance.choice(("list", "layers", None, None))
        if self._chance.may(0.5):
            capture.over_heads = self._chance.value_of(attention.Reduction)
        if selection == "list":
            pairs = [(layer, head) for layer in range(num_layers) for head in range(num_heads)]
            for layer, head in self._chance.sample(pairs, self._chance.randint(1, min(4, len(pairs)))):
                entry = capture.heads.list.heads.add(layer=layer, head=head)
                if capture.over_heads in (attention.REDUCTION_MEAN, attention.REDUCTION_SUM) and self._chance.may(0.5):
                    entry.weight = self._chance.choice((0.0, 0.25, 3.0))
        elif selection == "layers":
            layers = self._chance.sample(range(num_layers), self._chance.randint(1, num_layers))
            capture.heads.layers.layers.extend(layers)
        elif self._chance.may(0.01):
            capture.heads.preset = "alignment"
        if capture.over_heads and selection != "list" and self._chance.may(0.6):
            capture.over_layers = self._chance.value_of(attention.Reduction)

    def _draw_units(self, message: pb.AttributeRequest) -> None:
        capture, units = message.capture, message.capture.units
        is_text = message.source.WhichOneof("kind") in ("text", "chat")
        if self._chance.may(0.5 if is_text else 0.05):
            capture.grouping = self._chance.value_of(attention.Grouping)
        if capture.grouping > attention.GROUPING_TOKEN:
            for name in ("over_positions", "over_steps", "over_scores"):
                if self._chance.may(0.3):
                    setattr(units, name, self._chance.value_of(attention.Reduction))
        unit = message.offset_unit
        given = message.given.text
        if capture.grouping == attention.GROUPING_SPAN:
            self._fill_spans(units.source_spans, message.source.text, unit, is_ordered=True)
            if given and self._chance.may(0.7):
                self._fill_spans(units.target_spans, given, unit, is_ordered=True)
        if is_text and self._chance.may(0.2):
            self._fill_spans(units.source_slices, message.source.text, unit)
        if given and self._chance.may(0.2):
            self._fill_spans(units.target_slices, given, unit)

    def _fill_spans(self, spans: Any, whole: str, unit: Any, *, is_ordered: bool = False) -> None:
        """Adds spans of a text, now and then with an offset that may lie inside a character or behind the text."""
        encoding, size = CODES[unit]
        limits = self._chance.choices(range(len(whole) + 1), k=2 * self._chance.randint(1, 3))
        pairs = [sorted(limits[index : index + 2]) for index in range(0, len(limits), 2)]
        if is_ordered:
            limits = sorted({*limits})
            pairs = [limits[index : index + 2] for index in range(0, len(limits) - 1, 2)]
        for begin, end in pairs:
            if begin == end and self._chance.may(0.95):
                continue
            begin, end = (len(whole[:limit].encode(encoding)) // size for limit in (begin, end))
            spans.add(begin=begin, end=end + (self._chance.may(0.02)))
