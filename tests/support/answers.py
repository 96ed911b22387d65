"""What a client gets for a request: its events or its error. How answers of different ways are compared and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import grpc
import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from request_forms import CODES, inner_messages
from sidelight.client.converters.attention_arrays import parse_attention
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as services

_SECONDS = 120
_DTYPES = {attention.ENCODING_FLOAT32: "<f4", attention.ENCODING_FLOAT16: "<f2", attention.ENCODING_UINT8: "u1"}
# How far numbers may differ from those of another batch, relative to the greatest of an array.
_TOLERANCES = {attention.ENCODING_FLOAT32: 1e-4, attention.ENCODING_FLOAT16: 2e-3, attention.ENCODING_UINT8: 5e-3}


@dataclass
class Answer:
    """The answer to one request.

    Attributes:
        events: Started, parts of the encoder's attention, steps and units one by one, Finished. Without what differs
            from call to call: ids, times, and how many steps share a message.
        code: The status code as a number; 0 for OK.
        reason: The reason of the error.
        field: The field of the error, as a path in the AttributeRequest.
        message: The message of the error.
    """

    events: list[Message]
    code: int = 0
    reason: str = ""
    field: str = ""
    message: str = ""

    @property
    def started(self) -> pb.Started:
        """The first event."""
        (started,) = (event for event in self.events if isinstance(event, pb.Started))
        return started

    @property
    def finished(self) -> pb.Finished:
        """The last event."""
        (finished,) = (event for event in self.events if isinstance(event, pb.Finished))
        return finished

    @property
    def steps(self) -> list[pb.Step]:
        """The steps."""
        return [event for event in self.events if isinstance(event, pb.Step)]

    @property
    def units(self) -> list[pb.Unit]:
        """The units."""
        return [event for event in self.events if isinstance(event, pb.Unit)]

    @property
    def error(self) -> tuple[int, str, str]:
        """How the answer ended."""
        return self.code, self.reason, self.field


def _flat(responses: Iterable[pb.AttributeResponse]) -> list[Message]:
    events: list[Message] = []
    for response in responses:
        event = response.WhichOneof("event")
        if event == "steps":
            events.extend(response.steps.steps)
        elif event == "units":
            events.extend(response.units.units)
        else:
            inner: Any = getattr(response, event or "")
            if event == "started":
                inner.request_id = ""
            if event == "finished":
                for name in ("queue_time", "time_to_first_step", "total_time"):
                    inner.usage.ClearField(name)
            events.append(inner)
    return events


def ask(service: services.AttributionServiceStub, message: pb.AttributeRequest) -> Answer:
    """Sends a request by Attribute."""
    responses: list[pb.AttributeResponse] = []
    try:
        responses.extend(service.Attribute(message, timeout=_SECONDS))
    except grpc.RpcError as error:
        return _failed(responses, error)
    return Answer(_flat(responses))


def _failed(responses: list[pb.AttributeResponse], error: grpc.RpcError) -> Answer:
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType]
    if status is None:
        return Answer(_flat(responses), error.code().value[0], message=error.details())
    reason = field = ""
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            wrong = error_details_pb2.BadRequest()
            detail.Unpack(wrong)
            field = wrong.field_violations[0].field
    return Answer(_flat(responses), status.code, reason, field, status.message)


def ask_many(
    service: services.AttributionServiceStub, messages: Mapping[str, pb.AttributeRequest]
) -> dict[str, Answer]:
    """Sends requests by one stream of AttributeMany, under these ids."""
    responses: dict[str, list[pb.AttributeResponse]] = {name: [] for name in messages}
    errors: dict[str, pb.Error] = {}

    def requests() -> Iterable[pb.AttributeManyRequest]:
        for name, message in messages.items():
            request = pb.AttributeManyRequest(attribute=message)
            request.attribute.request_id = name
            yield request

    for response in service.AttributeMany(requests(), timeout=_SECONDS):
        for event in response.batch.responses or (response,):
            assert event.request_id not in errors
            if event.HasField("error"):
                errors[event.request_id] = event.error
            else:
                responses[event.request_id].append(event.response)
    answers: dict[str, Answer] = {}
    for name, parts in responses.items():
        error = errors.get(name, pb.Error())
        answers[name] = Answer(
            _flat(parts), error.code, error.reason, error.field.removeprefix("attribute."), error.message
        )
    return answers


# ---- comparisons ----------------------------------------------------------------------------------------------------


def without_bytes(finished: pb.Finished) -> pb.Finished:
    """The end without the count of the attention's bytes, which is of what was sent."""
    copy = pb.Finished()
    copy.CopyFrom(finished)
    copy.usage.ClearField("attention_bytes")
    return copy


def events_from(answer: Answer, first: int) -> list[Message]:
    """What a request gets that resumes at a step: everything before the steps, and what follows the step before it."""
    events = answer.events
    begin = next(
        (number + 1 for number, event in enumerate(events) if isinstance(event, pb.Step) and event.index == first - 1),
        None,
    )
    head = [event for event in events if isinstance(event, pb.Started | pb.EncoderSelf)]
    return [*head, *(event for event in events[begin:] if not isinstance(event, pb.Started | pb.EncoderSelf))]


