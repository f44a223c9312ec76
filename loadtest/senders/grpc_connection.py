"""One HTTP/2 connection on which many unary gRPC calls are in flight, each sent as prepared bytes.

grpc.aio spends six to nine times the processor time on a call: a task of its own, several objects, and a hand-over
between two event loops. Here a call is two frames, and an answer three, of which two are recognised by their bytes.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from loadtest.senders import http2
from loadtest.senders.answers import BODY_MAX_BYTES, HEAD_MAX_BYTES

PREFIX = struct.Struct(">BI")  # before each message: is it compressed, and its length
STREAMS_MAX = 2**30  # a connection's numbers for streams are then used up; odd ones only
CREDIT_BYTES = 2**30  # after so much received, the other side is told to go on
KNOWN_BLOCKS = 256  # header blocks remembered; error texts may differ without end
#: grpc-status in words (gRPC's core/doc/statuscodes).
CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_OK = ("OK", "")


class Failed(Exception):
    """A call that brought no answer: gRPC's code and the words with it."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code, self.details = code, details


class Lost(Exception):
    """The connection ended under a call."""


@dataclass(slots=True)
class Call:
    """One call in flight."""

    answer: asyncio.Future[bytes]
    stream: int = 0
    data: bytes | bytearray = b""  # of the answer; bytes as long as one frame holds it
    left: memoryview = memoryview(b"")  # of the message, waiting for the other side's windows
    window: int = 0  # of this stream

    def end(self, why: Exception | None) -> None:
        """The answer is there, or what there is instead of one; who waited for it may be gone."""
        self.left = memoryview(b"")
        if self.answer.done():
            return
        if why is None:
            self.answer.set_result(bytes(self.data[PREFIX.size :]))
        else:
            self.answer.set_exception(why)


def request_block(path: str, authority: str, scheme: str, timeout_s: float, *more: tuple[str, str]) -> bytes:
    """The header block of every call of a load."""
    return http2.write_headers([
        (":method", "POST"), (":scheme", scheme), (":path", path), (":authority", authority), ("te", "trailers"),
        ("content-type", "application/grpc"), ("user-agent", "brim"),
        ("grpc-timeout", f"{max(1, round(timeout_s * 1000))}m"), *more,
    ])  # fmt: skip


def framed(message: bytes, *, compressed: bool = False) -> bytes:
    """A message as it stands in the DATA frames of a call."""
    return PREFIX.pack(compressed, len(message)) + message


