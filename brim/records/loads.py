"""Loads: what is asked of a target, what was sent, and the windows cut from it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from brim.records.counters import Gpu, ServerDelta
from brim.records.models import Server, Tensor, Variant
from brim.records.naming import require


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetLimit:
    """What the project file or the command line allows to be sent to a host that is not loopback."""

    host: str
    max_rate_per_s: float | None = None

    def __post_init__(self) -> None:
        cap = self.max_rate_per_s
        require(cap is None or cap > 0, f"max_rate_per_s of {self.host} is {cap}, must be > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a target is reached beyond its URL. Paths only: what the files hold is read where it is sent, never kept."""

    tls_ca: str | None = None  # PEM file; None = the system's authorities
    tls_cert: str | None = None
    tls_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # header name -> file that holds its value

    def __post_init__(self) -> None:
        require(
            (self.tls_cert is None) == (self.tls_key is None), "a client certificate and its key go together, give both"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleStep:
    """A composing model of an ensemble, as its own configuration describes it."""

    model: str
    max_batch: int  # 0 = the model does not batch
    instances: int

    @property
    def full(self) -> int:
        """Items in flight that keep every instance at full batches while the next ones form."""
        return 2 * max(1, self.max_batch) * max(1, self.instances)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How a server forms batches out of single requests, as its configuration says."""

    preferred: tuple[int, ...] = ()
    queue_delay_us: int = 0
    max_queue_size: int = 0  # 0 = unlimited
    queue_timeout_us: int = 0  # 0 = none


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A served model wherever it is, as its own server describes it."""

    url: str  # scheme://host:port, never with user info
    model: str
    version: str  # "" = the server's choice
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int  # 0 = the model does not batch
    instances: int
    server_name: str
    server_version: str
    item: str = "item"
    variant: Variant | None = None
    server: Server | None = None  # if Brim started it
    access: Access = Access()
    steps: tuple[EnsembleStep, ...] = ()  # of an ensemble, in the order of its configuration
    batching: Batching | None = None  # None = each request is a batch of its own

    @property
    def last_step(self) -> EnsembleStep:
        """Whose batches count: an ensemble's last step (it has none of its own), else the model itself."""
        own = EnsembleStep(model=self.model, max_batch=self.max_batch, instances=self.instances)
        return self.steps[-1] if self.steps else own

    @property
    def full(self) -> int:
        """Items in flight that keep every instance, of every step, at full batches while the next ones form."""
        return max(step.full for step in (*self.steps, self.last_step))


#: How bytes leave.
Sender = Literal["locust_http", "grpc_aio", "tritonclient_http", "tritonclient_grpc", "perf_analyzer", "loadgen"]
Protocol = Literal["http", "grpc"]
Transport = Literal["wire", "shared_memory", "cuda_shared_memory"]


#: By what law requests arrive: equally spaced, memoryless, with gamma-distributed gaps, or as recorded.
Arrivals = Literal["constant", "poisson", "gamma", "trace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """What is asked of a target: a fixed number of requests in flight (closed), or a rate of requests (open)."""

    mode: Literal["closed", "open"] = "closed"
    concurrency: int | None = None
    rate_per_s: float | None = None  # requests, not items
    arrivals: Arrivals | None = None
    cv: float | None = None  # of the gaps of gamma arrivals: 1 is Poisson, above it bursts
    seed: int | None = None
    outstanding: int | None = None  # open loop: so many in flight at most; what is due beyond waits, and counts
    items_per_request: int = 1
    protocol: Protocol = "http"
    transport: Transport = "wire"
    payload: str = "random"
    sender: Sender = "locust_http"
    senders: int = 1
    compression: Literal["none", "gzip"] = "none"

    def __post_init__(self) -> None:
        if self.mode == "closed":
            require((self.concurrency or 0) >= 1, f"concurrency is {self.concurrency}, must be >= 1")
            require(self.senders <= (self.concurrency or 0), f"{self.senders} senders cannot share {self.concurrency}")
        else:
            rate = self.rate_per_s or 0
            require(0 < rate < float("inf"), f"rate is {self.rate_per_s}/s, must be > 0")
            require(self.arrivals is not None, "an open loop needs a law of arrivals")
            require(self.arrivals != "gamma" or (self.cv or 0) > 0, f"cv is {self.cv}, must be > 0")
            require((self.outstanding or 0) >= self.senders, f"{self.senders} senders cannot share {self.outstanding}")
        require(self.items_per_request >= 1, f"items per request is {self.items_per_request}, must be >= 1")
        require(self.senders >= 1, f"senders is {self.senders}, must be >= 1")

    @property
    def slots(self) -> int:
        """How many requests may be in flight."""
        return (self.concurrency if self.mode == "closed" else self.outstanding) or 1


class Status(IntEnum):
    """How a request ended: the `status` byte of a row."""

    OK = 0
    REJECTED = 1  # the server's queue was full or timed the request out (HTTP 503)
    TIMED_OUT = 2  # our own total deadline; latency is censored there
    FAILED = 3
    CANCELLED = 4  # we stopped while it was in flight


#: One request on disk: intended_ns, sent_ns, done_ns, items, worker, status (CLOCK_MONOTONIC, little endian).
ROW = struct.Struct("<qqqHHB3x")
#: Head of requests/<worker>.bin: magic, schema, unix_ns and monotonic_ns read together (the clock anchor).
ROW_HEADER = struct.Struct("<8sH6xqq")
ROW_MAGIC = b"BRIMROWS"
ROW_SCHEMA = 1


#: What a load was for. `transfer`: the same items another way, with fewer bytes on the wire. Of the rate that meets an
#: SLO: `profile` is what is predicted from, `trial` what verifies it.
Purpose = Literal["search", "one_more_sender", "transfer", "figure", "cross_check", "profile", "trial", "overload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """loads.jsonl: one stretch of load at one point by one generator; its rows are those of its workers."""

    index: int
    generator: Literal["locust", "perf_analyzer", "loadgen"]
    purpose: Purpose
    point: LoadPoint
    workers: tuple[int, ...]
    start_ns: int
    end_ns: int  # after the drain
    sent: int
    ok: int
    rejected: int
    timed_out: int
    failed: int
    cancelled: int
    items_ok: int
    client_cpu_s: float
    ended: Literal["finished", "stopped", "crashed", "server_lost"]
    errors: Mapping[str, int] = field(default_factory=dict)  # what the server or the socket said -> how often
    reasons: tuple[str, ...] = ()
    server_start: int = 0  # which start of the server it met, from 0
    request_bytes: int | None = None  # what one request puts on the wire
    judged_until_ns: int | None = None  # where its record was found long enough; what was sent later is not judged
    hosts_busy: float | None = None  # share of the cores of the busiest load host, where that is not this machine
    unsent: int = 0  # open loop: due before the end, but never sent
    schedule: str | None = None  # open loop: file of the run with the arrivals, int64 ns from start_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds over the answered requests of a window; timed-out ones are censored at their limit."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """Processor time spent between the two ends of a window."""

    client_s: float
    server_s: float | None
    machine_share: float | None  # busy share of all cores, everything on the machine counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One measured stretch of one load point by one generator, between two completion instants."""

    generator: Literal["locust", "perf_analyzer", "loadgen"]
    point: LoadPoint
    start_ns: int  # CLOCK_MONOTONIC; a completion instant, itself not counted
    end_ns: int  # a completion instant, counted
    kind: Literal["warmup", "measured"] = "measured"
    items_ok: int
    in_flight_start: int
    sent: int
    ok: int
    rejected: int
    timed_out: int
    failed: int
    cancelled: int
    in_flight_end: int
    latency_ms: Latency | None
    server: ServerDelta | None = None
    cpu: Cpu | None = None
    gpu: Gpu | None = None  # mean over the reads of the window
    load: int | None = None  # index of its line in loads.jsonl
    unstable: bool = False
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.end_ns > self.start_ns, f"window from {self.start_ns} to {self.end_ns} ns has no length")
        ended = self.ok + self.rejected + self.timed_out + self.failed + self.cancelled + self.in_flight_end
        require(
            self.in_flight_start + self.sent == ended,
            f"window does not add up: {self.in_flight_start} in flight + {self.sent} sent, but {ended} accounted for",
        )

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def items_per_s(self) -> float:
        return self.items_ok / self.seconds

    @property
    def not_ok(self) -> int:
        return self.rejected + self.timed_out + self.failed

    @property
    def not_ok_share(self) -> float:
        ended = self.ok + self.not_ok
        return self.not_ok / ended if ended else 1.0

    @property
    def batches(self) -> float | None:
        return float(self.server.execution_count) if self.server else None
