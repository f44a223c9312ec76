"""Answers: verdicts, checks, and what a measurement found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal

from brim.records.loads import Latency, LoadPoint, Purpose, Target
from brim.records.naming import require


class Verdict(StrEnum):
    """What a measurement is worth; the order of precedence is judging.verdict's."""

    SATURATED = "saturated"
    STILL_RISING = "still_rising"
    CLIENT_LIMITED = "client_limited"
    UNSTABLE = "unstable"
    FAILING = "failing"
    SERVER_LOST = "server_lost"
    ABORTED = "aborted"
    POINT = "point"


Limit = Literal["engine", "batcher", "frontend", "preprocessing", "transfer", "network", "host", "client", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One rule of believability (docs/architecture.md numbers them 1 to 8) held against this measurement."""

    rule: int
    name: str
    state: Literal["held", "broken", "not_applicable"]
    value: float | None = None
    bound: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossCheck:
    """The other generator at the same point."""

    generator: str
    items_per_s: float
    agrees: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One load as the report shows it: what was asked, what came of it, and what that is worth."""

    load: int  # index of its line in loads.jsonl
    purpose: Purpose
    generator: Literal["locust", "perf_analyzer", "loadgen"]
    server_start: int
    at: LoadPoint
    items_per_s: float | None  # mean of its measured windows
    ci95: tuple[float, float] | None  # within this load
    latency_ms: Latency | None
    effective_batch: float | None
    queue_ms: float | None
    server_ms: float | None  # the server's own duration of a request: queue, input, infer, output
    server_busy: float | None
    batch_counts: Mapping[str, int]  # batch size -> executions
    verdict: Literal["steady", "unstable", "failing", "no_window", "server_lost", "crashed"]
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where and with what it was measured: `machine` must be equal for two runs to be compared."""

    machine: Mapping[str, str]
    software: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """run.json: one target measured once; `status` is running until the run closes."""

    id: str
    batch_id: str
    command: str
    target: Target
    environment: Environment
    started_utc: str
    pid: int
    process_started_s: float
    unix_ns: int  # read together with monotonic_ns: the anchor between the two clocks
    monotonic_ns: int
    status: Literal["running", "closed", "crashed"] = "running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """saturation.json: the answer for one variant, with everything needed to doubt it."""

    run: str
    batch_id: str
    variant: str
    target: str
    backend: str
    server_version: str
    verdict: Verdict
    limited_by: Limit
    reasons: tuple[str, ...]
    items_per_s: float | None
    ci95: tuple[float, float] | None
    ci_kind: Literal["within_run", "between_starts"] | None
    at: LoadPoint
    latency_ms: Latency | None
    effective_batch: float | None
    queue_ms: float | None
    server_busy: float | None
    client_cpu_cores: float | None
    serving_efficiency: float | None
    cross_check: CrossCheck | None
    checks: tuple[Check, ...]
    seconds_spent: float
    item: str = "item"
    in_process_items_per_s: float | None = None
    starts: int = 1  # of the server, over which the figure was taken
    start_means: tuple[float, ...] = ()  # items/s of each
    max_batch: int = 0  # 0 = the model does not batch
    instances: int = 1
    probes: tuple[Probe, ...] = ()
    command: str = ""  # that reproduces it


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What is asked of latency: `percentile` % of the requests answered within `limit_ms` of their intended time."""

    limit_ms: float
    percentile: float = 99.0

    def __post_init__(self) -> None:
        require(0 < self.limit_ms < float("inf"), f"slo is {self.limit_ms} ms, must be > 0")
        require(0 < self.percentile < 100, f"percentile is {self.percentile}, must lie between 0 and 100")

    @property
    def over_allowed(self) -> float:
        """The share of requests that may take longer."""
        return 1 - self.percentile / 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTime:
    """How long the engine takes for one batch of so many items while so many instances are busy."""

    items: int
    busy: int  # instances
    ms: float
    batches: int  # that it is the mean of


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """What a batch costs beyond its service time: measured in closed loop beforehand, then frozen."""

    occupancy_ms: float  # an instance is not free for so long, besides ...
    occupancy_per_item_ms: float  # ... so much for each item
    additive_ms: float  # and each request takes so much longer, without holding an instance


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTrial:
    """One stretch of open-loop load that the rate at the SLO was judged by."""

    load: int  # index of its line in loads.jsonl
    items_per_s: float  # offered
    seconds: float
    requests: int
    over_share: float  # of the requests: late, rejected, failed, or never sent
    foreseen_share: float | None  # by the simulator fed with the same arrivals
    long_run_share: float | None  # by the simulator at that rate in the long run


@dataclass(frozen=True, slots=True, kw_only=True)
class SloRate:
    """slo.json: the largest rate that meets an SLO."""

    #: How a reason begins where more seconds would help.
    NOT_IN_TIME: ClassVar[str] = "SLO rate not resolvable in"

    slo: Slo
    items_per_s: float | None
    ci95: tuple[float, float] | None
    given: Literal["model", "data"]  # whether the interval rests on the queueing model, or on the data alone
    #: `met` and `missed` are of a rate that was asked for; the others of a search.
    verdict: Literal["resolved", "not_resolvable", "unattainable", "met", "missed", "failing", "server_lost", "aborted"]
    reason: str = ""
    model_rejected: str = ""  # why the queueing model did not fit; "" = it did, or was not asked
    capacity_items_per_s: float | None = None
    service: tuple[ServiceTime, ...] = ()
    overheads: Overheads | None = None
    trials: tuple[SloTrial, ...] = ()
    checks: tuple[Check, ...] = ()  # of what a search sent; a rate that was asked for has them in its load's answer
    seconds_spent: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRow:
    """One quantity of one known server, measured by one generator and held against the server's own log."""

    server: str
    quantity: str
    generator: Literal["locust", "perf_analyzer", "loadgen"]
    truth: float | None  # None = the log holds none, e.g. no full batch
    measured: float | None  # None = the generator gave none
    bound: float  # |error_fraction| up to here holds

    @property
    def error_fraction(self) -> float | None:
        return self.measured / self.truth - 1 if self.measured is not None and self.truth else None

    @property
    def holds(self) -> bool:
        error = self.error_fraction
        return error is not None and abs(error) <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """calibration.json: how right each generator was on one machine."""

    made_utc: str
    environment: Environment
    rows: tuple[CalibrationRow, ...]

    @property
    def holds(self) -> bool:
        """Every figure was right; nothing measured is not right."""
        return bool(self.rows) and all(row.holds for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadPoint:
    """What became of one offered rate under one queue policy; rates in items a second."""

    policy: str  # name of its serving configuration
    offered: float
    good: float  # answered within the SLO of their intended time
    late: float  # answered, but later
    rejected: float  # by the full queue
    expired: float  # by the queue's timeout
    failed: float  # everything else, our own deadline and what was never sent included
    load: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How long a burst is felt under one queue policy."""

    policy: str
    burst_s: float
    offered: float  # items/s, during the burst
    seconds: float | None  # from the end of the burst until requests are in time again; None = not within the load


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """overload.json: what a server does beyond its rate, and the queue policy that serves its users best."""

    slo: Slo
    items_per_s: float  # the rate at the SLO, from which the offered ones follow
    points: tuple[OverloadPoint, ...]
    recoveries: tuple[Recovery, ...]
    max_queue_size: int  # recommended; 0 = unlimited
    queue_timeout_us: int  # recommended; 0 = none
    why: str
