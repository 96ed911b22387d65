"""The follow streams of both clients, on a real server."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sidelight.client import (
    AlignAtt,
    AsyncClient,
    AwaitingSource,
    CancelledError,
    Capture,
    Client,
    DeadlineExceededError,
    Decoding,
    EncoderSelf,
    Finished,
    InvalidArgumentError,
    Started,
    Step,
    StepCount,
    UnavailableError,
)

COMMAND = str(Path(sys.executable).with_name("sidelight"))

KINDS = ("cross", "decoder_self", "encoder_self")


def test_the_callers_decoder_leads(bundled_server):
    with Client(bundled_server) as client:
        with client.follow(capture=Capture(kinds=KINDS), scores=["probability"], policy=AlignAtt(words=1)) as stream:
            stream.add_source("Where did you")
            stream.add_target("Wo hast d")
            stream.take_back(1)
            stream.add_source(" buy that?")
            stream.complete_source()
            stream.add_target(" hast du")
            stream.flush()
            stream.add_target([0])
            stream.end()
            events = list(stream)
        kinds = [type(event) for event in events]
        assert kinds == [Started, EncoderSelf, Step, Step, StepCount, Started, EncoderSelf, Step, Step, Step, Finished]
        steps = [event for event in events if isinstance(event, Step)]
        assert [step.text for step in steps] == ["Wo", " hast", " hast", " du", ""]
        assert events[4] == StepCount(1)
        assert isinstance(events[-1], Finished)
        assert (events[-1].text, events[-1].stop_reason) == ("Wo hast du", "given")
        given = client.attribute(
            "Where did you buy that?", target=[step.token.id for step in (steps[0], *steps[2:])], scores=["probability"]
        ).result()
        for step in steps[2:]:
            assert step.cross is not None
            assert step.cross == pytest.approx(given.cross[:, step.index], abs=1e-5)
            assert step.scores["probability"] == pytest.approx(given.scores["probability"][step.index], abs=1e-5)
            assert step.decision is not None
            assert not step.decision.is_held
            assert step.decision.firm_source_tokens >= step.decision.source_token + 1


def test_another_thread_may_send(bundled_server):
    with Client(bundled_server) as client:
        stream = client.follow(policy=AlignAtt(tokens=2), decoding=Decoding())

        def send() -> None:
            for piece in ("Where did", " you buy", " that?"):
                stream.add_source(piece)
            stream.complete_source()

        thread = threading.Thread(target=send)
        thread.start()
        events = list(stream)
        thread.join()
        assert sum(isinstance(event, AwaitingSource) for event in events) == 3
        assert isinstance(events[-1], Finished)
        assert events[-1].text == "".join(event.text for event in events if isinstance(event, Step))


async def follow(client: AsyncClient, *pieces: str) -> list[object]:
    """Sends a source piece by piece, each when the server waits for it. Returns all events."""
    events: list[object] = []
    async with client.follow(policy=AlignAtt(words=1, layers=[2]), decoding=Decoding()) as stream:
        await stream.add_source(pieces[0])
        waiting = list(pieces[1:])
        async for event in stream:
            events.append(event)
            if isinstance(event, AwaitingSource):
                await (stream.add_source(waiting.pop(0)) if waiting else stream.complete_source())
    return events


def test_asyncio(bundled_server):
    async def run() -> list[list[object]]:
        async with AsyncClient(bundled_server) as client:
            return await asyncio.gather(*(follow(client, "Good", " morning", end) for end in ("!", ", Tom!")))

    for events in asyncio.run(run()):
        assert sum(isinstance(event, Started) for event in events) == 3
        assert isinstance(events[-1], Finished)
        assert events[-1].text.startswith("Guten Morgen")


def test_what_an_asyncio_stream_sends(bundled_server):
    async def run() -> Finished:
        async with AsyncClient(bundled_server) as client, client.follow() as stream:
            await stream.add_source([5, 6, 0])
            await stream.add_target([9, 9])
            await stream.take_back(1)
            await stream.add_target("Buch")
            await stream.flush()
            await stream.end()
            events = [event async for event in stream]
            assert isinstance(events[-1], Finished)
            return events[-1]

    assert asyncio.run(run()).usage.target_tokens >= 2


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"polcy": None}, "polcy"),
        ({"policy": AlignAtt()}, "policy"),
        ({"policy": AlignAtt(words=1, tokens=1)}, "policy"),
        ({"policy": AlignAtt(words="1")}, "policy.words"),
        ({"policy": AlignAtt(words=-1)}, "policy.words"),
        ({"policy": AlignAtt(words=1, row="both")}, "policy.row"),
        ({"scores": ["x"]}, "scores"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_what_the_client_refuses(options, field):
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidArgumentError) as raised:
        client.follow(**options)
    assert raised.value.field == field


def test_errors_of_the_server_name_the_field(bundled_server):
    with Client(bundled_server) as client, client.follow(policy=AlignAtt(words=1)) as stream:
        stream.add_source("Good")
        stream.take_back(1)
        with pytest.raises(InvalidArgumentError) as raised:
            list(stream)
        assert raised.value.field == "take_back"
        with pytest.raises(InvalidArgumentError):
            stream.take_back(-1)
        stream.add_source("x")  # goes nowhere


def test_an_asyncio_stream_opens_before_anything_is_sent(bundled_server):
    """The server waits for the start only so long, and answers the start."""

    async def run() -> None:
        async with AsyncClient(bundled_server) as client, client.follow(policy=AlignAtt(words=0)) as stream:
            with pytest.raises(InvalidArgumentError) as raised:
                await asyncio.wait_for(anext(stream), 30)
            assert raised.value.field == "start.policy.align_att.words"

    asyncio.run(run())


def test_after_the_end_nothing_can_be_sent(bundled_server):
    def check(raised) -> None:
        assert (raised.value.field, "after end()" in raised.value.message) == ("target", True)

    with Client(bundled_server) as client, client.follow() as stream:
        stream.add_source("Good")
        stream.end()
        with pytest.raises(InvalidArgumentError) as raised:
            stream.add_target("Gut ")
        check(raised)
        stream.end()
        assert isinstance(list(stream)[-1], Finished)

    async def run() -> None:
        async with AsyncClient(bundled_server) as client, client.follow() as stream:
            await stream.add_source("Good")
            await stream.end()
            with pytest.raises(InvalidArgumentError) as raised:
                await stream.add_target("Gut ")
            check(raised)
            await stream.end()
            assert isinstance([event async for event in stream][-1], Finished)

    asyncio.run(run())


def test_a_stream_that_takes_too_long_or_whose_client_is_closed_says_so(bundled_server):
    client = Client(bundled_server)
    late = client.follow(timeout=0.05)
    with pytest.raises(DeadlineExceededError, match=r"^the deadline has passed$"):
        list(late)
    stream = client.follow()
    client.close()
    with pytest.raises(CancelledError, match=r"^the client is closed$"):
        list(stream)


def test_cancelled_streams_say_so(bundled_server):
    with Client(bundled_server) as client:
        stream = client.follow()
        stream.add_source("Good")
        assert isinstance(next(stream), Started)
        stream.cancel()
        with pytest.raises(CancelledError):
            next(stream)

    async def run() -> None:
        async with AsyncClient(bundled_server) as client:
            stream = client.follow()
            await stream.add_source("Good")
            assert isinstance(await anext(stream), Started)
            stream.cancel()
            await stream.add_source("Good")
            with pytest.raises(CancelledError):
                await anext(stream)

    asyncio.run(run())


def test_an_asyncio_stream_that_is_cancelled_by_its_id_raises_the_clients_error(bundled_server):
    async def run() -> None:
        async with AsyncClient(bundled_server) as client:
            stream = client.follow(request_id="led from elsewhere")
            await stream.add_source("Good")
            assert isinstance(await anext(stream), Started)
            assert await client.cancel_attribution("led from elsewhere") == 1
            with pytest.raises(CancelledError):
                await anext(stream)

    asyncio.run(run())


async def test_a_wrong_option_is_refused_before_there_is_a_source(bundled_server):
    async with AsyncClient(bundled_server) as client:
        with pytest.raises(InvalidArgumentError, match="layers"):
            await asyncio.wait_for(anext(client.follow(capture=Capture(layers=[99]))), 60)
    with Client(bundled_server) as client, pytest.raises(InvalidArgumentError, match="layers"):
        next(client.follow(capture=Capture(layers=[99]), timeout=60))


@pytest.mark.slow  # three minutes: the client asks for a sign of life each half minute
def test_a_quiet_stream_stays_open_until_the_server_gives_no_sign_of_life(tmp_path):
    address = f"unix:{tmp_path}/socket"
    with subprocess.Popen(
        [COMMAND, "serve", "--address", address], stdout=subprocess.PIPE, text=True, cwd="/"
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline()
            with Client(address) as client, client.follow(timeout=600) as stream:
                stream.add_source("Where did you buy that?")
                assert isinstance(next(stream), Started)
                time.sleep(100)
                stream.add_target([5])
                assert isinstance(next(stream), Step)
                server.send_signal(signal.SIGSTOP)  # as where the host is gone: the connection is not closed
                with pytest.raises(UnavailableError):
                    next(stream)
        finally:
            server.kill()
