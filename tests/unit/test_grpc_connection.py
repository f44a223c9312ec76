"""HTTP/2 by the RFCs' own examples, and gRPC calls over a connection whose other side is played byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brim.errors import NotReady
from brim.records import Status
from loadtest.senders import grpc_connection, http2
from loadtest.senders.grpc_connection import Call, Failed, GrpcConnection, Lost, framed
from loadtest.senders.grpc_run import GrpcSlot, Link

BLOCK = grpc_connection.request_block("/s/M", "host:1", "http", 2.5, ("x-key", "v"))
#: What gRPC's own server sends around a message: initial headers and trailers.
BEGINS = http2.write_headers([(":status", "200"), ("content-type", "application/grpc")])
REFUSED = http2.write_headers([(":status", "200"), ("grpc-status", "14"), ("grpc-message", "a%20b")])
INTERRUPTED = "protocol: a header block that is interrupted, or goes on without a beginning"
WELL = http2.write_headers([("grpc-status", "0"), ("grpc-message", "")])

# ---------------------------------------------------------------------------- header blocks


def test_the_rfcs_header_examples_are_read() -> None:
    """RFC 7541, C.2.2, C.6.1 and C.4.1."""
    literal = bytes.fromhex("040c2f73616d706c652f70617468")  # :path: /sample/path, a name we need not know
    assert http2.read_headers(literal) == {}
    answer = bytes.fromhex(
        "4882640258 85aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3"
    )
    assert http2.read_headers(answer) == {":status": "302"}
    assert http2.read_headers(b"\x00\x01a\x8c" + bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff")) == {"a": "www.example.com"}


def test_the_rfcs_large_integer_is_a_length_of_1337() -> None:
    """RFC 7541, C.1.2: 1337 in a prefix of 5 bits is 1f 9a 0a; in one of 7 bits it is 7f ba 09."""
    block = http2.write_headers([("n", "x" * 1337)])
    assert block[3:6] == b"\x7f\xba\x09"
    assert http2.read_headers(block) == {"n": "x" * 1337}


def test_indexed_statuses_and_a_change_of_the_tables_size_are_understood() -> None:
    assert http2.read_headers(b"\x20\x88") == {":status": "200"}
    assert http2.read_headers(b"\x8d\x82") == {":status": "404"}


@given(st.binary(max_size=60))
def test_no_header_block_does_worse_than_being_refused(block: bytes) -> None:
    with contextlib.suppress(http2.Broken):
        http2.read_headers(block)


@given(st.dictionaries(st.text("abc-", min_size=1), st.text(st.characters(max_codepoint=255)), max_size=5))
def test_what_is_written_is_read(headers: dict[str, str]) -> None:
    assert http2.read_headers(http2.write_headers(headers.items())) == headers


# ---------------------------------------------------------------------------- calls


class Wire(asyncio.Transport):
    """Keeps what is written; the test plays the server."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed = bytearray(), False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of every frame so far, the preface left out."""
        data, frames = bytes(self.written.removeprefix(http2.PREFACE)), []
        while data:
            high, low, kind, flags, stream = http2.FRAME.unpack_from(data)
            end = http2.FRAME_BYTES + (high << 16 | low)
            frames.append((kind, flags, stream, data[http2.FRAME_BYTES : end]))
            data = data[end:]
        return frames

    def sent(self, kind: int) -> list[tuple[int, int, bytes]]:
        return [(flags, stream, payload) for found, flags, stream, payload in self.frames() if found == kind]


async def opened() -> tuple[GrpcConnection, Wire]:
    connection, wire = GrpcConnection(), Wire()
    connection.connection_made(wire)
    return connection, wire


def headers(stream: int, block: bytes, *, last: bool = False) -> bytes:
    return http2.frame(http2.HEADERS, http2.END_HEADERS | last, stream, block)


def in_two(stream: int, block: bytes) -> bytes:
    rest = http2.frame(http2.CONTINUATION, http2.END_HEADERS, stream, block[7:])
    return http2.frame(http2.HEADERS, 0, stream, block[:7]) + rest


def data(stream: int, payload: bytes, flags: int = 0) -> bytes:
    return http2.frame(http2.DATA, flags, stream, payload)


def well(stream: int) -> bytes:
    return headers(stream, WELL, last=True)


def answered(stream: int, message: bytes) -> bytes:
    return headers(stream, BEGINS) + b"".join(data(stream, part) for part in parts(framed(message))) + well(stream)


def parts(whole: bytes) -> list[bytes]:
    return [whole[at : at + http2.FRAME_DEFAULT] for at in range(0, len(whole), http2.FRAME_DEFAULT)]


