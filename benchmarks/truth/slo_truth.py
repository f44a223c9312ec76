"""The rate at an SLO by long loads alone: the share of late requests at three rates around it, by two generators.

The rates are placed by the simulator; which rate meets the SLO is read off the raw records: the logarithm of the share
is close to a straight line in the logarithm of the rate, and crosses the allowed share there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.served import Served
from benchmarks.truth.journal import Book, told
from benchmarks.truth.loads import (
    FREEZING,
    FROZEN_S,
    Frozen,
    by_perf_analyzer,
    freeze_open,
    fresh,
    log_of,
    poisson_load,
)
from brim.errors import Lost
from brim.records import Slo, Status, Variant
from experiments.calibrate.plan import variant
from judging.slo_observed import Floats, Observed, latencies
from judging.slo_predict import foresee

SLO = Slo(limit_ms=100.0, percentile=99.0)
AROUND = (0.97, 1.0, 1.03)
LOAD_S = 300.0
WARM_S = 5.0  # as long as several queues are remembered
BLOCKS = 20  # of a load, for the error of its share
SEED = 11
#: Sends at a rate for so long: server, rate, seconds, seed.
Generator = Callable[[Served, float, float, int], Observed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One load: the rate that was really sent, the share of late requests, and the error of its logarithm."""

    rate: float
    share: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """The rate at which the share is the one allowed."""

    rate: float
    kappa: float  # d ln(share) / d ln(rate)
    error: float  # standard error of ln(rate)

    @property
    def words(self) -> str:
        return f"{self.rate:.2f}/s (standard error {self.error:.2%}, kappa {self.kappa:.0f})"


def server() -> Variant:
    """Whose rate it is."""
    return variant("sleep", {"service_ms": 20.0}, max_batch=8, instances=1)


def run_brim(book: Book) -> None:
    """By Brim's open-loop sender, latency from the intended time."""
    _run(book, lambda on, rate, s, seed: poisson_load(on, rate=rate, seconds=s, seed=seed))


def run_perf_analyzer(book: Book) -> None:
    """By perf_analyzer, latency from the actual send, which is all that it tells."""
    _run(book, lambda on, rate, seconds, _: by_perf_analyzer(on, rate=rate, seconds=seconds))


def _run(book: Book, generator: Generator) -> None:
    with fresh(server(), book.folder) as on:
        frozen = freeze_open(on, seconds=book.scaled(FROZEN_S), seed=FREEZING)
        around = simulated(frozen, on)
        book.add(told("frozen beforehand", frozen.words), told("simulated with those service times", f"{around:.2f}/s"))
        points, rates = [], []
        for number, share in enumerate(AROUND):
            load = generator(on, share * around, book.scaled(LOAD_S, least=10.0), SEED + number)
            points.append(point_of(load))
            rates.append(simulated(frozen, on, load))
            book.add(
                told(
                    f"late at {points[-1].rate:.2f}/s",
                    f"{points[-1].share:.3%}; simulated with these service times: {rates[-1]:.2f}/s",
                )
            )
    book.keep(simulated=float(np.mean(rates)), **kept(points))
    found = crossing(points)
    book.add(told("crossing", found.words if found else "none within what was measured"))


def simulated(frozen: Frozen, on: Served, load: Observed | None = None) -> float:
    """The rate at the SLO of the simulator with the service times that were logged during a load."""
    found = foresee(frozen.model(log_of(on), load), SLO, seed=1)
    if found is None:
        raise Lost("the simulated server does not meet the SLO at any rate")
    return found.items_per_s


def point_of(load: Observed) -> Point:
    """Behind the first seconds; what was never answered well is late."""
    due_s, late = _due(load)
    late = late[due_s >= WARM_S]
    if not late.size:
        raise Lost("the load was shorter than its beginning")
    span_s = float(due_s[-1]) - WARM_S
    share = max(float(late.mean()), 0.5 / late.size)
    means = np.array([block.mean() for block in np.array_split(late, BLOCKS)])
    return Point(
        rate=late.size / span_s, share=share, error=float(means.std(ddof=1)) / math.sqrt(BLOCKS) / share
    )  # fmt: skip


def _due(load: Observed) -> tuple[Floats, Floats]:
    """Seconds from the start at which each request was due, in order, and whether it was late (0 or 1)."""
    limit_s = SLO.limit_ms / 1e3
    if load.offsets_ns is not None:
        return load.offsets_ns / 1e9, (latencies(load) > limit_s).astype(np.float64)
    rows = load.rows[load.rows["status"] != Status.CANCELLED]
    rows = rows[np.argsort(rows["sent_ns"], kind="stable")]
    good = (rows["status"] == Status.OK) & (rows["done_ns"] - rows["sent_ns"] <= limit_s * 1e9)
    return (rows["sent_ns"] - load.start_ns) / 1e9, (~good).astype(np.float64)


def crossing(points: Sequence[Point], allowed: float = SLO.over_allowed) -> Crossing | None:
    """The least-squares line through ln(share) over ln(rate) at the allowed share; None if it does not rise."""
    ln_rate = np.log([point.rate for point in points])
    ln_share = np.log([point.share for point in points])
    middle = float(ln_rate.mean())
    kappa = float(np.polyfit(ln_rate - middle, ln_share, 1)[0])
    if kappa <= 0:
        return None
    off = (math.log(allowed) - float(ln_share.mean())) / kappa
    error = math.hypot(*(point.error for point in points)) / len(points) / kappa
    return Crossing(rate=math.exp(middle + off), kappa=kappa, error=error)


def kept(points: Sequence[Point]) -> dict[str, float]:
    """For the journal."""
    return {
        f"{name}_{number}": value
        for number, point in enumerate(points)
        for name, value in (("rate", point.rate), ("share", point.share), ("error", point.error))
    }


def points_of(figures: Mapping[str, float]) -> list[Point]:
    """Back from the journal."""
    count = sum(name.startswith("rate_") for name in figures)
    return [
        Point(rate=figures[f"rate_{n}"], share=figures[f"share_{n}"], error=figures[f"error_{n}"]) for n in range(count)
    ]
