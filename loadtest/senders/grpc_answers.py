"""What a gRPC answer says: is it a good answer to the request, and if there is none, what kind of failure is that?

Pure: no channel, no clock. Every answer is judged, most of them by one comparison with the last good one, which they
repeat but for the outputs' bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from brim.access import Redact
from brim.records import Status, Tensor
from loadtest import grpc_requests
from loadtest.senders.answers import clean
from loadtest.senders.promise import unlike

#: Triton's words for a request that its queue turned away; gRPC has words of its own for a server out of reach.
_TURNED_AWAY = ("exceeds maximum queue size", "request timeout expired")
_RAW_OUTPUT = b"\x32"  # the key of ModelInferResponse.raw_output_contents: field 6, a length and bytes


class GrpcJudge:
    """Holds answers against the outputs that the model promised."""

    def __init__(self, outputs: Sequence[Tensor], redact: Redact = str) -> None:
        """`redact` takes out of the server's words what must not be kept."""
        self._outputs, self._redact = {t.name: t for t in outputs}, redact
        self._length = -1  # of the last good answer
        #: All of it but the outputs' bytes, each piece with its place: an answer of that length with the same
        #: pieces is good too.
        self._pieces: tuple[tuple[int, bytes], ...] = ()

    def verdict(self, answer: bytes) -> tuple[Status, str]:
        """How the request of this answer ended, and why if not well."""
        if len(answer) == self._length:
            for at, piece in self._pieces:
                if not answer.startswith(piece, at):
                    break
            else:
                return Status.OK, ""
        try:
            wrong = self._wrong(answer)
        except ValueError as error:
            wrong = str(error)
        return (Status.FAILED, clean(f"protocol: {self._redact(wrong)}")) if wrong else (Status.OK, "")

    def _wrong(self, answer: bytes) -> str:
        message = grpc_requests.parsed(answer)
        outputs, raw = message.outputs, message.raw_output_contents
        if len(raw) != len(outputs):
            return f"{len(raw)} outputs in raw bytes, {len(outputs)} announced"
        missing = sorted(self._outputs.keys() - {entry.name for entry in outputs})
        if missing:
            return f"output {missing[0]} is missing"
        for entry, data in zip(outputs, raw, strict=True):
            if wrong := unlike(self._outputs, entry.name, entry.datatype, entry.shape, len(data)):
                return wrong
        pieces = tuple(_pieces(answer, raw))
        if pieces:
            self._length, self._pieces = len(answer), pieces
        return ""


def _pieces(answer: bytes, raw: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """What stands before and between the outputs' bytes, which end the answer; nothing if they stand elsewhere."""
    keys = [_RAW_OUTPUT + _varint(len(data)) for data in raw]
    start = len(answer) - sum(map(len, keys)) - sum(map(len, raw))
    if b"".join(key + data for key, data in zip(keys, raw, strict=True)) != answer[start:]:
        return
    yield 0, answer[:start]
    for key, data in zip(keys, raw, strict=True):
        yield start, key
        start += len(key) + len(data)


def _varint(number: int) -> bytes:
    """Protobuf's variable-length integer."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def failure(code: str, details: str, timeout_s: float, redact: Redact) -> tuple[Status, str]:
    """What a call without an answer counts as, in the server's words; `code` is gRPC's name for it."""
    if code == "DEADLINE_EXCEEDED":
        return Status.TIMED_OUT, f"no answer within {timeout_s:g} s"
    rejected = code == "UNAVAILABLE" and any(words in details.lower() for words in _TURNED_AWAY)
    return Status.REJECTED if rejected else Status.FAILED, clean(redact(f"{code}: {details}"))
