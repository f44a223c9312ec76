"""What the master and the workers of a cluster say to each other: addresses, who may join, and files in chunks.

Pure: reads and writes nothing. Messages are plain data (msgpack, through Locust's own channel); no code travels.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from brim import codec
from brim.errors import InvalidRecord, UsageError
from brim.records import ROW, TargetLimit
from loadtest.cluster_clock import Clock

PROTOCOL = 1
DEFAULT_PORT = 5557  # Locust's own
CHUNK_BYTES = 256 * 2**10  # a whole number of rows; each chunk is acknowledged before the next one leaves
FILE_LIMIT_BYTES = 2**30  # of one file that travels, whoever sends it
MESSAGE_LIMIT_BYTES = 4 * 2**20  # longer messages are not even received
#: Both sides say something each second; who says nothing for so long is gone.
SILENT_S = 5.0
LOOK_S = 0.25  # how often a waiting end looks whether the other is still there


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the master listens, as the user named it."""

    host: str  # without brackets
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_place(text: str, option: str) -> Place:
    """`HOST`, `HOST:PORT` or `[IPv6]:PORT`; UsageError for anything else, an address of every network included."""
    head, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or (text.count(":") > 1 and not text.startswith("[")):
        head, port = text, str(DEFAULT_PORT)
    host = head[1:-1] if head.startswith("[") and head.endswith("]") else head
    if not host or any(c.isspace() or c in "/@[]" for c in host) or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"{option} {text!r}: write HOST:PORT, as in 127.0.0.1:{DEFAULT_PORT}")
    if host == "*" or is_every_network(host):
        raise UsageError(f"{option} {text!r} is every network of this host; name the one address that is meant")
    return Place(host=host, port=int(port))


def is_every_network(host: str) -> bool:
    """Whether it is the address of every interface; a name must be resolved first (`0` is such a name, too)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_unspecified


# ---------------------------------------------------------------------------- who joins


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """How a worker introduces itself; everything that must be equal on both sides is in here."""

    host: str
    pid: int
    token: str  # random, once per process: tells a process that comes twice from two with one host name and pid
    brim: str
    protocol: int
    row_schema: int

    @property
    def name(self) -> str:
        return f"{self.host}/{self.pid}"


def unlike(hello: Hello, own: Hello) -> str:
    """Why this worker cannot work for a master that would introduce itself as `own`; empty if it can."""
    if hello.protocol != own.protocol:
        return f"worker {hello.name} speaks cluster protocol {hello.protocol}, this is {own.protocol}"
    if hello.brim != own.brim:
        return f"worker {hello.name} runs Brim {hello.brim}, this is {own.brim}; install one version on every host"
    if hello.row_schema != own.row_schema:
        return f"worker {hello.name} writes rows of schema {hello.row_schema}, this is {own.row_schema}"
    return ""


def surplus(hello: Hello, joined: Mapping[str, Hello], expected: int) -> str:
    """Why a worker like ours is one too many; empty if its place is free. `joined` is by token."""
    if hello.token in joined:
        return f"worker {hello.name} came twice; it counts once"
    if len(joined) >= expected:
        return f"worker {hello.name} is one too many: the {expected} that were expected are here"
    return ""


def permitted(own: Mapping[str, TargetLimit], masters: Mapping[str, TargetLimit]) -> dict[str, TargetLimit]:
    """The hosts that a worker may load: those of its own user, each with the lower of the two caps."""
    allowed = {}
    for host, limit in own.items():
        caps = [x.max_rate_per_s for x in (limit, masters.get(host)) if x is not None and x.max_rate_per_s is not None]
        allowed[host] = TargetLimit(host=host, max_rate_per_s=min(caps, default=None))
    return allowed


class Silence:
    """How long the other side has said nothing while this side was there to hear it.

    On a busy machine this process itself may stand still for seconds: what was said meanwhile waits to be read, and
    such a gap between two looks is nobody's silence.
    """

    def __init__(self, now_s: float) -> None:
        self._silent_s, self._looked_s = 0.0, now_s

    def broken(self, now_s: float) -> None:
        """The other side said something."""
        self._silent_s, self._looked_s = 0.0, now_s

    def look(self, now_s: float) -> float:
        """Seconds of silence; call it about every LOOK_S."""
        self._silent_s += min(now_s - self._looked_s, 2 * LOOK_S)
        self._looked_s = now_s
        return self._silent_s


# ---------------------------------------------------------------------------- messages


def take(message: Mapping[str, Any], key: str, kind: type) -> Any:
    """A field of a message from another host; InvalidRecord if it is missing or of another kind."""
    value = message.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidRecord(f"message {message.get('kind')!r}: {key} is no {kind.__name__}")
    return value


def read_hello(message: Mapping[str, Any]) -> Hello:
    """A worker's introduction, fit to be printed; UsageError if it is none."""
    hello = codec.build(Hello, take(message, "hello", dict), where="hello")
    for text in (hello.host, hello.brim, hello.token):
        if not text.isprintable() or not 0 < len(text) <= 100:
            raise UsageError("hello: a name is empty, too long or holds control characters")
    return hello


# ---------------------------------------------------------------------------- files in chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What a file must be when all of it has arrived."""

    size: int
    sha256: str


def whole(data: bytes) -> Whole:
    return Whole(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def chunks(data: bytes, size: int = CHUNK_BYTES) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of each chunk; nothing for an empty file."""
    for offset in range(0, len(data), size):
        yield offset, data[offset : offset + size]


def whole_rows(data: bytes) -> bytes:
    """What begins at a row's edge, without a last row that was cut short; the file's header is as long as a row."""
    return data[: len(data) - len(data) % ROW.size]


class Arriving:
    """A file that arrives in chunks: in order, without gaps, within its bound, and as it was sent."""

    def __init__(self, what: str, limit: int = FILE_LIMIT_BYTES) -> None:
        self._what, self._limit, self._digest = what, limit, hashlib.sha256()
        self.size = 0

    def add(self, offset: int, data: bytes) -> None:
        """Take the next chunk; InvalidRecord if it is not the next, or one too many."""
        if offset != self.size or not data:
            raise InvalidRecord(f"{self._what}: bytes {offset} to {offset + len(data)} came after byte {self.size}")
        if offset + len(data) > self._limit:
            raise InvalidRecord(f"{self._what}: more than {self._limit} bytes")
        self._digest.update(data)
        self.size += len(data)

    def end(self, expected: Whole) -> None:
        """Everything is here; InvalidRecord if it is not what was sent."""
        if self.size != expected.size or self._digest.hexdigest() != expected.sha256:
            raise InvalidRecord(f"{self._what}: {self.size} of {expected.size} bytes arrived, or they are not the same")


# ---------------------------------------------------------------------------- orders and reports


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterOrder:
    """What the master's process is told on its command line."""

    host: str  # numeric
    port: int
    workers: int
    within_s: float  # how long they may take to come


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOrder:
    """What a worker's process is told on its command line."""

    host: str  # numeric
    port: int
    within_s: float  # how long the master may take to answer
    folder: str  # for the rows and requests of one load at a time; removed at a good end
    allowed: Mapping[str, TargetLimit] = field(default_factory=dict)  # by this host's user


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPart:
    """One worker's part in a load that has ended: a line of cluster.jsonl in the load's folder."""

    name: str
    worker: int  # its number in the rows
    before: Clock
    after: Clock | None  # None: it was lost
    host_busy: float | None  # share of its host's cores that were busy, whoever used them
