"""A client that writes HTTP/2 frames itself. Unlike gRPC libraries it can take nothing, or send half a message."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from types import TracebackType

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_CANCEL = 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW = 4


class RawConnection:
    """A connection that takes no more than `window` bytes of each stream."""

    def __init__(self, address: str, window: int = 0) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._next_stream = 1
        self._send(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW, window), before=_PREFACE)

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, message: bytes, *, of: int | None = None, timeout: str = "") -> int:
        """Begins a call, and returns its stream.

        Args:
            method: The path of the method.
            message: The message, or its beginning.
            of: The length of the whole message in bytes, if `message` is its beginning.
            timeout: The value of the header grpc-timeout, such as "10S".
        """
        stream = self.begin(method, timeout=timeout)
        self.send_message(stream, message, of=of, is_last=of is None)
        return stream

    def begin(self, method: str, *, timeout: str = "", metadata: Iterable[tuple[str, str]] = ()) -> int:
        """Sends the headers of a call, and returns its stream. Each character of `metadata` is sent as one byte."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *([("grpc-timeout", timeout)] if timeout else []),
            *metadata,
        ]
        block = b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)
        self._send(_HEADERS, _END_HEADERS, stream, block)
        return stream

    def send_message(self, stream: int, message: bytes, *, of: int | None = None, is_last: bool = False) -> None:
        """Sends a message, or its beginning, where `of` is the length of the whole message."""
        framed = struct.pack(">BI", 0, len(message) if of is None else of) + message
        while len(framed) > 16384:
            self._send(_DATA, 0, stream, framed[:16384])
            framed = framed[16384:]
        self._send(_DATA, _END_STREAM if is_last else 0, stream, framed)

    def end(self, stream: int) -> None:
        """Closes the client's side of a stream."""
        self._send(_DATA, _END_STREAM, stream, b"")

    def reset(self, stream: int, code: int = _CANCEL) -> None:
        """Resets a stream, by default with CANCEL."""
        self._send(_RESET, 0, stream, struct.pack(">I", code))

    def kill(self) -> None:
        """Closes the connection as the system does for a process that was killed while data waited: by a TCP reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def open_window(self, stream: int, size: int) -> None:
        """Lets the server send `size` more bytes of a stream."""
        self._send(_WINDOW, 0, stream, struct.pack(">I", size))
        self._send(_WINDOW, 0, 0, struct.pack(">I", size))

    def ping(self) -> None:
        """Asks for a sign of life."""
        self._send(_PING, 0, 0, b"8 bytes.")

    def until_refused(self) -> int:
        """Receives frames until the server resets a stream or says goodbye. Returns the code of HTTP/2's error."""
        while True:
            kind, _, _, payload = self._read_frame()
            if kind in (_RESET, _GOAWAY):
                return int.from_bytes(payload[:4] if kind == _RESET else payload[4:8], "big")

    def frames_until_closed(self, stream: int) -> bytes:
        """Receives the frames of a stream until the server ends it. Returns their payloads; headers are not decoded."""
        received = b""
        while True:
            kind, flags, on, payload = self._read_frame()
            if on == stream:
                received += payload
                if kind == _RESET or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                    return received

    def _read_frame(self) -> tuple[int, int, int, bytes]:
        """Receives a frame: its kind, flags, stream and payload. Answers what must be answered."""
        length, kind, flags, on = struct.unpack(">IBBI", b"\x00" + self._read(9))
        payload = self._read(length)
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            self._send(kind, _ACK, 0, payload if kind == _PING else b"")
        return kind, flags, on, payload

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            if not more:
                raise ConnectionError("the server has closed the connection")
            data += more
        return data

    def _send(self, kind: int, flags: int, stream: int, payload: bytes, before: bytes = b"") -> None:
        header = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
        self._socket.sendall(before + header + payload)


def _string(text: str) -> bytes:
    """Encodes a string, one byte for each character, for HPACK without a Huffman code."""
    data = text.encode("latin-1")
    assert len(data) < 127
    return bytes([len(data)]) + data
