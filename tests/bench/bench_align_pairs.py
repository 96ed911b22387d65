"""Given pairs per second: one stream of AttributeMany with some heads, and a batched forward pass of transformers.

Run by `make bench`. A pair is a source with its target; the client keeps 1, 8 or 32 pairs under way, and gets for each
target token the mean of a few cross-attention heads, which is what word links need. Beside it, in a process of its own,
transformers runs encoder and decoder over batches of pairs of similar length with `output_attentions=True`; the best of
some batch sizes counts. Contenders take turns, so that a noisy machine treats them alike; figures are medians. A second
table has decoders alone, and decoders beside given pairs, half of the texts under way each.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import contenders
import grpc
import load_client
import torch
from rich.console import Console
from rich.table import Table
from sidelight.v1 import attention_pb2, attribution_service_pb2_grpc
from sidelight.v1 import attribution_service_pb2 as pb
from transformers import AutoModelForSeq2SeqLM
from workloads import DATA, Source, Workload, bundled_workload, opus_workload

CONCURRENCIES = (1, 8, 32)
BATCH_SIZES = (16, 32, 64)
THREAD_COUNTS = (1, 2)  # of transformers: on a busy machine, two threads may wait for each other

Pair = tuple[Source, Source]


def requests_of(pairs: Sequence[Pair], capture: attention_pb2.Capture, *, are_given: bool) -> list[pb.AttributeRequest]:
    """The requests of some pairs: with their targets given, or decoded."""
    requests: list[pb.AttributeRequest] = []
    for number, (source, target) in enumerate(pairs):
        request = load_client.request_of(source, None if isinstance(target, str) else len(target), capture)
        request.request_id = str(number)
        if are_given:
            request.ClearField("decoding")
            if isinstance(target, str):
                request.given.text = target
            else:
                request.given.token_ids.ids.extend(target)
        requests.append(request)
    return requests


async def run_stream(
    channel: grpc.aio.Channel, requests: Iterator[pb.AttributeRequest], concurrency: int, until: asyncio.Event | None
) -> tuple[int, int]:
    """Sends requests over one stream, the next as soon as one ends. Returns how many have ended, and their tokens.

    Ends with the requests, or once `until` is set.
    """
    call: Any = attribution_service_pb2_grpc.AttributionServiceStub(channel).AttributeMany()
    num_running = num_ended = num_tokens = 0

    async def send() -> int:
        request = None if until is not None and until.is_set() else next(requests, None)
        if request is None:
            return 0
        await call.write(pb.AttributeManyRequest(attribute=request))
        return 1

    for _ in range(concurrency):
        num_running += await send()
    while num_running:
        response = await call.read()
        for event in response.batch.responses if response.HasField("batch") else (response,):
            if event.HasField("error"):
                raise RuntimeError(event.error.message)
            for step in event.response.steps.steps:
                if not step.cross.values:
                    raise RuntimeError(f"step {step.index} of {event.request_id} has no attention")
                num_tokens += 1
            if event.response.HasField("finished"):
                num_ended += 1
                num_running += await send() - 1
    await call.done_writing()
    return num_ended, num_tokens


def measure_pairs(address: str, requests: Sequence[pb.AttributeRequest], concurrency: int) -> float:
    """Pairs per second."""

    async def run() -> float:
        async with grpc.aio.insecure_channel(address) as channel:
            await channel.channel_ready()
            began = time.perf_counter()
            await run_stream(channel, iter(requests), concurrency, None)
            return len(requests) / (time.perf_counter() - began)

    return asyncio.run(run())


def measure_decoders(
    address: str, decoded: Sequence[pb.AttributeRequest], given: Sequence[pb.AttributeRequest], seconds: float
) -> tuple[float, float]:
    """Decoded tokens and given pairs per second, with 16 texts of each under way. Without `given`, decoders alone."""

    async def run() -> tuple[float, float]:
        until = asyncio.Event()
        async with grpc.aio.insecure_channel(address) as one, grpc.aio.insecure_channel(address) as other:
            began = time.perf_counter()
            streams = [run_stream(one, itertools.cycle(decoded), 16, until)]
            if given:
                streams.append(run_stream(other, itertools.cycle(given), 16, until))
            asyncio.get_running_loop().call_later(seconds, until.set)
            results = await asyncio.gather(*streams)
            took = time.perf_counter() - began
        return results[0][1] / took, results[1][0] / took if given else 0.0

    return asyncio.run(run())


def run_transformers(folder: Path, pairs: Sequence[tuple[list[int], list[int]]], connection: Connection) -> None:
    """In a process of its own: runs all pairs in batches of a size, with so many threads. Answers with seconds.

    The seconds are those of the clock, and those of the processor.
    """
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    padding = model.config.pad_token_id
    ordered = sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))

    def pad(rows: list[list[int]]) -> torch.Tensor:
        longest = max(map(len, rows))
        return torch.tensor([row + [padding] * (longest - len(row)) for row in rows])

    while order := connection.recv():
        size, num_threads = order
        torch.set_num_threads(num_threads)
        began, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            for begin in range(0, len(ordered), size):
                sources, targets = ([*column] for column in zip(*ordered[begin : begin + size], strict=True))
                start = model.config.decoder_start_token_id
                inputs = pad([[start, *target[:-1]] for target in targets])
                mask = (ids := pad(sources)) != padding
                output = model(
                    input_ids=ids, attention_mask=mask.long(), decoder_input_ids=inputs, output_attentions=True
                )
                if len(output.cross_attentions[0]) != len(targets):
                    raise RuntimeError("no attention")
        connection.send((time.perf_counter() - began, time.process_time() - cpu))


def token_ids(workload: Workload, pairs: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
    """The pairs as token ids, as the server reads them."""
    from sidelight.server.models import load

    tokenizer = load(workload.folder).tokenizer
    languages = tokenizer.resolve_languages("", "")

    def ids(text: Source, *, is_source: bool) -> list[int]:
        if not isinstance(text, str):
            return text
        return (tokenizer.encode_source if is_source else tokenizer.encode_target)(text, languages).ids

    return [(ids(source, is_source=True), ids(target, is_source=False)) for source, target in pairs]


def measure(
    workload: Workload, pairs: Sequence[Pair], rounds: int, seconds: float, heads: list[tuple[int, int]]
) -> None:
    """Measures a model, and prints its two tables."""
    capture = attention_pb2.Capture(kinds=[attention_pb2.ATTENTION_KIND_CROSS], row=attention_pb2.ROW_READING)
    capture.heads.list.heads.extend(attention_pb2.Head(layer=layer, head=head) for layer, head in heads)
    capture.over_heads = attention_pb2.REDUCTION_MEAN
    given, decoded = (requests_of(pairs, capture, are_given=are_given) for are_given in (True, False))
    rates: dict[int | str, list[float]] = {}
    times: dict[int | str, list[float]] = {}  # seconds of the processor for each pair, of the server or the peer
    ours, theirs = multiprocessing.Pipe()
    arguments = workload.folder, token_ids(workload, pairs), theirs
    peer = multiprocessing.get_context("spawn").Process(target=run_transformers, args=arguments, daemon=True)
    peer.start()
    beside: list[tuple[float, float, float]] = []
    with load_client.serve(workload.folder, workload.name, []) as address:
        server = load_client.find_server()
        for number in range(rounds + 1):
            if number == 1:
                rates.clear()
                times.clear()  # the first round does what only a first round does
            for concurrency in CONCURRENCIES:
                part = given if concurrency > 1 else given[: max(1, len(given) // 4)]
                cpu = load_client.server_seconds(server)
                rates.setdefault(concurrency, []).append(measure_pairs(address, part, concurrency))
                times.setdefault(concurrency, []).append((load_client.server_seconds(server) - cpu) / len(part))
            results: list[tuple[float, float]] = []
            for order in itertools.product(BATCH_SIZES, THREAD_COUNTS):
                ours.send(order)
                results.append(ours.recv())
            best, best_cpu = (min(column) for column in zip(*results, strict=True))
            rates.setdefault("transformers", []).append(len(pairs) / best)
            times.setdefault("transformers", []).append(best_cpu / len(pairs))
        ours.send(None)
        for _ in range(rounds):
            alone, _ = measure_decoders(address, decoded, (), seconds)
            tokens, num_given = measure_decoders(address, decoded, given, seconds)
            beside.append((tokens / alone, num_given, num_given / measure_pairs(address, given, 16)))
    peer.join()
    print_tables(workload, rates, times, beside, rounds)


def print_tables(
    workload: Workload,
    rates: dict[int | str, list[float]],
    times: dict[int | str, list[float]],
    beside: list[tuple[float, float, float]],
    rounds: int,
) -> None:
    """Prints the rates of all contenders, and what decoders keep beside given pairs."""
    console = Console(width=120)
    table = Table(title=f"{workload.title}, medians of {rounds}")
    for column in ("", "pairs/s", "times transformers", "processor ms/pair"):
        table.add_column(column, justify="left" if not column else "right")
    for name, values in rates.items():
        label = "transformers, best batch size" if isinstance(name, str) else f"AttributeMany, {name} under way"
        ratios = [value / other for value, other in zip(values, rates["transformers"], strict=True)]
        milliseconds = statistics.median(times[name]) * 1000
        table.add_row(
            label, f"{statistics.median(values):.0f}", f"{statistics.median(ratios):.2f}", f"{milliseconds:.2f}"
        )
    console.print(table)
    decoders, pairs, share = map(statistics.median, zip(*beside, strict=True))
    console.print(
        f"16 decoders beside 16 given pairs write {decoders:.2f} of their tokens alone, {decoders / 0.5:.2f} of their "
        f"half; {pairs:.0f} pairs/s beside them are {share:.2f} of the pairs alone."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long decoders and given pairs run side by side")
    parser.add_argument("--models", default="bundled,opus")
    args = parser.parse_args()
    contenders.prepare()
    if "bundled" in args.models.split(","):
        workload = bundled_workload(args.pairs)
        if workload is None:
            print(f"skipped: {DATA} is not here")
        else:
            rows = [row.split("\t") for row in DATA.read_text(encoding="utf-8").splitlines()[: args.pairs]]
            measure(workload, [(row[0], row[1]) for row in rows], args.rounds, args.seconds, [(1, 0), (1, 2)])
    if "opus" in args.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            workload = opus_workload(Path(folder), args.pairs // 5)
            generator = torch.Generator().manual_seed(2)
            targets = torch.randint(2, 6000, (len(workload.sources), 30), generator=generator).tolist()
            pairs = list(zip(workload.sources, targets, strict=True))
            measure(workload, pairs, args.rounds, args.seconds, [(2, 0), (2, 3)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
