"""HTTP/2 as far as a client that repeats one kind of request needs it: frames, and header blocks without a table.

Pure. Frames: RFC 9113, 4 and 6. Header blocks: RFC 7541; we announce a dynamic table of 0 bytes and use none ourselves,
so that equal headers are equal bytes, whenever they come.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: Of a frame: length (its upper and its lower part), type, flags, stream.
FRAME = struct.Struct(">BHBBI")
FRAME_BYTES = 9
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 3, 4, 5
WINDOW_MAX = 2**31 - 1
WINDOW_DEFAULT = 2**16 - 1
FRAME_DEFAULT = 2**14
CANCEL = 8

_SETTING = struct.Struct(">HI")
_NUMBER = struct.Struct(">I")
#: Entries of the static table that carry a value worth knowing (RFC 7541, appendix A).
_STATIC = {8: "200", 9: "204", 10: "206", 11: "304", 12: "400", 13: "404", 14: "500"}
STATUS = ":status"
#: Bits of each symbol's Huffman code, 0 to 255 and the end, as chr(48 + bits) (RFC 7541, appendix B). Codes of one
#: length are consecutive numbers in the order of their symbols.
_BITS = (
    "=GLLLLLLLHNLLNLLLLLLLLNLLLLLLLLL6::<=68;::8;8666555666666678?6<:=67777777777777777777777878=C=>6?56565666577666567655"
    "677777?;>=LDFDDFFFGFGGGGGHGHHFGHGGGGEFGFGGHFEDFFGGEGFFHEFGGEEFEGFGGDFFFGFFGJJDCFGFIJJJKKJHICEJKKJKHEEJJLKKKDHDEFEEGFFIIH"
    "HJGJKJJKKKKKLKKKKKJN"
)


class Broken(Exception):
    """Bytes that are no HTTP/2 this client can read; the connection cannot be used again."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def settings(wanted: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in wanted.items()))


def read_settings(payload: bytes) -> dict[int, int]:
    if len(payload) % _SETTING.size:
        raise Broken("settings of a broken length")
    return dict(_SETTING.iter_unpack(payload))


def window_update(stream: int, more: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(more))


def number(payload: bytes) -> int:
    """The 31-bit number that a WINDOW_UPDATE, a RST_STREAM or a GOAWAY begins with."""
    if len(payload) < _NUMBER.size:
        raise Broken("a frame is too short")
    return int(_NUMBER.unpack_from(payload)[0]) & WINDOW_MAX


def unpadded(flags: int, payload: bytes) -> bytes:
    """What a DATA or HEADERS frame carries, without its padding and its priority."""
    start, stop = 0, len(payload)
    if flags & PADDED:
        start, stop = 1, stop - payload[0] if payload else -1
    start += 5 if flags & PRIORITY else 0
    if start > stop:
        raise Broken("padding longer than its frame")
    return payload[start:stop]


# ---------------------------------------------------------------------------- header blocks


def write_headers(headers: Iterable[tuple[str, str]]) -> bytes:
    """A block of literals that no table keeps; the same headers give the same bytes."""
    return b"".join(b"\x10" + _string(name) + _string(value) for name, value in headers)


def _string(text: str) -> bytes:
    data = text.encode("latin-1")
    return _integer(len(data), 7) + data


def _integer(value: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    value, groups = value - most, bytearray([most])
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def read_headers(block: bytes) -> dict[str, str]:
    """Names and values of a block; a name of the static table that tells us nothing is left out."""
    reader, headers = _Reader(block), {}
    while reader.at < len(block):
        first = block[reader.at]
        if first & 0x80:  # a whole entry of the static table
            if (value := _STATIC.get(reader.integer(7))) is not None:
                headers[STATUS] = value
        elif first & 0xE0 == 0x20:  # the size of the table: 0, as we announced
            reader.integer(5)
        else:
            index = reader.integer(6 if first & 0x40 else 4)
            name = reader.string() if index == 0 else STATUS if index in _STATIC else ""
            value = reader.string()
            if name:
                headers[name] = value
    return headers


class _Reader:
    """A place in a header block."""

    def __init__(self, block: bytes) -> None:
        self._block, self.at = block, 0

    def integer(self, bits: int) -> int:
        value = self._byte() & ((1 << bits) - 1)
        if value == (1 << bits) - 1:
            for shift in range(0, 29, 7):
                byte = self._byte()
                value += (byte & 127) << shift
                if not byte & 128:
                    break
            else:
                raise Broken("a number too large in a header block")
        return value

    def string(self) -> str:
        huffman = self.at < len(self._block) and self._block[self.at] & 0x80
        size = self.integer(7)
        data = self._block[self.at : self.at + size]
        if len(data) < size:
            raise Broken("a header block is cut off")
        self.at += size
        return (_unpacked(data) if huffman else data).decode("latin-1")

    def _byte(self) -> int:
        if self.at >= len(self._block):
            raise Broken("a header block is cut off")
        self.at += 1
        return self._block[self.at - 1]


def _codes() -> dict[tuple[int, int], int]:
    """(bits, code) -> symbol."""
    codes, code, before = {}, 0, 0
    for bits, symbol in sorted((ord(c) - 48, symbol) for symbol, c in enumerate(_BITS)):
        code <<= bits - before
        codes[bits, code] = symbol
        code, before = code + 1, bits
    return codes


_SYMBOLS = _codes()


def _unpacked(data: bytes) -> bytes:
    """Huffman-coded text as it was; what is left of the last byte is padding."""
    text, code, bits = bytearray(), 0, 0
    for byte in data:
        for shift in range(7, -1, -1):
            code, bits = code << 1 | byte >> shift & 1, bits + 1
            if (symbol := _SYMBOLS.get((bits, code))) is not None:
                if symbol == 256:
                    raise Broken("the end of the text within it")
                text.append(symbol)
                code = bits = 0
    return bytes(text)
