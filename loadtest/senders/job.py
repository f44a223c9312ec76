"""What all users of one sender process share: the requests to send, the judge of answers, the tally, when to stop.

Writes through its tally only (and a bug's traceback to stderr). Knows no load generator; sleeping is the caller's.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from brim import disk, guard
from brim.access import PLAIN, redactor, ssl_context
from brim.errors import NoResource
from brim.guard import Endpoint
from brim.records import Access, Status, TargetLimit
from loadtest import prepared
from loadtest.prepared import Payload
from loadtest.senders.answers import Judge, clean
from loadtest.senders.tally import Samples, Texts

LOST_AFTER_NS = 1_000_000_000  # nobody could connect for so long: the server is gone
#: Connections open one after another while those before them are at work. A server hands each to whichever of its
#: threads is idle, for good: opened at once, before the load, they often went all to one of Triton's eight.
RAMP_EACH_S, RAMP_S = 0.005, 0.5

Ended = Literal["finished", "stopped", "crashed", "server_lost"]


class Rows(Protocol):
    """Where the row of each request goes."""

    def add(self, intended_ns: int, sent_ns: int, done_ns: int, status: int) -> None: ...


class Wires(Protocol):
    """What the deadline needs to know of a user."""

    sent_ns: int  # 0 while nothing is in flight
    overdue: bool

    def cut(self) -> None:
        """Wake the user out of whatever it waits for on its connection."""


class Job:
    """The shared state of one load point in one process."""

    def __init__(
        self,
        *,
        payload: Payload,
        requests: Sequence[bytes],
        allowed: Mapping[str, TargetLimit],
        users: int,
        senders: int,
        timeout_s: float,
        samples: int,
        rows: Rows,
        access: Access = PLAIN,
    ) -> None:
        self.endpoint: Endpoint = guard.parse_url(payload.url)
        self.tls = ssl_context(access) if self.endpoint.scheme == "https" else None
        self.requests, self.allowed, self.rows = list(requests), dict(allowed), rows
        self.redact = redactor(access)
        self.judge = Judge(payload.outputs, self.redact)
        self.timeout_s, self.timeout_ns = timeout_s, int(timeout_s * 1e9)
        self.users: list[Wires] = []
        self.texts, self.samples = Texts(), Samples(samples, len(self.requests), time.monotonic_ns())
        self.stopping = False
        self.stopped_ns = 0  # since when
        self.ended: Ended = "finished"
        self.reason = ""
        self.no_room = False
        self.refusal: Exception | None = None  # why a user could not connect before the load began
        self._wanted_users, self._refusals, self._first_refusal_ns = users, 0, 0
        self.most_per_s = most_per_s(self.endpoint, allowed, senders)
        self._pace_ns = int(1e9 / self.most_per_s) if self.most_per_s else 0
        self._next_turn_ns = 0

    def stop(self, ended: Ended, reason: str = "") -> None:
        """Send no more; the first cause is kept."""
        if not self.stopping:
            self.ended, self.reason, self.stopping = ended, reason, True
            self.stopped_ns = time.monotonic_ns()

    def out_of_room(self, error: NoResource) -> None:
        """The disk is full: end, and say so."""
        self.no_room = True
        self.crash(str(error))

    def crash(self, reason: str) -> None:
        """End, and say why: the worst end there is, so it stands above one that came before."""
        if self.ended != "crashed":
            self.stop("crashed")
            self.ended, self.reason = "crashed", reason

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Whatever dies of an exception in here is a bug, which ends the load instead of thinning it out."""
        try:
            yield
        except Exception as error:
            self.crash(self.bug(error))
            with contextlib.suppress(OSError):  # a full disk has no room for a log either
                sys.stderr.write(self.redact(traceback.format_exc()))

    def bug(self, error: Exception) -> str:
        """What such an exception says, fit to be kept."""
        return clean(self.redact(f"sender: {error!r}"))

    def record(self, intended_ns: int, sent_ns: int, done_ns: int, status: Status, text: str) -> None:
        """Take down one request that has ended (closed loop: it was intended when it was sent)."""
        try:
            self.rows.add(intended_ns, sent_ns, done_ns, status)
        except NoResource as error:
            self.out_of_room(error)
        if text:
            self.texts.add(text)

    def connected(self) -> None:
        """The server is there: a user got a connection, or an answer."""
        self._refusals = 0

    def refused(self, text: str) -> None:
        """A user got none: when that is all that has happened for a while, the server is lost."""
        now = time.monotonic_ns()
        if self._refusals == 0:
            self._first_refusal_ns = now
        self._refusals += 1
        if self._refusals >= max(3, self._wanted_users) and now - self._first_refusal_ns >= LOST_AFTER_NS:
            self.stop("server_lost", text)

    def turn_s(self) -> float:
        """Seconds until the next request may be sent where the rate is capped (0 elsewhere); takes that turn."""
        if not self._pace_ns:
            return 0.0
        now = time.monotonic_ns()
        turn = max(now, self._next_turn_ns)
        self._next_turn_ns = turn + self._pace_ns
        return (turn - now) / 1e9

    def enforce_deadline(self) -> float:
        """Cut every request whose total time is over; seconds until the next one can be over."""
        now = oldest = time.monotonic_ns()
        for user in self.users:
            sent = user.sent_ns
            if not sent or user.overdue:
                continue
            if now - sent >= self.timeout_ns:
                user.overdue = True
                user.cut()
            elif sent < oldest:
                oldest = sent
        return max(0.001, (oldest + self.timeout_ns - now) / 1e9)

    @property
    def in_flight(self) -> int:
        return sum(1 for user in self.users if user.sent_ns)


def most_per_s(endpoint: Endpoint, allowed: Mapping[str, TargetLimit], senders: int) -> float:
    """Requests a second that one of `senders` processes may send at most; 0 = as fast as it goes.

    Only a host that is not loopback has a limit; the senders share it evenly.
    """
    limit = allowed.get(endpoint.host)
    if limit is None or limit.max_rate_per_s is None:
        return 0.0
    if all(address.loopback for address in guard.judge(endpoint.host, endpoint.port, allowed)):
        return 0.0
    return min(1e9, limit.max_rate_per_s / senders)  # clocks tell nothing faster


def ramp_s(position: int, users: int) -> float:
    """Seconds from the start of the load until the user at this position joins it."""
    return position * min(RAMP_EACH_S, RAMP_S / users)


def share(whole: int, senders: int, number: int) -> int:
    """What sender `number` takes of `whole`: evenly, the first ones one more."""
    return whole // senders + (1 if number < whole % senders else 0)


def read_requests(folder: Path, payload: Payload) -> list[bytes]:
    """The bytes of every request of the pool."""
    requests = []
    for member in payload.members:
        with disk.told(folder / member.request):
            requests.append((folder / member.request).read_bytes())
    return requests


def load_pool(folder: Path) -> tuple[Payload, list[bytes]]:
    """A prepared payload and its requests."""
    payload = prepared.load(folder)
    return payload, read_requests(folder, payload)


def with_headers(requests: Sequence[bytes], lines: bytes) -> list[bytes]:
    """HTTP requests with more header lines, spliced in behind the request line: in memory, never on the disk."""
    return [line + b"\r\n" + lines + rest for line, _, rest in (request.partition(b"\r\n") for request in requests)]