def assert_equal(ours: Sequence[Message], theirs: Sequence[Message]) -> None:
    """Fails where events differ. The last bits of attention and of scores depend on the other texts of a batch."""
    assert [type(event).__name__ for event in ours] == [type(event).__name__ for event in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(mine, pb.Finished) and isinstance(other, pb.Finished):
            mine, other = without_bytes(mine), without_bytes(other)
        if mine != other:
            _assert_near(mine, other)


def _assert_near(mine: Any, other: Any) -> None:
    """Fails where two events differ in more than the last bits of their numbers."""
    for name, axis in (("cross", 0), ("decoder_self", 0), ("attention", 1)):
        if name in mine.DESCRIPTOR.fields_by_name:
            assert mine.HasField(name) == other.HasField(name)
            if mine.HasField(name):
                _assert_near_arrays(getattr(mine, name), getattr(other, name), axis)
    (ours, our_numbers), (theirs, their_numbers) = _without_numbers(mine), _without_numbers(other)
    assert ours == theirs, (ours, theirs)
    np.testing.assert_allclose(our_numbers, their_numbers, rtol=1e-4, atol=1e-4)


def _without_numbers(event: Any) -> tuple[Any, list[float]]:
    """Returns an event without its arrays and without its other numbers, and these numbers in their order."""
    copy = type(event)()
    copy.CopyFrom(event)
    for name in ("cross", "decoder_self", "attention"):
        if name in event.DESCRIPTOR.fields_by_name and not isinstance(event, pb.Started):
            copy.ClearField(name)
    numbers: list[float] = []
    for message in (copy, *inner_messages(copy)):
        for field in message.DESCRIPTOR.fields:
            if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
                if not field.has_presence or message.HasField(field.name):
                    value = getattr(message, field.name)
                    numbers += value if field.is_repeated else [value]
                message.ClearField(field.name)
    return copy, numbers


def _assert_near_arrays(mine: attention.Attention, other: attention.Attention, axis: int) -> None:
    assert (list(mine.shape), mine.encoding) == (list(other.shape), other.encoding)
    ours, theirs = values_of(mine, axis), values_of(other, axis)
    tolerance = _TOLERANCES[mine.encoding]
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max(initial=0.01))
    np.testing.assert_allclose(mine.special_shares, other.special_shares, rtol=1e-4, atol=1e-6)
    places = [np.frombuffer(array.positions, "<u4") for array in (mine, other)]
    moved = (places[0] != places[1]).reshape(theirs.shape if len(places[0]) else -1)
    if moved.any():  # numbers that are nearly equal may change places, the last one with numbers that are not sent
        gaps = np.diff(np.moveaxis(theirs, axis, 0), axis=0, append=np.inf, prepend=np.inf)
        is_near = np.abs(gaps) <= 2 * tolerance * np.abs(theirs).max(initial=0.01)
        is_near[-1] = True
        assert (is_near[1:] | is_near[:-1] | ~np.moveaxis(moved, axis, 0)).all()


def values_of(array: attention.Attention, axis: int) -> np.ndarray:
    """The numbers of an array as they were sent. `axis` is that of the positions."""
    sent = attention.Attention()
    sent.CopyFrom(array)
    sent.ClearField("positions")
    return np.asarray(parse_attention(sent, array.shape[axis], axis=axis), np.float64)


# ---- other requests with the same numbers ----------------------------------------------------------------------------


def without_offsets(events: Sequence[Message]) -> list[Message]:
    """Events without the offsets, and without what Started repeats of the request's spans."""
    return [
        _cleared(
            event, ("begin", "end", "offset_unit", "source_spans", "target_spans", "source_slices", "target_slices")
        )
        for event in events
    ]


def without_rows(events: Sequence[Message]) -> list[Message]:
    """The tokens, texts and scores of the steps alone."""
    return [_cleared(event, ("cross", "decoder_self")) for event in events if isinstance(event, pb.Step)]


def without_texts(events: Sequence[Message]) -> list[Message]:
    """The rows and scores of steps and units alone, with the ids of tokens. First the steps, then the units.

    Without links: those of a given target come with the last token of a word, others once the word is complete.
    """
    names = ("piece", "begin", "end", "special", "text", "span", "links")
    return [_cleared(event, names) for kind in (pb.Step, pb.Unit) for event in events if isinstance(event, kind)]


def _cleared(event: Message, names: Iterable[str]) -> Message:
    """A copy of an event without the fields of some names, at any depth."""
    copy = type(event)()
    copy.CopyFrom(event)
    for message in (copy, *inner_messages(copy)):
        for name in names:
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)
    return copy


# ---- what holds for each answer -------------------------------------------------------------------------------------


