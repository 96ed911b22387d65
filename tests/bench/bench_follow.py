"""Follow streams: the time of a token and of several tokens, beside decode steps and given targets.

Run by `make bench`. The latency is measured in pairs that alternate, so that a noisy machine treats both alike. Its
parts are those of the bundled model: an empty message there and back, by gRPC alone and through the engine; and the
engine in this process, from the event in its queue to the step in its queue, beside its own decode step.

Streams catch up on several tokens at once, and on a source that has grown behind them, beside the same tokens one by
one, and beside the same pairs as given targets.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import sidelight.server
from rich.console import Console
from rich.table import Table
from sidelight.client import (
    AsyncClient,
    AsyncFollowStream,
    Capture,
    Client,
    Decoding,
    Started,
    Step,
    StepCount,
)
from sidelight.client.cli.demo import bundled_server
from sidelight.server.api.validation import FollowValidator, validate_request
from sidelight.server.engine import Engine, EventQueue, OutputQueue, SourceGrowth, StreamEnd, TargetToken
from sidelight.server.models.loader import load
from sidelight.server.request import Output
from sidelight.server.request import Step as EngineStep
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2

sys.path.insert(0, str(Path(__file__).parent))
import load_client
from workloads import Source, opus_workload

DATA = Path(__file__).parents[3] / "shared" / "data" / "tatoeba-en-de.dev.tsv"
SENTENCES, MAX_NEW_TOKENS = 20, 30
CATCH_UP_TOKENS, CATCH_UP_ROUNDS, GROWTH = 32, 15, " again"


def main() -> int:
    if not DATA.exists():
        print(f"skipped: {DATA} is not here")
        return 0
    sentences = [line.split("\t")[0] for line in DATA.read_text(encoding="utf-8").splitlines()]
    with bundled_server() as (_, address):
        latencies = {"the bundled model": _measure_latency(address, sentences[:SENTENCES])}
        in_engine = asyncio.run(_measure_engine(sentences[:SENTENCES]))
        _report_parts(_measure_messages(address, sentences[0]), in_engine)
        asyncio.run(_report_catch_up(address, sentences))
    with tempfile.TemporaryDirectory() as folder:
        workload = opus_workload(Path(folder), 4)
        with load_client.serve(workload.folder, workload.name, []) as address:
            latencies["a random model of the size of opus-mt"] = _measure_latency(address, workload.sources)
    _report_latency(latencies)
    return 0


# ---- latency --------------------------------------------------------------------------------------------------------


def _measure_latency(address: str, sources: Sequence[Source]) -> tuple[float, float, float]:
    """The median seconds from a token to its attention, those of a decode step, and the median ratio of a sentence."""
    followed: list[float] = []
    decoded: list[float] = []
    ratios: list[float] = []
    with Client(address) as client:
        for source in sources:
            ids, steps = _decode(client, source)
            tokens = _follow(client, source, ids)
            decoded += steps
            followed += tokens
            ratios.append(statistics.median(tokens) / statistics.median(steps))
    return statistics.median(followed), statistics.median(decoded), statistics.median(ratios)


def _report_latency(latencies: dict[str, tuple[float, float, float]]) -> None:
    table = Table("milliseconds, medians", "from a token to its attention", "a decode step", "ratio")
    for name, (followed, decoded, ratio) in latencies.items():
        table.add_row(name, f"{1000 * followed:.2f}", f"{1000 * decoded:.2f}", f"{ratio:.2f}")
    Console(width=100).print(table)


def _decode(client: Client, source: Source) -> tuple[list[int], list[float]]:
    """The tokens that the model writes, and the seconds between each two steps."""
    ids: list[int] = []
    times: list[float] = []
    for step in client.attribute(source, capture=Capture(), decoding=Decoding(max_new_tokens=MAX_NEW_TOKENS)):
        ids.append(step.token.id)
        times.append(time.perf_counter())
    return ids, [later - earlier for earlier, later in itertools.pairwise(times)]


def _follow(client: Client, source: Source, ids: list[int]) -> list[float]:
    """The seconds from each token to its attention. A token is sent a moment after the step before it."""
    seconds: list[float] = []
    with client.follow(capture=Capture()) as stream:
        stream.add_source(source)
        assert isinstance(next(stream), Started)
        for id_ in ids:
            time.sleep(0.002)
            began = time.perf_counter()
            stream.add_target([id_])
            assert isinstance(next(stream), Step)
            seconds.append(time.perf_counter() - began)
    return seconds[1:]  # as without the first decode step


# ---- the parts of the latency ---------------------------------------------------------------------------------------

# Sends back what it gets: gRPC alone.
_ECHO_SERVER = """
import asyncio, grpc