async def outcome(call: Call) -> bytes | str:
    try:
        return await call.answer
    except (Failed, Lost) as error:
        return str(error)


def played(server: Callable[[int], bytes], *, message: bytes = b"?") -> bytes | str:
    """One call, and what the server's bytes made of it."""

    async def play() -> bytes | str:
        connection, _ = await opened()
        call = connection.call(BLOCK, framed(message))
        connection.data_received(server(call.stream))
        return await asyncio.wait_for(outcome(call), 5)

    return asyncio.run(play())


def test_a_call_is_one_frame_of_headers_and_one_of_data() -> None:
    async def play() -> None:
        connection, wire = await opened()
        connection.call(BLOCK, framed(b"hello"))
        connection.call(BLOCK, framed(b"again"))
        await asyncio.sleep(0)
        assert wire.frames()[2:] == [
            (http2.HEADERS, http2.END_HEADERS, 1, BLOCK),
            (http2.DATA, http2.END_STREAM, 1, b"\0\0\0\0\5hello"),
            (http2.HEADERS, http2.END_HEADERS, 3, BLOCK),
            (http2.DATA, http2.END_STREAM, 3, b"\0\0\0\0\5again"),
        ]

    asyncio.run(play())
    assert http2.read_headers(BLOCK)["grpc-timeout"] == "2500m"
    assert http2.read_headers(BLOCK)["x-key"] == "v"


@settings(deadline=None)  # an event loop each
@given(st.lists(st.integers(0, 400), max_size=8))
def test_wherever_the_stream_is_cut_the_answers_are_the_same(cuts: list[int]) -> None:
    async def play() -> None:
        connection, _ = await opened()
        calls = [connection.call(BLOCK, framed(b"?")) for _ in range(3)]
        said = b"".join(answered(call.stream, b"answer %d" % n) for n, call in reversed(list(enumerate(calls))))
        edges = [0, *sorted(min(cut, len(said)) for cut in cuts), len(said)]
        for a, b in zip(edges, edges[1:], strict=False):
            connection.data_received(said[a:b])
        assert [await outcome(call) for call in calls] == [b"answer 0", b"answer 1", b"answer 2"]

    asyncio.run(play())


@pytest.mark.parametrize(
    ("server", "found"),
    [
        (lambda s: answered(s, b"x" * 40000), b"x" * 40000),
        (lambda s: headers(s, REFUSED, last=True), "UNAVAILABLE: a b"),
        (lambda s: headers(s, http2.write_headers([(":status", "502")])), "UNKNOWN: HTTP status 502"),
        (lambda s: headers(s, http2.write_headers([("grpc-status", "99")]), last=True), "UNKNOWN: "),
        (lambda s: headers(s, BEGINS, last=True), "UNKNOWN: an answer without a status"),
        (lambda s: headers(s, BEGINS) + well(s), "INTERNAL: not one whole, uncompressed message"),
        (lambda s: data(s, framed(b"z", compressed=True)) + well(s), "INTERNAL: not one whole, uncompressed message"),
        (lambda s: data(s, framed(b"two") * 2) + well(s), "INTERNAL: not one whole, uncompressed message"),
        (lambda s: data(s, framed(b"x"), http2.END_STREAM), "INTERNAL: an answer without a status"),
        (lambda s: http2.frame(http2.RST_STREAM, 0, s, b"\0\0\0\2"),
         "UNAVAILABLE: the server reset the stream (error 2)"),
        (lambda s: http2.frame(http2.GOAWAY, 0, 0, bytes(8)), "UNAVAILABLE: the server is going away"),
        (lambda s: http2.frame(http2.GOAWAY, 0, 0, b"\0\0\0\1" + bytes(4)) + answered(s, b"still"), b"still"),
        (lambda s: data(s, b"\2" + framed(b"pad") + b"\0\0", http2.PADDED) + well(s), b"pad"),
        (lambda s: in_two(s, BEGINS) + data(s, framed(b"c")) + well(s), b"c"),
        (lambda s: headers(s, b"\xff\xff\xff\xff\xff\xff"), "protocol: a number too large in a header block"),
        (lambda s: data(s, b"\x09x", http2.PADDED), "protocol: padding longer than its frame"),
        (lambda s: http2.frame(http2.SETTINGS, 0, 0, b"12345"), "protocol: settings of a broken length"),
        (lambda s: answered(s + 2, b"of nobody") + answered(s, b"mine"), b"mine"),
        (lambda s: b"HTTP/1.1 400 Bad Request\r\n\r\n", "protocol: a frame of 4740180 bytes; does HTTP/2 answer here?"),
        (lambda s: data(s, bytes(2**14 + 1)), "protocol: a frame of 16385 bytes; does HTTP/2 answer here?"),
        (lambda s: in_two(s, BEGINS)[: 9 + 7] + data(s, framed(b"c")), INTERRUPTED),
        (lambda s: in_two(s, BEGINS)[: 9 + 7] + http2.frame(http2.PING, 0, 0, bytes(8)), INTERRUPTED),
        (lambda s: in_two(s, BEGINS)[: 9 + 7] + in_two(s + 2, BEGINS)[9 + 7 :], INTERRUPTED),
        (lambda s: http2.frame(http2.CONTINUATION, http2.END_HEADERS, s, BEGINS), INTERRUPTED),
        (lambda s: http2.frame(http2.HEADERS, 0, s, b"") + http2.frame(http2.CONTINUATION, 0, s, bytes(2**14)) * 5,
         "protocol: more than 65536 bytes of headers"),
    ],
)  # fmt: skip
def test_an_answer_is_what_its_frames_make_of_it(server: Callable[[int], bytes], found: bytes | str) -> None:
    assert played(server) == found


