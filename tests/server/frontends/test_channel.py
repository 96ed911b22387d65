"""Messages between two processes: their order, arrays in shared memory, and what is left at the end."""

from __future__ import annotations

import asyncio
import os

import numpy as np
from sidelight.server.errors import RequestError, internal, invalid
from sidelight.server.frontends.channel import Channel, make_channel_ends
from sidelight.server.frontends.shared_ring import RingReader, RingWriter, make_ring


async def open_channels(receive_one, receive_other):
    one, other = make_channel_ends()
    closed = []
    channels = (
        Channel(one, receive_one, lambda: closed.append("one")),
        Channel(other, receive_other, lambda: closed.append("other")),
    )
    for channel in channels:
        await channel.open()
    return (*channels, closed)


async def test_messages_come_in_order_with_their_arrays():
    received: asyncio.Queue = asyncio.Queue()
    one, other, closed = await open_channels(print, lambda name, arguments: received.put_nowait((name, *arguments)))
    # Small ones stay in the frame, large ones go through the ring again and again, and one is larger than the ring.
    sizes = [1, 1000, 5000, 3 * 1024**2, 7, 20 * 1024**2, *[5 * 1024**2 - 1] * 12, 100]
    for number, size in enumerate(sizes):
        one.send("array", number, np.full(size, number % 251, np.uint8))
        if number % 2:
            one.flush()
    for number, size in enumerate(sizes):
        name, got, array = await asyncio.wait_for(received.get(), 60)
        assert (name, got, array.shape) == ("array", number, (size,))
        assert (array == number % 251).all()
    one.close()
    while len(closed) < 2:
        await asyncio.sleep(0.01)
    assert sorted(closed) == ["one", "other"]
    other.send("late")  # nobody is there, which is no error


async def test_an_error_keeps_what_it_says():
    received: asyncio.Queue = asyncio.Queue()
    one, other, _ = await open_channels(print, lambda _, arguments: received.put_nowait(arguments[0]))
    errors: list[RequestError] = [invalid("a.b", "REASON", "is wrong"), internal(message="x")]
    errors[1].reference = "1234"
    for error in errors:
        one.send("error", error)
        assert vars(await asyncio.wait_for(received.get(), 30)) == vars(error)
    one.close()
    other.close()


async def test_a_fault_of_one_message_does_not_stop_the_next():
    received: asyncio.Queue = asyncio.Queue()

    def receive(name, arguments):
        if name == "bad":
            raise ValueError
        received.put_nowait(arguments)

    one, other, _ = await open_channels(print, receive)
    one.send("bad")
    one.send("good", 1)
    assert await asyncio.wait_for(received.get(), 30) == (1,)
    one.close()
    other.close()


async def test_a_closed_channel_leaves_no_descriptor():
    await asyncio.sleep(0)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        one, _, closed = await open_channels(print, print)
        one.close()
        while len(closed) < 2:
            await asyncio.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_ring_takes_nothing_until_it_is_read():
    file = make_ring(1 << 14)
    writer, reader = RingWriter(file), RingReader(file)
    os.close(file)
    places = []
    while (place := writer.write(memoryview(bytes([len(places)]) * 5000))) is not None:
        places.append(place)
    assert len(places) == 3
    for number, place in enumerate(places):
        assert reader.read(place, 5000) == bytes([number]) * 5000
    assert writer.write(memoryview(b"x" * 5000)) is None  # the writer has not heard of it
    writer.free(reader.report() or 0)
    place = writer.write(memoryview(b"y" * 5000))
    assert place is not None
    assert reader.read(place, 5000) == b"y" * 5000
