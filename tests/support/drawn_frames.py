"""HTTP/2 frames for a server's connection: calls, attacks of many kinds, and mutants."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import hpack
from hyperframe import frame

_MOST = 2**31 - 1
_HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
# Fields that a request has no use for, or in a form that no client sends.
_ODD_FIELDS = [
    ("grpc-timeout", "99999999999H"),
    ("grpc-timeout", "-1S"),
    ("grpc-timeout", "1n"),
    ("grpc-encoding", "gzip"),
    ("grpc-encoding", "no-such"),
    ("grpc-accept-encoding", "\xff,,,"),
    ("content-type", "text/html"),
    ("content-type", "application/grpc+json"),
    ("content-length", "-5"),
    ("x-bin", "no base64 !!"),
    ("X-Upper", "case"),
    ("authorization", "Bearer \xe4"),
    ("traceparent", "00-" + "z" * 32 + "-" + "0" * 16 + "-01"),
    ("connection", "close"),
    ("transfer-encoding", "chunked"),
    ("te", "gzip"),
    ("cookie", "a=b"),
    (":path", "/"),
    (":unknown", "x"),
    ("", "empty"),
    ("x", "line\r\nbreak"),
    ("x", "y" * 4000),
    ("x", "y" * 40_000),
]


class FrameDrawer:
    """Draws the frames of one connection."""

    def __init__(self, chance: random.Random, calls: Sequence[tuple[str, bytes]]) -> None:
        """`calls` are paths of methods, and the bytes of requests, valid or not."""
        self._chance = chance
        self._calls = calls
        self._encoder = hpack.Encoder()
        self._next_stream = 1
        # Few kinds of attacks at a time, and few mutants: most of them end the connection.
        self._attacks = [FrameDrawer._call] * 6 + chance.sample(_ATTACKS, 2)
        self._share_of_mutants = chance.choice((0.0, 0.01, 0.1))

    def draw(self) -> tuple[bytes, int]:
        """Returns the next frames, and how many they are. A few of them are mutants."""
        data = self._chance.choice(self._attacks)(self)
        count = count_frames(data)
        return (self.mutate(data) if self._chance.random() < self._share_of_mutants else data), count

    def mutate(self, data: bytes) -> bytes:
        mutant = bytearray(data)
        for _ in range(self._chance.choice((1, 1, 3))):
            # Most often within the header of the first frame: its length, type, flags and stream.
            place = self._chance.randrange(min(9, len(mutant)) if self._chance.random() < 0.6 else len(mutant))
            mutant[place] = self._chance.choice((0, 1, 4, 5, 8, 9, 127, 128, 255, self._chance.randrange(256)))
        return bytes(mutant[: self._chance.randrange(len(mutant)) + 1] if self._chance.random() < 0.1 else mutant)

    def _stream(self) -> int:
        """A stream: an open one as a rule, or one that is closed, idle, of the server, or the connection."""
        if self._chance.random() < 0.8 and self._next_stream > 1:
            return max(1, self._next_stream - 2 * self._chance.randrange(1, 4))
        return self._chance.choice((0, 1, 2, self._next_stream, self._next_stream + 100, _MOST))

    def _block_of(self, path: str) -> bytes:
        fields = [*_HEADERS, (":path", path)]
        if self._chance.random() < 0.3:
            fields.append(self._chance.choice(_ODD_FIELDS))
        if self._chance.random() < 0.1:
            fields.remove(self._chance.choice(fields))
        if self._chance.random() < 0.1:
            self._chance.shuffle(fields)
        return self._encoder.encode([(name, value.encode("latin-1")) for name, value in fields])

    def _call(self) -> bytes:
        """A call with a message: the whole message, half of it, several, or one whose length is wrong."""
        path, message = self._chance.choice(self._calls)
        if self._chance.random() < 0.05:
            path = self._chance.choice(("", "*", "/x", path + "/", path.upper(), path[:-1] + "\xe4", "/" + "y" * 9000))
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        headers = frame.HeadersFrame(stream, self._block_of(path)[:16_384], flags=["END_HEADERS"])
        if self._chance.random() < 0.1:
            headers.flags.add("END_STREAM")
        length = self._chance.choice((len(message), len(message), len(message), len(message) + 3, 2**32 - 1, 0))
        flag = self._chance.choice((0, 0, 0, 0, 1, 255))
        body = struct.pack(">BI", flag, length) + message
        parts = [body[begin : begin + 16_384] for begin in range(0, len(body), 16_384)]
        frames: list[frame.Frame] = [headers, *(frame.DataFrame(stream, part) for part in parts)]
        if self._chance.random() < 0.7:
            frames[-1].flags.add("END_STREAM")
        return b"".join(each.serialize() for each in frames)

    def _rapid_reset(self) -> bytes:
        """Calls that are reset at once (CVE-2023-44487)."""
        frames = []
        for _ in range(self._chance.choice((1, 5, 30))):
            path, _ = self._chance.choice(self._calls)
            stream, self._next_stream = self._next_stream, self._next_stream + 2
            frames.append(frame.HeadersFrame(stream, self._encoder.encode([*_HEADERS, (":path", path)])))
            frames[-1].flags.add("END_HEADERS")
            frames.append(frame.RstStreamFrame(stream, self._chance.choice((0, 8, 2**32 - 1))))
        return b"".join(each.serialize() for each in frames)

    def _continuations(self) -> bytes:
        """A header block that goes on and on (CVE-2024-27316)."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        field = b"\x00\x01x" + bytes([100]) + b"y" * 100
        frames: list[frame.Frame] = [frame.HeadersFrame(stream, field)]
        frames += [frame.ContinuationFrame(stream, field * self._chance.choice((0, 1, 80))) for _ in range(20)]
        if self._chance.random() < 0.5:
            frames[-1].flags.add("END_HEADERS")
        return b"".join(each.serialize() for each in frames)

    def _bad_block(self) -> bytes:
        """A header block that does not decode, or that decodes to very much."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        block = self._chance.choice(
            (
                self._chance.randbytes(self._chance.randrange(200)),
                b"\x3f\xff\xff\xff\xff\xff\xff\xff\x7f",  # a table of very many bytes
                b"\x00\x7f\xff\xff\xff\x0fx",  # a name of very many bytes
                b"\xff\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",  # an index of very many digits
                b"\x40\x01a" + bytes([120]) + b"b" * 120 + b"\xbe" * 4000,  # a field that is named 4,000 times
                b"\x00\x81\xff\x81\xff",  # Huffman codes that end within a letter
            )
        )
        return frame.HeadersFrame(stream, block, flags=["END_HEADERS"]).serialize()

    def settings(self, settings: dict[int, int] | None = None) -> bytes:
        if settings is None:
            numbers = (0, 1, 2, 3, 4, 5, 6, 7, 8, 0xFE03, 0xFFFF)
            values = (0, 1, 100, 16_383, 16_384, 65_535, 2**24, _MOST, _MOST + 1, 2**32 - 1)
            settings = {self._chance.choice(numbers): self._chance.choice(values) for _ in range(3)}
        return frame.SettingsFrame(0, settings).serialize() * self._chance.choice((1, 1, 1, 30))

    def _ping(self) -> bytes:
        flags = self._chance.choice(([], ["ACK"]))
        return frame.PingFrame(0, self._chance.randbytes(8), flags=flags).serialize() * self._chance.choice((1, 1, 40))

    def _window(self) -> bytes:
        update = struct.pack(">I", self._chance.choice((0, 1, 65_535, _MOST, 2**32 - 1)))
        return self._raw(8, 0, self._stream(), update)

    def _reset(self) -> bytes:
        return self._raw(3, 0, self._stream(), struct.pack(">I", self._chance.choice((0, 1, 8, 0xFF))))

    def _data(self) -> bytes:
        data = self._chance.choice((b"", b"\0", b"\0" * 4, self._chance.randbytes(16_384), self._chance.randbytes(50)))
        flags = self._chance.choice((0, 1, 8, 9))  # with END_STREAM, with padding
        return self._raw(0, flags, self._stream(), data) * self._chance.choice((1, 1, 10))

    def _other(self) -> bytes:
        """Any frame at all: priorities, pushes, ends of the connection, types that there are not."""
        kind, flags = self._chance.choice((2, 5, 7, 9, 10, 11, 12, 16, 200)), self._chance.randrange(256)
        if kind == 7 and self._chance.random() < 0.8:  # GOAWAY ends too many connections
            kind = 2
        return self._raw(kind, flags, self._stream(), self._chance.randbytes(self._chance.choice((0, 4, 5, 8, 60))))

    def _raw(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


_ATTACKS = [
    FrameDrawer._rapid_reset,
    FrameDrawer._continuations,
    FrameDrawer._bad_block,
    FrameDrawer.settings,
    FrameDrawer._ping,
    FrameDrawer._window,
    FrameDrawer._reset,
    FrameDrawer._data,
    FrameDrawer._other,
]


def count_frames(data: bytes) -> int:
    """How many frames the bytes hold."""
    place = number = 0
    while place + 9 <= len(data):
        place += 9 + int.from_bytes(data[place : place + 3], "big")
        number += 1
    return number