class GrpcConnection(asyncio.Protocol):
    """Unary calls over one connection; once it is lost, another must be opened."""

    def __init__(self) -> None:
        self.usable = True
        self.streams_max = http2.WINDOW_MAX  # at once, as the other side wants it
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, Call] = {}
        self._next = 1
        self._rest = b""
        self._out: list[bytes] = []
        self._flushing = False
        self._window, self._stream_window = http2.WINDOW_DEFAULT, http2.WINDOW_DEFAULT  # what we may send
        self._frame_max = http2.FRAME_DEFAULT
        self._waiting: deque[Call] = deque()
        self._received = 0
        self._blocks: dict[bytes, tuple[str, str] | None] = {}
        self._partial: tuple[int, int, bytes] | None = None  # headers that CONTINUATION frames go on with

    # ---- calls

    def call(self, block: bytes, data: bytes) -> Call:
        """Send a request (from request_block and framed); its answer is awaited. Lost if the connection takes none."""
        if not self.usable:
            raise Lost("connection: it takes no more requests")
        call = Call(self._loop.create_future(), self._next, b"", memoryview(b""), self._stream_window)
        self._next += 2
        self._calls[call.stream] = call
        size = len(data)
        self.usable = self._next < STREAMS_MAX
        stream = call.stream
        self._out.append(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block))
        if size <= self._frame_max and size <= self._window and size <= call.window and not self._waiting:
            self._window -= size
            self._out.append(http2.frame(http2.DATA, http2.END_STREAM, stream, data))
        else:
            call.left = memoryview(data)
            self._waiting.append(call)
            self._send_waiting()
        self._flush_soon()
        return call

    def cancel(self, call: Call, why: Failed) -> None:
        """Give a call up, and have the other side do so."""
        if self._calls.pop(call.stream, None) is not None:
            call.end(why)
            self._out.append(http2.frame(http2.RST_STREAM, 0, call.stream, http2.CANCEL.to_bytes(4, "big")))
            self._flush_soon()
            self._close_if_done()

    def close(self) -> None:
        self.usable = False
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _close_if_done(self) -> None:
        """Nobody can use it any more, and nobody waits for it: what had it open has opened another."""
        if not self.usable and not self._calls:
            self.close()

    def _send_waiting(self) -> None:
        """As much of the waiting messages as the windows allow, the oldest first."""
        for _ in range(len(self._waiting)):
            call = self._waiting.popleft()
            while call.left and (size := min(len(call.left), self._frame_max, self._window, call.window)) > 0:
                end = http2.END_STREAM if size == len(call.left) else 0
                self._out.append(http2.frame(http2.DATA, end, call.stream, bytes(call.left[:size])))
                call.left = call.left[size:]
                self._window -= size
                call.window -= size
            if call.left:
                self._waiting.append(call)
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Once for all that is sent in this turn of the loop: a system call each would be most of the cost."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    # ---- asyncio's side

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        ours = {http2.HEADER_TABLE_SIZE: 0, http2.ENABLE_PUSH: 0, http2.INITIAL_WINDOW_SIZE: http2.WINDOW_MAX}
        more = http2.window_update(0, http2.WINDOW_MAX - http2.WINDOW_DEFAULT)
        transport.write(http2.PREFACE + http2.settings(ours) + more)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._end(f"connection: {error or 'the server closed it'}")

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        try:
            while end - at >= http2.FRAME_BYTES:
                high, low, kind, flags, stream = http2.FRAME.unpack_from(data, at)
                if (size := high << 16 | low) > http2.FRAME_DEFAULT:  # we never allowed more
                    raise http2.Broken(f"a frame of {size} bytes; does HTTP/2 answer here?")
                start = at + http2.FRAME_BYTES
                stop = start + size
                if stop > end:
                    break
                at = stop
                self._take(kind, flags, stream, data[start:stop])
        except (http2.Broken, ValueError) as error:
            self._end(f"protocol: {error}")
            self.close()
            return
        self._rest = data[at:]

    def _end(self, why: str) -> None:
        """Nothing more comes: every call in flight is lost."""
        self.usable = False
        calls, self._calls = self._calls, {}
        self._waiting.clear()
        for call in calls.values():
            call.end(Lost(why))

    # ---- frames

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._partial is not None or kind == http2.CONTINUATION:
            self._go_on(kind, flags, stream, payload)
        elif kind == http2.DATA:
            self._received += len(payload)
            if self._received >= CREDIT_BYTES:
                self._out.append(http2.window_update(0, self._received))
                self._received = 0
                self._flush_soon()
            if (call := self._calls.get(stream)) is not None:
                payload = http2.unpadded(flags, payload) if flags & http2.PADDED else payload
                if len(call.data) + len(payload) > BODY_MAX_BYTES:
                    raise http2.Broken(f"an answer of more than {BODY_MAX_BYTES} bytes")
                if not call.data:
                    call.data = payload
                else:
                    call.data = call.data if isinstance(call.data, bytearray) else bytearray(call.data)
                    call.data += payload
                if flags & http2.END_STREAM:
                    self._done(call, ("INTERNAL", "an answer without a status"))
        elif kind == http2.HEADERS:
            block = http2.unpadded(flags, payload) if flags & (http2.PADDED | http2.PRIORITY) else payload
            if flags & http2.END_HEADERS:
                self._headers(stream, flags, block)
            else:
                self._partial = stream, flags, block
        else:
            self._control(kind, flags, stream, payload)

    def _go_on(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """The next frame of an open header block, which nothing else may interrupt (RFC 9113, 6.10)."""
        if self._partial is None or kind != http2.CONTINUATION or stream != self._partial[0]:
            raise http2.Broken("a header block that is interrupted, or goes on without a beginning")
        _, flags_before, block = self._partial
        if len(block) + len(payload) > HEAD_MAX_BYTES:
            raise http2.Broken(f"more than {HEAD_MAX_BYTES} bytes of headers")
        self._partial = stream, flags_before, block + payload
        if flags & http2.END_HEADERS:
            self._partial = None
            self._headers(stream, flags_before, block + payload)

    def _headers(self, stream: int, flags: int, block: bytes) -> None:
        if block in self._blocks:
            status = self._blocks[block]
        else:
            status = _status(http2.read_headers(block))
            if len(self._blocks) >= KNOWN_BLOCKS:
                self._blocks.clear()
            self._blocks[block] = status
        call = self._calls.get(stream)
        if call is not None and flags & http2.END_STREAM:
            self._done(call, status or ("UNKNOWN", "an answer without a status"))
        elif call is not None and status is not None and status is not _OK:
            self._done(call, status)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == http2.WINDOW_UPDATE:
            more = http2.number(payload)
            if stream == 0:
                self._window += more
            elif (call := self._calls.get(stream)) is not None:
                call.window += more
            if self._waiting:
                self._send_waiting()
        elif kind == http2.PING and not flags & http2.ACK:
            self._out.append(http2.frame(http2.PING, http2.ACK, 0, payload))
            self._flush_soon()
        elif kind == http2.SETTINGS and not flags & http2.ACK:
            self._settle(http2.read_settings(payload))
        elif kind == http2.RST_STREAM:
            if (call := self._calls.get(stream)) is not None:
                self._done(call, ("UNAVAILABLE", f"the server reset the stream (error {http2.number(payload)})"))
        elif kind == http2.GOAWAY:
            self.usable = False  # what is beyond its last stream was not begun
            for call in [c for c in self._calls.values() if c.stream > http2.number(payload)]:
                self._done(call, ("UNAVAILABLE", "the server is going away"))
            self._close_if_done()

    def _settle(self, theirs: dict[int, int]) -> None:
        """The other side's wishes, which it may change at any time."""
        window = theirs.get(http2.INITIAL_WINDOW_SIZE, self._stream_window)
        for call in self._calls.values():
            call.window += window - self._stream_window
        self._stream_window = window
        self._frame_max = theirs.get(http2.MAX_FRAME_SIZE, self._frame_max)
        self.streams_max = theirs.get(http2.MAX_CONCURRENT_STREAMS, self.streams_max)
        self._out.append(http2.frame(http2.SETTINGS, http2.ACK, 0))
        self._send_waiting()

    def _done(self, call: Call, status: tuple[str, str]) -> None:
        """The call has ended with this code and these words."""
        del self._calls[call.stream]
        data = call.data
        if status is not _OK:
            call.end(Failed(*status))
        elif len(data) < PREFIX.size or data[0] or int.from_bytes(data[1:5], "big") != len(data) - PREFIX.size:
            call.end(Failed("INTERNAL", "not one whole, uncompressed message"))
        else:
            call.end(None)
        self._close_if_done()


def _status(headers: dict[str, str]) -> tuple[str, str] | None:
    """Code and words in a block of headers: None if they only begin an answer."""
    code = headers.get("grpc-status")
    if code is not None:
        words = unquote(headers.get("grpc-message", ""))
        known = code.isdigit() and len(code) <= 2 and int(code) < len(CODES)
        return _OK if code == "0" else (CODES[int(code)] if known else "UNKNOWN", words)
    status = headers.get(http2.STATUS, "")
    return None if status == "200" else ("UNKNOWN", f"HTTP status {status or 'missing'}")