async def echo(_, context):
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)

async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    handlers = {"Echo": grpc.stream_stream_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""
_MESSAGES, _PAUSE = 200, 0.002


class _TimedQueue(OutputQueue):
    """Keeps when the engine has put the last output."""

    put_at = 0.0

    def put(self, output: Output, *, notifies: bool = True) -> None:
        """Does what `OutputQueue.put` does."""
        self.put_at = time.perf_counter()
        super().put(output, notifies=notifies)


@contextmanager
def _echo_server() -> Generator[str, None, None]:
    command = [sys.executable, "-c", _ECHO_SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tempfile.gettempdir()) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def _measure_messages(address: str, source: str) -> tuple[float, float]:
    """The median seconds of an empty message there and back: by gRPC alone, and of one that the engine answers."""
    alone: list[float] = []
    answered: list[float] = []
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with _echo_server() as echo, grpc.insecure_channel(echo) as channel, Client(address) as client:
        call = channel.stream_stream("/bench/Echo")(iter(requests.get, None))
        with client.follow(capture=Capture()) as stream:
            stream.add_source(source)
            assert isinstance(next(stream), Started)
            for _ in range(_MESSAGES):
                time.sleep(_PAUSE)
                began = time.perf_counter()
                requests.put(b"")
                assert next(call) == b""
                alone.append(time.perf_counter() - began)
                time.sleep(_PAUSE)
                began = time.perf_counter()
                stream.take_back(0)
                assert isinstance(next(stream), StepCount)
                answered.append(time.perf_counter() - began)
        requests.put(None)
        call.cancel()
    return statistics.median(alone), statistics.median(answered)


async def _measure_engine(sources: Sequence[str]) -> dict[float, tuple[float, float]]:
    """By the pause before a token: the median seconds from the event to its step, and those of a decode step."""
    loaded = load(Path(sidelight.server.__file__).parent / "bundled")
    engine = Engine(loaded)
    await asyncio.to_thread(engine.start)
    seconds: dict[float, tuple[list[float], list[float]]] = {0.0: ([], []), _PAUSE: ([], [])}
    try:
        for source, (pause, (followed, decoded)) in itertools.product(sources, seconds.items()):
            text = text_pb2.Text(text=source)
            outputs = OutputQueue(engine.wake)
            engine.submit(validate_request(pb.AttributeRequest(source=text), loaded, "decoded"), outputs)
            ids: list[int] = []
            times: list[float] = []
            while found := await outputs.get(1):
                if isinstance(found[0], EngineStep):
                    ids.append(found[0].token.id)
                    times.append(time.perf_counter())
            decoded += [later - earlier for earlier, later in itertools.pairwise(times)]
            followed += await _follow_in_engine(engine, text, ids, pause)
    finally:
        await asyncio.to_thread(engine.stop)
    return {
        pause: (statistics.median(followed), statistics.median(decoded))
        for pause, (followed, decoded) in seconds.items()
    }


async def _follow_in_engine(engine: Engine, source: text_pb2.Text, ids: list[int], pause: float) -> list[float]:
    (growth,) = FollowValidator(pb.FollowStart(), engine.loaded, "followed").add(pb.FollowRequest(source=source))
    assert isinstance(growth, SourceGrowth)
    events, outputs = EventQueue(engine.wake), _TimedQueue(engine.wake)
    engine.submit(growth.request, outputs, events=events)
    await outputs.get(1)
    seconds: list[float] = []
    for id_ in ids:
        outputs.release_sent()  # so that the next pass runs, as while a client has got its step
        engine.wake()
        await asyncio.sleep(pause)
        began = time.perf_counter()
        await events.put(TargetToken(id_))
        await outputs.get(1)
        seconds.append(outputs.put_at - began)
    await events.put(StreamEnd())
    while await outputs.get(1):
        pass
    return seconds[1:]


def _report_parts(messages: tuple[float, float], engine: dict[float, tuple[float, float]]) -> None:
    table = Table("the bundled model, milliseconds, medians", "", "ratio to a decode step of the same engine")
    table.add_row("an empty message there and back, by gRPC alone", f"{1000 * messages[0]:.2f}", "")
    table.add_row("an empty message that the engine answers", f"{1000 * messages[1]:.2f}", "")
    for pause, (followed, decoded) in engine.items():
        name = f"in the engine, from a token to its step, {1000 * pause:.0f} ms after the step before"
        table.add_row(name, f"{1000 * followed:.2f}", f"{followed / decoded:.2f}")
    Console(width=120).print(table)


# ---- streams that catch up ------------------------------------------------------------------------------------------


async def _report_catch_up(address: str, sentences: list[str]) -> None:
    """Prints the times of all streams together, each with the tokens of a text of four sentences."""
    names = "one by one", "at once", "as given targets", "the source grows"
    table = Table(f"{CATCH_UP_TOKENS} tokens, milliseconds, medians", *names, "one by one / at once", "at once / given")
    async with AsyncClient(address) as client:
        for num_streams in (1, 8):
            sources = [" ".join(sentences[4 * n : 4 * n + 4]) for n in range(num_streams)]
            medians = await _measure_catch_up(client, sources)
            one_by_one, at_once, given, _ = medians
            ratios = f"{one_by_one / at_once:.1f}", f"{at_once / given:.2f}"
            table.add_row(f"{num_streams} streams", *(f"{1000 * seconds:.1f}" for seconds in medians), *ratios)
    Console(width=140).print(table)


async def _measure_catch_up(client: AsyncClient, sources: list[str]) -> list[float]:
    """The median seconds until all streams have the steps of their tokens, by the four ways to send them."""
    limit = Decoding(max_new_tokens=CATCH_UP_TOKENS)
    results = [await client.attribute(source, capture=Capture(), decoding=limit).result() for source in sources]
    ids = [[token.id for token in result.steps] for result in results]
    seconds: list[list[float]] = [[] for _ in range(4)]

    async def measure(way: int, *waits: Awaitable[object]) -> None:
        began = time.perf_counter()
        await asyncio.gather(*waits)
        seconds[way].append(time.perf_counter() - began)

    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(client.follow(capture=Capture())) for _ in sources]
        for stream, source in zip(streams, sources, strict=True):
            await stream.add_source(source)
            assert isinstance(await anext(stream), Started)
        for round_ in range(CATCH_UP_ROUNDS):
            for way in (_send_one_by_one, _send_at_once):
                await measure(way is _send_at_once, *map(way, streams, ids))
                if way is _send_at_once:
                    await measure(3, *map(_grow, streams, ids))
                await asyncio.gather(*map(_take_back, streams, ids))
            grown = [source + GROWTH * (round_ + 1) for source in sources]
            calls = [
                client.attribute(source, target=own, capture=Capture()) for source, own in zip(grown, ids, strict=True)
            ]
            await measure(2, *(call.result() for call in calls))
    return [statistics.median(each) for each in seconds]


async def _send_one_by_one(stream: AsyncFollowStream, ids: list[int]) -> None:
    for id_ in ids:
        await stream.add_target([id_])
        assert isinstance(await anext(stream), Step)


async def _send_at_once(stream: AsyncFollowStream, ids: list[int]) -> None:
    await stream.add_target(ids)
    for _ in ids:
        assert isinstance(await anext(stream), Step)


async def _grow(stream: AsyncFollowStream, ids: list[int]) -> None:
    """Adds a word to the source, and the token behind the target, which is taken back again."""
    await stream.add_source(GROWTH)
    assert isinstance(await anext(stream), Started)
    await _send_at_once(stream, ids[:1])
    await _take_back(stream, ids[:1])


async def _take_back(stream: AsyncFollowStream, ids: list[int]) -> None:
    await stream.take_back(len(ids))
    assert isinstance(await anext(stream), StepCount)


if __name__ == "__main__":
    raise SystemExit(main())
