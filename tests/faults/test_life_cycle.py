"""A server in a process of its own, from SIGTERM to its end, with many streams in flight; `-s` prints figures."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from collections import Counter

import cli_process
import grpc
import pytest
from follow_driver import event, start, token_ids
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import CROSS, request
from hostile_clients import reason_of_aio, retry_delay_of
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2 as text

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals")]

SENTENCE = "My grandmother is still vigorous at 82 years old."
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# How many streams of each method. The server has 32 slots: most of them wait for one at the signal.
NUM_ATTRIBUTE, NUM_MANY, NUM_ALIGN, NUM_FOLLOW = 40, 20, 20, 20
NUM_STEPS = 60


class Streams:
    """Streams in flight, each of which says how it has ended."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._service = services.AttributionServiceStub(channel)
        self.has_signal = asyncio.Event()
        self.num_begun = 0

    def begin_all(self) -> list[asyncio.Task[str]]:
        kinds = [self._attribute] * NUM_ATTRIBUTE + [self._many] * NUM_MANY
        kinds += [self._align] * NUM_ALIGN + [self._follow] * NUM_FOLLOW
        return [asyncio.create_task(self._end_of(kind)) for kind in kinds]

    async def _end_of(self, kind) -> str:
        try:
            return f"{kind.__name__[1:]}: {await kind()}"
        except grpc.aio.AioRpcError as error:
            return f"{kind.__name__[1:]}: {error.code().name}"

    async def _attribute(self) -> str:
        responses = []
        async for response in self._service.Attribute(long_request("")):
            self.num_begun += not responses
            responses.append(response)
        return "finished" if responses[-1].HasField("finished") else "cut"

    async def _many(self) -> str:
        """The text finishes; then the stream, which the client has not closed, ends as the contract says."""
        call = self._service.AttributeMany()
        await call.write(pb.AttributeManyRequest(attribute=long_request("text")))
        events = []
        try:
            while True:
                response = await call.read()
                self.num_begun += not events
                events += [response, *response.batch.responses]
        except grpc.aio.AioRpcError as error:
            has_finished = any(each.response.HasField("finished") for each in events)
            return "finished" if has_finished and reason_of_aio(error) == "SHUTTING_DOWN" else "cut"

    async def _align(self) -> str:
        message = pb.AlignRequest(source=text.Text(text="<p>A dog.</p>" * 6))
        message.markup.format = pb.MARKUP_FORMAT_HTML
        self.num_begun += 1
        response = await self._service.Align(message)
        return "finished" if response.marked_target_text.count("<p>") == 6 else "cut"

    async def _follow(self) -> str:
        call = self._service.Follow()
        await call.write(start())
        await call.write(event(source=text.Text(text=SENTENCE)))
        assert (await call.read()).HasField("started")
        self.num_begun += 1
        await self.has_signal.wait()
        for _ in range(5):
            await call.write(event(target=token_ids(9)))
            await asyncio.sleep(0.1)
        await call.done_writing()
        responses = []
        while (response := await call.read()) is not grpc.aio.EOF:
            responses.append(response)
        return "finished" if responses[-1].HasField("finished") else "cut"


def long_request(request_id: str) -> pb.AttributeRequest:
    decoding = text.Decoding(ignore_eos=True, max_new_tokens=NUM_STEPS)
    return request(SENTENCE, [CROSS], decoding=decoding, request_id=request_id)


async def check_refusals(address: str) -> None:
    """New calls, on a connection of their own, hear why they are refused and when to try again."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await services.AttributionServiceStub(channel).GetModel(pb.GetModelRequest())
        assert (raised.value.code(), reason_of_aio(raised.value)) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert retry_delay_of(raised.value) > 0


async def end_with_streams(address: str, process) -> Counter[str]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address) as channel, grpc.aio.insecure_channel(address, options) as other:
        streams = Streams(channel)
        tasks = streams.begin_all()
        watch = health_pb2_grpc.HealthStub(other).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        while streams.num_begun < NUM_MANY + NUM_ALIGN + NUM_FOLLOW:
            await asyncio.sleep(0.01)
        num_running = sum(not task.done() for task in tasks)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == NOT_SERVING
        print(f"NOT_SERVING after {1000 * (time.monotonic() - began):.0f} ms, {num_running} streams in flight")
        await check_refusals(address)
        streams.has_signal.set()
        ends = Counter(await asyncio.gather(*tasks))
        print(f"all streams have ended after {time.monotonic() - began:.1f} s: {dict(ends)}")
        return ends


async def test_a_hundred_streams_finish_after_sigterm():
    with (
        tempfile.TemporaryFile("w+") as log,
        cli_process.start("serve", "--address", "127.0.0.1:0", "--grace", "120", stderr=log) as process,
    ):
        assert process.stdout is not None
        try:
            line = await asyncio.to_thread(process.stdout.readline)
            ends = await end_with_streams(line.split()[-1], process)
            assert await asyncio.to_thread(process.wait, 60) == 0
        finally:
            process.kill()
        log.seek(0)
        assert "Traceback" not in log.read()
    finished = {"attribute": NUM_ATTRIBUTE, "many": NUM_MANY, "align": NUM_ALIGN, "follow": NUM_FOLLOW}
    assert ends == {f"{kind}: finished": count for kind, count in finished.items()}
