"""What perf_analyzer says: its trace, its CSV and its last words, and what they make of a load. Pure.

With `-v -v` its clients print every request as it is sent and every answer as it comes (HTTP: their JSON heads; gRPC:
a line, and the answer as text). These lines are stamped with CLOCK_MONOTONIC as they arrive: warm-up and drain are in
them, and no step of the system clock (which perf_analyzer itself stamps with) can reach them.
"""

from __future__ import annotations

import bisect
import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from brim.records import LoadPoint, Protocol, Status

Ended = Literal["finished", "stopped", "crashed", "server_lost"]

#: The two JSON heads of a request; each is printed in one piece, while the words before it may interleave.
_HEAD = re.compile(rb'\{"id":"(\d{1,20})","(inputs|model_name)"')
#: gRPC numbers its requests one after another. "Sent request" is printed in one piece, and so is an answer, but the
#: number behind the former is not: an answer may stand in between.
_TURN = re.compile(rb'Sent request|\nid: "(\d{1,20})"\n')
_HEAD_BYTES = 64  # more than the longest of them, so one that two reads cut apart is found in the second
_TAIL_BYTES = 2**16

#: Lines of libcurl's own trace on stderr.
_CURL = re.compile(
    r"[*<>](\s|$)|(Host|User-Agent|Accept|Content-Type|Content-Length|Inference-Header-Content-Length|Expect):", re.I
)
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f-\x9f]+")
_REQUEST_ID = re.compile(r"\[request id: \d+\] ")
_THREAD_ERROR = re.compile(r"Thread \[\d+\] had error: ")
_REQUEST_COUNT = re.compile(rb"^ +Request count: (\d{1,18})\s*$", re.MULTILINE)
#: How 2.51 puts it that the server went away; an empty answer is what a reset connection looks like to it.
_GONE = (
    "couldn't connect", "document is empty", "connection refused", "connection reset", "returned nothing",
    "failed to connect", "socket closed",
)  # fmt: skip

#: The rows and the CSV describe one stretch; more than this apart, and one of them is wrong.
AGREEMENT = 0.02


class Trace:
    """The requests in flight, followed through perf_analyzer's standard output."""

    def __init__(self, protocol: Protocol = "http") -> None:
        self.in_flight: dict[int, int] = {}  # request id -> sent_ns
        self.first_sent_ns: int | None = None
        self.tail = b""  # the newest output, for its summary
        self._rest = b""
        self._pattern = _HEAD if protocol == "http" else _TURN
        self._sent = 0  # requests that gRPC has told of
        self._early: set[int] = set()  # answers that were printed before their request was

    def feed(self, output: bytes, now_ns: int) -> list[int]:
        """Take output that arrived at `now_ns`; gives the sent_ns of each request that was answered in it."""
        self.tail = (self.tail + output)[-_TAIL_BYTES:]
        text, end, answered = self._rest + output, 0, []
        for turn in self._pattern.finditer(text):
            end = turn.end()
            number, sent = self._turn(turn)
            if sent:
                self.in_flight[number] = now_ns
                self.first_sent_ns = self.first_sent_ns or now_ns
            if (not sent or number in self._early) and number in self.in_flight:
                answered.append(self.in_flight.pop(number))
                self._early.discard(number)
        self._rest = text[end:][-_HEAD_BYTES:]
        return answered

    def _turn(self, turn: re.Match[bytes]) -> tuple[int, bool]:
        """Which request it is about, and whether it was sent or answered."""
        if self._pattern is _HEAD:
            return int(turn[1]), turn[2] == b"inputs"
        if turn[1] is None:
            self._sent += 1
            return self._sent - 1, True
        number = int(turn[1])
        if number >= self._sent:
            self._early.add(number)
        return number, False


