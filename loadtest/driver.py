"""The seam between measuring and sending: what a driver is told, what it gives back, and nothing else.

A driver starts one child process per load point; the spec goes in by a JSON file, the result comes out by one.
The parent never imports a load generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypedDict

from brim.records import Access, LoadPoint, Status, TargetLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """Everything a child needs to know: spec.json in `folder`."""

    url: str  # http://host:port; the child's own guard judges it again
    model: str
    version: str  # "" = the server's choice
    point: LoadPoint
    payload: str  # folder that loadtest.payload prepared
    folder: str  # the load's own folder, raw/<index>-<generator>/
    rows: str  # folder of the row files, requests/
    first_worker: int  # worker numbers first_worker, first_worker + 1, … are this load's (one per sender process)
    seconds: float  # stop sending after this long, if not told to stop before
    timeout_s: float  # total deadline of one request
    drain_s: float  # how long requests in flight may take to end after the last was sent
    samples: int  # how many responses to keep, spread over the run, for the check of values
    allowed: Mapping[str, TargetLimit] = field(default_factory=dict)
    cpus: tuple[int, ...] = ()  # pin the senders to these cores; () = do not pin
    access: Access = Access()
    channels: int = 1  # gRPC connections of one sender process
    arrivals: str | None = None  # open loop: .npy of int64 ns from the start, sorted; sender n takes every n-th


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One response body kept under load: which payload was sent, and the answer's file in the load's folder."""

    payload: int
    file: str
    json_bytes: int | None  # of the JSON head, which the binary outputs follow; None: a ModelInferResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a child says when it ends: result.json in the load's folder (for a driver with several, summed)."""

    workers: tuple[int, ...]
    start_ns: int
    end_ns: int
    sent: int
    ok: int
    rejected: int
    timed_out: int
    failed: int
    cancelled: int
    items_ok: int
    client_cpu_s: float
    ended: Literal["finished", "stopped", "crashed", "server_lost"]
    errors: Mapping[str, int] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    reason: str = ""  # why it ended crashed or server_lost, in one line
    no_room: bool = False  # the disk was full (exit code 6)
    hosts_busy: float | None = None  # share of the cores of the busiest load host, where that is not this machine
    unsent: int = 0  # open loop: due before the end, but never sent


class Counts(TypedDict):
    """The fields of a LoadResult that say how its requests ended."""

    sent: int
    ok: int
    rejected: int
    timed_out: int
    failed: int
    cancelled: int


def counts_of(ended: Sequence[int]) -> Counts:
    """Requests by Status as a LoadResult names them; nothing is in flight any more, so what ended is what was sent."""
    return Counts(
        sent=sum(ended),
        ok=ended[Status.OK],
        rejected=ended[Status.REJECTED],
        timed_out=ended[Status.TIMED_OUT],
        failed=ended[Status.FAILED],
        cancelled=ended[Status.CANCELLED],
    )


class RunningLoad(Protocol):
    """A load that is being sent."""

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that send (their CPU time is the client's)."""

    def running(self) -> bool:
        """False once every child has ended, however it ended."""

    def stop(self) -> None:
        """Ask the children to send no more and to drain; returns at once."""

    def finish(self) -> LoadResult:
        """Wait for the children within their bounds, kill what stays, and give the result; never raises for a crash."""


class Driver(Protocol):
    """Starts load with one generator."""

    generator: Literal["locust", "perf_analyzer", "loadgen"]
    ends_itself: bool  # True: it takes spec.seconds and ends; stopping it earlier would spoil its figures

    def start(self, spec: LoadSpec, folder: Path) -> RunningLoad:
        """Begin sending; NotReady or UsageError if it cannot begin at all."""