def check(message: pb.AttributeRequest, answer: Answer) -> None:
    """Fails where an answer that is OK contradicts itself, its request or the contract."""
    started, finished, steps = answer.started, answer.finished, answer.steps
    assert isinstance(answer.events[0], pb.Started)
    assert isinstance(answer.events[-1], pb.Finished)
    first = message.resume_at
    assert [step.index for step in steps] == [*range(first, first + len(steps))]
    assert not steps or finished.usage.target_tokens == first + len(steps)
    unit = started.offset_unit
    for token in started.source:
        _check_substring(started.source_text, token, unit)
    for token in started.prefix:
        _check_substring(finished.text, token, unit)
    for step in steps:
        _check_substring(finished.text, step.token, unit)
        assert len(step.scores) == len(started.scores)
    if not first:
        assert finished.text.endswith("".join(step.text for step in steps))
    for span in started.source_units:
        _check_substring(started.source_text, span, unit)
    for span in (*started.prefix_units, *(each.span for each in answer.units)):
        _check_substring(finished.text, span, unit)
    for hypothesis in finished.hypotheses:
        for token in hypothesis.tokens:
            _check_substring(hypothesis.text, token, unit)
    _check_units(started, answer)
    _check_arrays(started, answer)


def _check_substring(whole: str, part: Any, unit: Any) -> None:
    """Fails where the offsets of a token or a span do not cut its text, as a client slices its strings."""
    encoding, size = CODES[unit]
    code = whole.encode(encoding)
    if "\ufffd" in whole:  # the bytes of a token were sent before it was known that they are no character
        return
    assert part.begin <= part.end
    assert part.end * size <= len(code)
    cut = code[part.begin * size : part.end * size].decode(encoding)
    assert not part.text or part.text == cut, (whole, part, cut)


def _check_units(started: pb.Started, answer: Answer) -> None:
    if started.capture.grouping <= attention.GROUPING_TOKEN:
        assert not answer.units
        return
    units = answer.units
    if units:
        assert [each.index for each in units] == [*range(units[0].index, units[-1].index + 1)]
        assert all(one.end_step == two.first_step for one, two in pairwise(units))
        assert units[-1].end_step == answer.finished.usage.target_tokens
    assert not any(step.HasField("cross") or step.HasField("decoder_self") for step in answer.steps)
    assert all(len(each.scores) == len(started.scores) for each in units)


def _check_arrays(started: pb.Started, answer: Answer) -> None:
    """Each array has the numbers that its shape says, and the axes and positions that Started says."""
    layouts = {layout.kind: layout for layout in started.layouts}
    is_grouped = started.capture.grouping > attention.GROUPING_TOKEN
    num_source = len(started.source_units if is_grouped else started.source) or started.source_position_count
    num_sent = len(started.source_positions) or num_source
    is_reading = started.capture.row == attention.ROW_READING
    num_prefix = len(started.prefix_units if is_grouped else started.prefix)
    num_prompt = num_sent if attention.ATTENTION_KIND_CROSS not in layouts and started.architecture == 2 else 0
    for event in answer.events:
        if isinstance(event, pb.EncoderSelf):
            array, layout = event.attention, layouts[attention.ATTENTION_KIND_ENCODER_SELF]
            _check_array(array, started, layout, num_sent, (array.shape[0],))
            assert event.first_query + array.shape[0] <= num_sent
        if isinstance(event, pb.Step | pb.Unit):
            if event.HasField("cross"):
                _check_array(event.cross, started, layouts[attention.ATTENTION_KIND_CROSS], num_sent)
            if event.HasField("decoder_self"):
                own = event.index + (1 if is_grouped else is_reading)
                layout = layouts[attention.ATTENTION_KIND_DECODER_SELF]
                _check_array(event.decoder_self, started, layout, num_prompt + num_prefix + own)


def _check_array(
    array: attention.Attention, started: pb.Started, layout: attention.AttentionLayout, num: int, queries: Any = ()
) -> None:
    axes = {
        attention.AXIS_LAYER: len(layout.layers),
        attention.AXIS_HEAD: layout.head_count,
        attention.AXIS_PAIR: len(layout.pairs),
    }
    rest = [axes[axis] for axis in layout.axes]
    capture = started.capture
    positions = min(num, capture.top_k) if capture.top_k else num
    assert list(array.shape) == [*queries, positions, *rest]
    values = np.frombuffer(array.values, _DTYPES[array.encoding])
    assert len(values) == math.prod(array.shape)
    assert array.encoding == capture.encoding
    assert np.isfinite(values).all()
    num_rows = math.prod([*queries, *rest])
    assert len(array.scales) == (4 * num_rows if array.encoding == attention.ENCODING_UINT8 else 0)
    assert len(array.positions) == (4 * len(values) if capture.top_k else 0)
    assert (np.frombuffer(array.positions, "<u4") < max(1, num)).all()
    renormalizes = capture.special_tokens == attention.SPECIAL_TOKENS_RENORMALIZE
    assert len(array.special_shares) in ((num_rows,) if renormalizes else (0,))
