"""What one measurement gathered: its loads with their windows, the engine alone, and what was asked for."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brim.records import Calibration, Latency, Load, Run, StatsRead, Target, Window
from experiments.measure.alone import Kept, Values
from experiments.measure.experiment import Done, Plan
from judging.evidence import busy_share, effective_batch
from judging.rows import Rows
from judging.windows import latency


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLoad:
    """One load with its windows, and the rows and reads that they were cut from."""

    load: Load
    windows: tuple[Window, ...]
    rows: Rows
    period_ns: int
    kept: Kept
    reads: tuple[StatsRead, ...] = ()
    restarted: str = ""  # the server's counters went back while it ran

    @property
    def measured(self) -> tuple[Window, ...]:
        return tuple(w for w in self.windows if w.kind == "measured")

    @property
    def rates(self) -> tuple[float, ...]:
        return tuple(w.items_per_s for w in self.measured)

    @property
    def busy_s_per_item(self) -> float | None:
        """The engine's own time, once per execution, over the items of the measured windows; an ensemble has none."""
        servers = [w.server for w in self.measured if w.server and not w.server.steps]
        items = sum(int(size) * n for s in servers for size, n in s.batch_counts.items())
        return sum(s.busy_ns for s in servers) / items / 1e9 if items else None

    @property
    def effective_batch(self) -> float | None:
        return mean([effective_batch(w) for w in self.measured])

    def busy_share(self, target: Target) -> float | None:
        return mean([busy_share(w, target.instances) for w in self.measured])

    @property
    def reasons(self) -> tuple[str, ...]:
        said = [*(r for w in self.measured for r in w.reasons), *self.load.reasons, *self.load.errors]
        return tuple(dict.fromkeys(said))[:3]

    @property
    def lost(self) -> bool:
        return self.load.ended == "server_lost" or bool(self.restarted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """The engine alone: its rates, one a round, and its answers; or why there are none."""

    rates: tuple[float, ...] = ()
    values: Values | None = None
    reason: str = "not reached"
    failed: bool = False  # it should have run

    @property
    def items_per_s(self) -> float | None:
        return statistics.median(self.rates) if self.rates else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that one measurement gathered."""

    run: Run
    target: Target
    plan: Plan
    done: tuple[Done, ...]
    loads: tuple[MeasuredLoad, ...]
    alone: Alone
    items_per_request: int
    payload: str
    no_cross_check: str | None
    interrupted: bool = False
    lost: str | None = None  # why the server no longer answers as the one that was described
    local: bool = True  # the server is on this machine: the cores that were watched are its own, too
    link_bytes_per_s: float | None = None  # of the network to a server elsewhere
    loopback_bytes_per_s: float | None = None  # of a plain copy of such payloads
    max_rate_per_s: float | None = None  # requests, that the user allows to be sent to this host
    sender_cpus: tuple[int, ...] = ()
    calibration: Calibration | None = None  # the newest

    def of(self, *purposes: str) -> list[MeasuredLoad]:
        return [load for load in self.loads if load.load.purpose in purposes]

    def windows(self, purpose: str) -> list[Window]:
        return [w for load in self.of(purpose) for w in load.measured]


def latency_of(loads: Sequence[MeasuredLoad]) -> Latency | None:
    """Percentiles of all requests that ended in the measured windows; percentiles of windows are never averaged."""
    inside = [
        load.rows[(load.rows["done_ns"] > w.start_ns) & (load.rows["done_ns"] <= w.end_ns)]
        for load in loads
        for w in load.measured
    ]
    return latency(np.concatenate(inside).view(Rows)) if inside else None


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
