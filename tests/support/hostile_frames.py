"""HTTP/2 connections that send valid, mutated and senseless frames, and read what the server says to them."""

from __future__ import annotations

import base64
import contextlib
import random
import re
import socket
import struct
import urllib.parse
from collections import Counter
from collections.abc import Sequence

import grpc
import hpack
from drawn_frames import FrameDrawer
from error_details import find_problem
from hyperframe import exceptions, frame

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# What gRPC's core says, most often with INTERNAL, where a connection or a call breaks a rule of HTTP/2 or gRPC.
_WORDS_OF_GRPC = (
    "Failed parsing HTTP/2",
    "Compression bit set but no encoding configured",
    "Decompression failed",
    "Metadata keys cannot be zero length",
    "Illegal header",
    "Error parsing",
)


class HostileConnection:
    """One connection. What the server answers is checked as far as it is HTTP/2 and gRPC."""

    def __init__(self, address: str, chance: random.Random, calls: Sequence[tuple[str, bytes]]) -> None:
        """`calls` are paths of methods, and the bytes of requests, valid or not."""
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=30)
        self._chance = chance
        self._drawer = FrameDrawer(chance, calls)
        self._decoder = hpack.Decoder()
        self._received = b""
        self._block: bytes | None = None  # header blocks that the server continues
        self.num_frames = 0
        self.answers: Counter[str] = Counter()

    def run(self, count: int) -> None:
        """Sends about `count` frames at most. Raises AssertionError for a bad answer."""
        with contextlib.closing(self._socket), contextlib.suppress(ConnectionError):
            is_valid = self._chance.random() < 0.97
            self._socket.sendall(_PREFACE if is_valid else self._chance.randbytes(24))
            self._socket.sendall(self._drawer.settings({}))
            while self.num_frames < count:
                data, num_frames = self._drawer.draw()
                self._socket.sendall(data)
                self.num_frames += num_frames
                if self._chance.random() < 0.3:
                    self._receive(wait=0.0)
            self._receive(wait=0.02)
            if self._chance.random() < 0.3:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _receive(self, wait: float) -> None:
        """Reads what has come, or comes within `wait` seconds."""
        self._socket.settimeout(wait)
        try:
            while True:
                data = self._socket.recv(65_536)
                if not data:
                    raise ConnectionError
                self._received += data
        except (BlockingIOError, TimeoutError):
            pass
        finally:
            self._socket.settimeout(30)
            self._take_frames()

    def _take_frames(self) -> None:
        while len(self._received) >= 9:
            try:
                got, length = frame.Frame.parse_frame_header(memoryview(self._received[:9]))
            except exceptions.HyperframeError:
                raise AssertionError(f"not a frame: {self._received[:40]!r}") from None
            if len(self._received) < 9 + length:
                return
            got.parse_body(memoryview(self._received[9 : 9 + length]))
            self._received = self._received[9 + length :]
            self._take(got)

    def _take(self, got: frame.Frame) -> None:
        if isinstance(got, (frame.HeadersFrame, frame.ContinuationFrame)):
            self._block = (self._block or b"") + got.data
            if "END_HEADERS" in got.flags:
                self._check(self._decoder.decode(self._block, raw=True))
                self._block = None
        elif isinstance(got, (frame.GoAwayFrame, frame.RstStreamFrame)):
            self.answers[type(got).__name__] += 1
        elif isinstance(got, frame.SettingsFrame) and "ACK" not in got.flags:
            self._socket.sendall(frame.SettingsFrame(0, flags=["ACK"]).serialize())

    def _check(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        """Checks the status of a call."""
        fields = {bytes(name): bytes(value) for name, value in raw}
        if b"grpc-status" not in fields:
            return
        code = _CODES[int(fields[b"grpc-status"])]
        message = urllib.parse.unquote(fields.get(b"grpc-message", b"").decode("latin-1"))
        if message.startswith(_WORDS_OF_GRPC):  # with numbers from the frames
            code, message = grpc.StatusCode.UNAVAILABLE, re.sub("0x[0-9a-f]+", "", message)
        details = fields.get(b"grpc-status-details-bin", b"")
        problem = find_problem(code, message, base64.b64decode(details + b"=" * (-len(details) % 4)))
        assert not problem, problem
        self.answers[code.name] += 1
