"""PairReader: what the engines compute of a pair of texts that is linked: rows, and the encoder's states.

A pair is one request to the engine of a model, and one more where the encoder's states are compared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sidelight.v1 import attribution_service_pb2 as service_pb

from ...alignment import Linker, Signals, WordedText, compare_states
from ...errors import RequestError
from ...frontends import EngineRequest
from ...request import EncodedTarget, EncoderStates, Finished, Output, Step, StopReason
from ...text import Token, TokenizedText
from ..alignment_messages import AlignUsage
from ..validation import (
    build_states_request,
    find_align_field,
    find_states_field,
    validate_encoded_pair,
    validate_request,
)
from .answer import MESSAGE_BYTES, AnswerStarter, Validator

# Called with the engine's state of each request, and a name that no other request of the pair has.
OnStart = Callable[[str, EngineRequest], None]


@dataclass(frozen=True)
class PairClient:
    """The client of an AlignRequest, and its deadline."""

    request_id: str
    connection: Hashable
    deadline: float | None
    on_start: OnStart


@dataclass(frozen=True)
class _States:
    """The encoder's states of a pair, and the target as the encoder has read it."""

    target: TokenizedText
    states: EncoderStates


@dataclass(frozen=True)
class PairRows:
    """What the engine has said of a pair: its texts, and float32 rows `[target tokens, source tokens]`.

    `states` is None where the linker does not compare them, and where the target has no tokens for the encoder.
    """

    source: TokenizedText
    target_text: str
    target: Sequence[Token]
    rows: NDArray[np.float32]
    signals: Signals | None
    stop_reason: StopReason
    states: _States | None = None

    def compare_states(self, linker: Linker, source: WordedText, target: WordedText) -> NDArray[np.float32] | None:
        """Returns how alike the encoder's states of the words of both texts are; None where the linker needs no states.

        Where the encoder has not read the target, all words are alike.
        """
        if not linker.has_encoder_states:
            return None
        if self.states is None:
            return np.zeros((len(source.words), len(target.words)), np.float32)
        read, states = self.states.target, self.states.states
        shares = WordedText(read.text, read.tokens, target.words).shares
        return compare_states(states.source, source.shares, states.target, shares)


class PairReader:
    """Has the engines of models compute what linkers need of the pairs of one AlignRequest. For one event loop."""

    def __init__(
        self, starter: AnswerStarter, message: service_pb.AlignRequest, client: PairClient, usage: AlignUsage
    ) -> None:
        """`usage` counts what the requests cost."""
        self._starter = starter
        self._message = message
        self._client = client
        self._usage = usage

    async def read(
        self, request: service_pb.AttributeRequest, linker: Linker, name: str, *, is_reverse: bool
    ) -> PairRows:
        """Has the engine compute what a linker needs of a pair. Raises RequestError with the field of the AlignRequest.

        A target that is given is read by encoder and decoder at the same time.
        """
        rows = self._run_rows(request, name, is_reverse=is_reverse)
        if not linker.has_encoder_states:
            return await rows
        if request.WhichOneof("target") == "given":
            found, states = await _run_both(
                rows, self._run_states(request, request.given.text, name, is_reverse=is_reverse)
            )
        else:
            found = await rows
            text, states = found.target_text, None
            if text.strip():
                states = await self._run_states(request, text, name, is_reverse=is_reverse)
        return replace(found, states=states)

    async def _run_rows(self, request: service_pb.AttributeRequest, name: str, *, is_reverse: bool) -> PairRows:
        try:
            state, outputs = await self._collect(request, name, validate_request)
        except RequestError as error:
            raise find_align_field(error, is_reverse=is_reverse) from None
        tokens: list[Token] = []
        rows: list[NDArray[Any]] = []
        finished: Finished | None = None
        first_step = 0.0
        for arrived, output in outputs:
            if isinstance(output, Step):
                first_step = first_step or arrived
                assert output.cross is not None
                tokens.append(output.token)
                rows.append(output.cross.values)
            elif isinstance(output, Finished):
                finished = output
        assert finished is not None
        self._usage.add(state, len(tokens), first_step, finished.seed)
        return PairRows(
            state.request.source, finished.text, tokens, np.stack(rows), finished.signals, finished.stop_reason
        )

    async def _run_states(
        self, request: service_pb.AttributeRequest, target: str, name: str, *, is_reverse: bool
    ) -> _States | None:
        """Has the engine compute the encoder's states of a pair; None for a target without tokens for the encoder."""
        try:
            states_request = build_states_request(request, target)
            state, outputs = await self._collect(states_request, f"{name} states", validate_encoded_pair)
        except RequestError as error:
            if (error.reason, error.field) == ("EMPTY", "given.text"):
                return None
            raise find_states_field(error, self._message, is_reverse=is_reverse) from None
        states = next(output for _, output in outputs if isinstance(output, EncoderStates))
        assert isinstance(state.request.target, EncodedTarget)
        self._usage.add_states(state, len(states.source) + len(states.target))
        return _States(state.request.target.text, states)

    async def _collect(
        self,
        request: service_pb.AttributeRequest,
        name: str,
        validator: Validator,
    ) -> tuple[EngineRequest, list[tuple[float, Output]]]:
        """Has the engine answer a request. Returns its outputs, each with the time when it came."""
        client = self._client
        answer = await self._starter.start(
            request, request.ByteSize(), client.request_id, client.connection, client.deadline, validator=validator
        )
        client.on_start(name, answer.state)
        collected: list[tuple[float, Output]] = []
        try:
            while outputs := await answer.queue.get(MESSAGE_BYTES):
                now = time.monotonic()
                collected += [(now, output) for output in outputs]
        finally:
            answer.queue.cancel()  # the engine drops the request if it still runs
        return answer.state, collected


async def _run_both(
    rows: Coroutine[Any, Any, PairRows], states: Coroutine[Any, Any, _States | None]
) -> tuple[PairRows, _States | None]:
    """Runs two requests of a pair at the same time. Where one fails, the other ends."""
    tasks = asyncio.create_task(rows), asyncio.create_task(states)
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
