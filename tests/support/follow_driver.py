"""A client of the Follow RPC that sends its events one by one, and keeps the sources and targets that they make."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from sidelight.v1 import attention_pb2, text_pb2
from sidelight.v1 import attribution_service_pb2 as pb


def text(value: str) -> text_pb2.Text:
    return text_pb2.Text(text=value)


def token_ids(*ids: int) -> text_pb2.Text:
    return text_pb2.Text(token_ids=text_pb2.TokenIds(ids=ids))


def align_att(*, tokens: int | None = None, words: int | None = None, **fields: Any) -> pb.Policy:
    return pb.Policy(align_att=pb.AlignAtt(tokens=tokens, words=words, **fields))


def array(attention: attention_pb2.Attention) -> np.ndarray:
    """The float32 numbers of a message."""
    return np.frombuffer(attention.values, "<f4").reshape(tuple(attention.shape))


def event(**fields: Any) -> pb.FollowRequest:
    return pb.FollowRequest(**fields)


def start(**fields: Any) -> pb.FollowRequest:
    return event(start=pb.FollowStart(**fields))


def details_of(error: grpc.Call) -> tuple[str, str]:
    """The field and the reason of an error."""
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)  # pyright: ignore[reportArgumentType]
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    field = ""
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(bad_request):
            field = bad_request.field_violations[0].field
    return field, info.reason


@dataclass
class Stretch:
    """The steps that were sent between two changes of the source or removals of steps."""

    source: str
    ids: list[int]  # of the target, at the end of the stretch
    steps: list[pb.Step] = field(default_factory=list)


class FollowDriver:
    """One follow stream, whose source is a text."""

    def __init__(self, service: Any, timeout: float = 120, **start: Any) -> None:
        self._events: queue.Queue[pb.FollowRequest | None] = queue.Queue()
        self.call = service.Follow(iter(self._events.get, None), timeout=timeout)
        self.source = ""
        self.ids: list[int] = []
        self.stretches = [Stretch("", [])]
        self.finished: pb.Finished | None = None
        self.started: list[pb.Started] = []
        self.encoder_self: list[pb.EncoderSelf] = []
        self.waits: list[pb.AwaitingSource] = []
        self.send(start=pb.FollowStart(**start))

    def send(self, **event: Any) -> None:
        """Sends one event."""
        self._events.put(pb.FollowRequest(**event))

    def add_source(self, piece: str) -> None:
        """Adds to the source, and waits for its header."""
        self.source += piece
        count = len(self.started)
        self.send(source=text(piece))
        self._read(lambda: len(self.started) > count)
        self.stretches.append(Stretch(self.source, [*self.ids]))

    def add_ids(self, *ids: int) -> None:
        """Adds tokens to the target, and waits for their steps."""
        count = len(self.ids) + len(ids)
        self.send(target=token_ids(*ids))
        self.wait_for_steps(count)

    def wait_for_steps(self, count: int) -> None:
        """Waits until the target has so many steps."""
        self._read(lambda: len(self.ids) == count)

    def add_text(self, *pieces: str) -> None:
        """Adds pieces of text to the target, completes the last word, and waits for the steps."""
        for piece in pieces:
            self.send(target=text(piece))
        self.send(flush=pb.Flush())
        self.take_back(0)

    def take_back(self, count: int) -> None:
        """Takes steps back, and waits for the number of steps that are left."""
        self.send(take_back=count)
        assert self._read(lambda: False) == len(self.ids) - count
        if count:
            del self.ids[len(self.ids) - count :]
            self.stretches.append(Stretch(self.source, [*self.ids]))

    def wait_for_more(self) -> pb.AwaitingSource:
        """Waits until a server that writes waits for more source."""
        count = len(self.waits)
        self._read(lambda: len(self.waits) > count)
        return self.waits[-1]

    def close(self) -> None:
        """Closes this side of the stream."""
        self._events.put(None)

    def finish(self) -> pb.Finished:
        """Closes this side of the stream, and reads to the end."""
        self.close()
        self._read(lambda: False)
        assert self.finished is not None
        return self.finished

    @property
    def steps(self) -> list[pb.Step]:
        """All steps that were sent."""
        return [step for stretch in self.stretches for step in stretch.steps]

    def _read(self, is_done: Any) -> int | None:
        """Reads until something is there, or a step count comes, which is returned, or the end."""
        while not is_done():
            response = next(self.call, None)
            if response is None:
                return None
            kind = response.WhichOneof("event")
            if kind == "step_count":
                return response.step_count
            if kind == "finished":
                self.finished = response.finished
            elif kind == "started":
                self.started.append(response.started)
            elif kind == "encoder_self":
                self.encoder_self.append(response.encoder_self)
            elif kind == "awaiting_source":
                self.waits.append(response.awaiting_source)
            else:
                self._add_steps(response.steps.steps)
        return None

    def _add_steps(self, steps: Iterator[pb.Step]) -> None:
        for step in steps:
            assert step.index == len(self.ids)
            self.ids.append(step.token.id)
            self.stretches[-1].ids.append(step.token.id)
            self.stretches[-1].steps.append(step)


def assert_as_given(service: Any, stretches: list[Stretch], **fields: Any) -> None:
    """Asserts that all steps are those of a given target: of one pass over the source and the target of a stretch."""
    num_compared = 0
    for stretch in stretches:
        if not stretch.steps:
            continue
        request = pb.AttributeRequest(**fields, source=text(stretch.source), given=token_ids(*stretch.ids))
        responses = list(service.Attribute(request, timeout=120))
        given = [step for response in responses for step in response.steps.steps]
        for step in stretch.steps:
            assert_same_step(step, given[step.index])
            num_compared += 1
    assert num_compared


def assert_same_step(ours: pb.Step, theirs: pb.Step) -> None:
    """Asserts that two steps have the same token and, within 1e-5, the same numbers."""
    assert (ours.index, ours.token.id) == (theirs.index, theirs.token.id)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5, rtol=1e-5)
    for kind in ("cross", "decoder_self"):
        assert ours.HasField(kind) == theirs.HasField(kind)
        if ours.HasField(kind):
            own, other = getattr(ours, kind), getattr(theirs, kind)
            np.testing.assert_allclose(array(own), array(other), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(own.special_shares, other.special_shares, atol=1e-5)