def csv_rate(text: str, point: LoadPoint) -> float | None:
    """Items per second in the row of this load point, or None if there is no such row or it cannot be read."""
    column, asked = ("Concurrency", point.concurrency) if point.mode == "closed" else ("Request Rate", point.rate_per_s)
    for row in csv.DictReader(io.StringIO(text)):
        try:
            if math.isclose(float(row.get(column) or ""), asked or 0, rel_tol=1e-5):
                return float(row.get("Inferences/Second") or "")
        except ValueError:
            continue
    return None


def words(stderr: bytes) -> list[str]:
    """What it said on stderr, without libcurl's trace, control characters and request ids."""
    said = []
    for line in stderr.decode("utf-8", "replace").splitlines():
        line = _REQUEST_ID.sub("", _THREAD_ERROR.sub("", " ".join(_UNPRINTABLE.sub(" ", line).split())))
        if line and not _CURL.match(line):
            said.append(line[:200])
    return said


def failed_requests(stderr: bytes) -> int:
    """How many failures it reports (one per thread; one is enough to end it)."""
    return len(_THREAD_ERROR.findall(stderr.decode("utf-8", "replace")))


def server_gone(said: Iterable[str]) -> bool:
    """True if its last words are those of a client whose server went away."""
    return any(sign in line.lower() for line in said for sign in _GONE)


def left_over(sent: Iterable[int], *, failed: int, end_ns: int, timeout_ns: int) -> list[tuple[int, int, Status]]:
    """What became of the requests that were never answered, as (sent_ns, done_ns, status).

    Past the deadline of a request it timed out there; of the others the oldest are those that it reports as failed.
    """
    rows = []
    for sent_ns in sorted(sent):
        if end_ns - sent_ns >= timeout_ns:
            rows.append((sent_ns, sent_ns + timeout_ns, Status.TIMED_OUT))
        elif failed > 0:
            rows.append((sent_ns, end_ns, Status.FAILED))
            failed -= 1
        else:
            rows.append((sent_ns, end_ns, Status.CANCELLED))
    return rows


def reported_requests(tail: bytes) -> int | None:
    """The requests that its summary counts, or None without a summary."""
    counts = _REQUEST_COUNT.findall(tail)
    return int(counts[-1]) if counts else None


def disagreement(
    done_ns: Sequence[int], *, start_ns: int, requests: int | None, items: int, in_flight: int, rate: float
) -> str | None:
    """A line if the rows of the measured stretch and perf_analyzer's own figures are not of one mind, else None.

    Its windows last longer than asked for on a busy machine, so the stretch is what its count and its rate say:
    from the first request, for count / rate. The end may fall on either side of one round of answers.
    """
    if not requests or rate <= 0:
        return "perf_analyzer's summary has no count of requests, so its rate was not checked against its trace"
    seconds = requests * items / rate
    counted = bisect.bisect_right(done_ns, start_ns + round(seconds * 1e9))
    if abs(counted - requests) <= max(AGREEMENT * requests, in_flight):
        return None
    return f"perf_analyzer reports {requests} requests in {seconds:.2f} s, its trace shows {counted}"


def outcome(
    *, exit_code: int, stopped: bool, killed: str, rate: float | None, answered: int, said: Sequence[str]
) -> tuple[Ended, str]:
    """How the load ended, and why if it did not finish; its exit code alone is never believed.

    2.51 exits 0 after a first SIGINT without a CSV, and 0 when the CSV cannot be written.
    """
    if exit_code == 0 and rate is not None and answered and not killed:
        return "finished", ""
    last = " | ".join(said[-3:]) or "it said nothing"
    if killed:
        return "crashed", f"perf_analyzer {killed} and was killed; {last}"
    if exit_code != 0 and server_gone(said):
        return "server_lost", f"perf_analyzer lost the server: {last}"
    if stopped:
        return "stopped", ""
    if exit_code != 0:
        ended = f"was ended by signal {-exit_code}" if exit_code < 0 else f"exited {exit_code}"
        return "crashed", f"perf_analyzer {ended}: {last}"
    if rate is None:
        return "crashed", f"perf_analyzer exited 0 but its CSV has no row for this load; {last}"
    return "crashed", f"perf_analyzer exited 0 but its trace shows no answered request; {last}"
