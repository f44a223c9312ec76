"""What the bytes of an HTTP/1.1 answer say: is it whole, and is it a good answer to the request?

Pure: no socket, no clock, no load generator. Every answer is judged, most of them by one comparison with the last
good one, whose head and JSON head it repeats byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brim.access import Redact
from brim.records import Status, Tensor
from loadtest.senders.promise import unlike

HEAD_END = b"\r\n\r\n"
HEAD_MAX_BYTES = 64 * 2**10
BODY_MAX_BYTES = 2**30  # an announced length above this is taken for garbage, not waited for
TEXT_MAX = 200


class Garbage(Exception):
    """Bytes that are no HTTP/1.1 answer this sender can read; the connection cannot be used again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Status line and headers of an answer."""

    status: int
    head_bytes: int
    body_bytes: int
    json_bytes: int | None  # None: the body is JSON alone
    close: bool

    @property
    def total(self) -> int:
        return self.head_bytes + self.body_bytes


def read_head(data: bytes | bytearray) -> Head | None:
    """The head at the beginning of `data`, or None while it is incomplete; Garbage if it cannot become one."""
    if not data.startswith(b"HTTP/1.1 "[: len(data)]):
        raise Garbage("not HTTP/1.1")
    end = data.find(HEAD_END)
    if end < 0:
        if len(data) > HEAD_MAX_BYTES:
            raise Garbage(f"more than {HEAD_MAX_BYTES} bytes of headers")
        return None
    line, *lines = bytes(data[:end]).split(b"\r\n")
    status = line[9:12]
    if not status.isdigit() or len(status) != 3:
        raise Garbage("no status in the first line")
    headers = _headers(lines)
    if b"transfer-encoding" in headers:
        raise Garbage("transfer-encoding instead of a content length")
    body_bytes = _number(headers, b"content-length")
    if body_bytes is None or body_bytes > BODY_MAX_BYTES:
        raise Garbage("no content length" if body_bytes is None else f"a content length of {body_bytes}")
    return Head(
        status=int(status),
        head_bytes=end + len(HEAD_END),
        body_bytes=body_bytes,
        json_bytes=_number(headers, b"inference-header-content-length"),
        close=headers.get(b"connection", b"").lower() == b"close",
    )


def _headers(lines: Sequence[bytes]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip()
        if not colon or headers.setdefault(name, value) != value:
            raise Garbage("a broken or contradictory header")
    return headers


def _number(headers: Mapping[bytes, bytes], name: bytes) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 15:
        raise Garbage(f"{name.decode()} is no number")
    return int(text)


def clean(text: str) -> str:
    """A foreign text in one short line without control characters, fit for a terminal and a JSON file."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:TEXT_MAX]


def error_text(status: int, body: bytes, redact: Redact = str) -> str:
    """The server's own words in a body that is no inference answer, with the status before them."""
    text = body[:HEAD_MAX_BYTES].decode("utf-8", "replace")
    try:
        plain = json.loads(body)
        text = str(plain["error"]) if isinstance(plain, dict) and "error" in plain else text
    except (ValueError, RecursionError):
        pass
    return clean(f"HTTP {status}: {redact(text)[: 16 * TEXT_MAX]}")  # first redacted: half a secret is not found


class Judge:
    """Holds answers against the outputs that the model promised."""

    def __init__(self, outputs: Sequence[Tensor], redact: Redact = str) -> None:
        """`redact` takes out of the server's words what must not be kept."""
        self._outputs, self._redact = {t.name: t for t in outputs}, redact
        #: Head and JSON head of the last good answer with its whole length: an answer of that length that begins
        #: with them is good too.
        self.good_prefix, self.good_total = b"\0", -1  # nothing begins so yet

    def verdict(self, head: Head, data: bytes | bytearray) -> tuple[Status, str]:
        """How the request of this whole answer ended, and why if not well."""
        body = bytes(data[head.head_bytes : head.total])
        if head.status == 503:
            return Status.REJECTED, error_text(503, body, self._redact)
        if 300 <= head.status < 400:
            return Status.FAILED, f"HTTP {head.status}: redirects are not followed"
        if head.status != 200:
            return Status.FAILED, error_text(head.status, body, self._redact)
        wrong = self._wrong(head, body)
        if wrong:
            return Status.FAILED, clean(f"protocol: {self._redact(wrong)}")
        if not head.close:  # whoever repeats such a head must be read again, for its connection to be dropped
            self.good_prefix = bytes(data[: head.head_bytes + (head.json_bytes or 0)])
            self.good_total = head.total
        return Status.OK, ""

    def _wrong(self, head: Head, body: bytes) -> str:
        if head.json_bytes is None:
            return f"status 200 without binary outputs: {error_text(200, body, self._redact)}"
        try:
            plain: Any = json.loads(body[: head.json_bytes])
            outputs = {entry["name"]: entry for entry in plain["outputs"]}
            missing = sorted(self._outputs.keys() - outputs.keys())
            if missing:
                return f"output {missing[0]} is missing"
            sizes = [self._output_bytes(entry) for entry in outputs.values()]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            return str(error) if isinstance(error, _Unlike) else "the JSON head is broken"
        if sum(sizes) != head.body_bytes - head.json_bytes:
            return f"{head.body_bytes - head.json_bytes} bytes of outputs, {sum(sizes)} announced"
        return ""

    def _output_bytes(self, entry: Mapping[str, Any]) -> int:
        """The binary length of one output, after its name, dtype, shape and length were held against the promise."""
        size = int(entry["parameters"]["binary_data_size"])
        if wrong := unlike(self._outputs, entry["name"], entry["datatype"], entry["shape"], size):
            raise _Unlike(wrong)
        return size


class _Unlike(ValueError):
    """An output that is not what the model promised."""