def test_a_message_goes_no_further_than_the_windows_allow_and_in_frames_of_the_size_allowed() -> None:
    async def play() -> None:
        connection, wire = await opened()
        message = bytes(range(256)) * 800  # 200 KiB
        call = connection.call(BLOCK, framed(message))
        small = connection.call(BLOCK, framed(b"behind it"))
        await asyncio.sleep(0)
        assert sum(len(data) for _, _, data in wire.sent(http2.DATA)) == http2.WINDOW_DEFAULT
        connection.data_received(http2.window_update(0, 10**6))  # the connection's, but not yet the stream's
        await asyncio.sleep(0)
        assert [data for _, stream, data in wire.sent(http2.DATA) if stream == small.stream] == [framed(b"behind it")]
        connection.data_received(http2.settings({http2.INITIAL_WINDOW_SIZE: 10**6, http2.MAX_FRAME_SIZE: 2**15}))
        await asyncio.sleep(0)
        frames = [(flags, data) for flags, stream, data in wire.sent(http2.DATA) if stream == call.stream]
        assert b"".join(data for _, data in frames) == framed(message)
        assert max(len(data) for _, data in frames[:4]) == 2**14 and max(len(data) for _, data in frames) == 2**15
        assert [flags for flags, _ in frames] == [0] * (len(frames) - 1) + [http2.END_STREAM]

    asyncio.run(play())


def test_pings_and_settings_are_acknowledged() -> None:
    async def play() -> None:
        connection, wire = await opened()
        connection.data_received(http2.frame(http2.PING, 0, 0, b"12345678") + http2.settings({3: 100}))
        connection.data_received(http2.frame(http2.PING, http2.ACK, 0, b"12345678"))
        await asyncio.sleep(0)
        assert wire.sent(http2.PING) == [(http2.ACK, 0, b"12345678")]
        assert wire.sent(http2.SETTINGS)[1:] == [(http2.ACK, 0, b"")]
        assert connection.streams_max == 100

    asyncio.run(play())


def test_a_call_that_is_given_up_is_reset_and_a_late_answer_changes_nothing() -> None:
    async def play() -> None:
        connection, wire = await opened()
        call = connection.call(BLOCK, framed(b"?"))
        connection.cancel(call, Failed("DEADLINE_EXCEEDED", ""))
        assert await outcome(call) == "DEADLINE_EXCEEDED: "
        connection.data_received(answered(call.stream, b"late"))
        connection.cancel(call, Failed("CANCELLED", ""))
        await asyncio.sleep(0)
        assert wire.sent(http2.RST_STREAM) == [(0, call.stream, b"\0\0\0\x08")]
        gone = connection.call(BLOCK, framed(b"?"))
        gone.answer.cancel()  # who waited for it is gone
        connection.data_received(answered(gone.stream, b"late, too"))

    asyncio.run(play())


def test_with_its_connection_every_call_is_lost_and_no_other_can_be_sent_on_it() -> None:
    async def play() -> None:
        connection, _ = await opened()
        calls = [connection.call(BLOCK, framed(b"?")) for _ in range(2)]
        connection.connection_lost(ConnectionResetError("reset by peer"))
        assert [await outcome(call) for call in calls] == ["connection: reset by peer"] * 2
        assert not connection.usable

    asyncio.run(play())


def test_what_was_received_is_credited_before_the_other_side_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_connection, "CREDIT_BYTES", 100)

    async def play() -> None:
        connection, wire = await opened()
        call = connection.call(BLOCK, framed(b"?"))
        connection.data_received(answered(call.stream, b"x" * 120))
        await asyncio.sleep(0)
        assert wire.sent(http2.WINDOW_UPDATE)[1:] == [(0, 0, (125).to_bytes(4, "big"))]

    asyncio.run(play())


def test_an_answer_is_held_only_up_to_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_connection, "BODY_MAX_BYTES", 40_000)
    assert played(lambda s: answered(s, b"x" * 39_995)) == b"x" * 39_995
    assert played(lambda s: answered(s, b"x" * 39_996)) == "protocol: an answer of more than 40000 bytes"


def test_a_connection_that_takes_no_more_is_closed_with_its_last_call() -> None:
    async def play(how: str) -> None:
        connection, wire = await opened()
        if how == "exhausted":
            connection._next = grpc_connection.STREAMS_MAX - 3
        first, second = (connection.call(BLOCK, framed(b"?")) for _ in range(2))
        if how == "going away":
            connection.data_received(http2.frame(http2.GOAWAY, 0, 0, second.stream.to_bytes(4, "big") + bytes(4)))
        assert not connection.usable and not wire.closed
        with pytest.raises(Lost, match="takes no more requests"):
            connection.call(BLOCK, framed(b"?"))
        ends: list[Callable[[], None]] = [
            lambda: connection.data_received(answered(first.stream, b"one")),
            lambda: connection.cancel(second, Failed("DEADLINE_EXCEEDED", "")),
        ]
        for end in ends if how == "exhausted" else reversed(ends):
            assert not wire.closed
            end()
        assert wire.closed
        assert wire.sent(http2.RST_STREAM) != []  # written before the end
        assert [await outcome(first), await outcome(second)] == [b"one", "DEADLINE_EXCEEDED: "]

    for how in ("exhausted", "going away"):
        asyncio.run(play(how))


def test_one_that_goes_away_while_nobody_waits_is_closed_at_once() -> None:
    async def play() -> None:
        connection, wire = await opened()
        connection.data_received(http2.frame(http2.GOAWAY, 0, 0, bytes(8)))
        assert wire.closed

    asyncio.run(play())


# ---------------------------------------------------------------------------- a connection that must be opened anew


class Far:
    """What a slot knows of its wire; the test decides when an attempt to connect ends, and how."""

    block, pool, redact = BLOCK, (framed(b"?"),), str

    def __init__(self, timeout_s: float) -> None:
        self.attempts: list[asyncio.Future[GrpcConnection]] = []
        self.job = SimpleNamespace(timeout_s=timeout_s, users=[], requests=[b"?"])
        self.share = SimpleNamespace(job=self.job)

    async def open_one(self) -> GrpcConnection:
        self.attempts.append(asyncio.get_running_loop().create_future())
        return await self.attempts[-1]

    def slots(self, number: int) -> list[GrpcSlot]:
        link = Link(self)  # type: ignore[arg-type]
        return [GrpcSlot(self, link) for _ in range(number)]  # type: ignore[arg-type]


def test_a_request_that_waits_for_a_connection_has_its_deadline_too() -> None:
    async def play() -> None:
        far = Far(timeout_s=0.05)
        slots = far.slots(3)
        found = await asyncio.wait_for(asyncio.gather(*(slot.exchange(0) for slot in slots)), 5)
        assert found == [(Status.TIMED_OUT, "no answer within 0.05 s")] * 3
        assert not any(slot.broken for slot in slots)
        again = asyncio.create_task(slots[0].exchange(0))
        await asyncio.sleep(0)
        connection, wire = await opened()
        slots[0].overdue = True  # the deadline's keeper was there first
        far.attempts[0].set_result(connection)
        assert await again == (Status.TIMED_OUT, "no answer within 0.05 s")
        assert wire.sent(http2.HEADERS) == []
        assert len(far.attempts) == 1  # it went on through all of that

    asyncio.run(play())


def test_one_attempt_to_connect_answers_everybody_who_waits_for_it() -> None:
    async def play() -> None:
        far = Far(timeout_s=5)
        slots = far.slots(4)
        for attempt in range(2):
            tasks = [asyncio.create_task(slot.exchange(0)) for slot in slots]
            while len(far.attempts) == attempt:
                await asyncio.sleep(0)
            far.attempts[-1].set_exception(NotReady("nobody there"))
            assert await asyncio.gather(*tasks) == [(Status.FAILED, "nobody there")] * 4
            assert all(slot.broken and slot.refusal == "nobody there" for slot in slots)
        assert len(far.attempts) == 2

    asyncio.run(play())
