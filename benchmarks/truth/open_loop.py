"""Poisson arrivals at three rates, against the simulator fed with the same arrivals and the logged service times.

Near saturation a percentile is hypersensitive to the service time; there the error is told in rate: by how much the
same arrivals would have to come faster for the simulator's figure to be the measured one. Beside each load stands a
bare asyncio sender with the same schedule.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.served import Served, load_spec
from benchmarks.truth import bare_sender
from benchmarks.truth.journal import Book, Line, at_most, told, within
from benchmarks.truth.loads import FREEZING, FROZEN_S, Frozen, at_rate, freeze_open, fresh, log_of, opened
from brim import disk
from brim.errors import Lost
from experiments.calibrate.plan import variant
from experiments.measure.run import exclusive
from judging.open_truth import P99, Latencies, foreseen, measured
from judging.rows import Rows
from judging.slo_observed import Observed
from judging.truth import Log
from queueing.arrivals import Offsets, poisson

LOAD_S = 60.0
#: Shares of the capacity: at those the latencies themselves must agree, at this one the rate that explains them.
IN_LATENCY, IN_RATE = (0.5, 0.75), 0.9
#: |error| of a mean that holds: a millisecond at half load is nothing to a user, a share of it a figure.
MEAN_MS = 0.3
RATE_ERROR = 0.01
#: A rate that is off by more explains nothing; halvings of that range.
FURTHEST, HALVINGS = 0.05, 12
LAG_RATIO = 1.5
MARGIN_S = 60.0


def run(book: Book) -> None:
    """The three rates; at every second one the bare sender begins."""
    sleep = variant("sleep", {"service_ms": 20.0}, max_batch=8, instances=1)
    seconds, lags = book.scaled(LOAD_S), []
    with fresh(sleep, book.folder) as on:
        before = _frozen(book, on, 0)
        for number, share in enumerate((*IN_LATENCY, IN_RATE)):
            rate = share * before.capacity
            offsets_ns = poisson(rate, seconds, seed=number + 1)
            bare = _bare(on, offsets_ns, rate, seconds) if number % 2 else None
            load = opened(on, offsets_ns, rate=rate, seconds=seconds)
            bare = _bare(on, offsets_ns, rate, seconds) if bare is None else bare
            lags.append((lag_p99_ms(load.rows), bare))
            after = _frozen(book, on, number + 1)
            book.add(*judged(share, load, log_of(on), before.until(after), len(offsets_ns)))
            before = after
    book.add(lag_line(lags))


def _frozen(book: Book, on: Served, number: int) -> Frozen:
    """Before the first load and after each: what a batch costs is the mean of both sides."""
    found = freeze_open(on, seconds=book.scaled(FROZEN_S), seed=FREEZING + number)
    book.add(told(f"sleep, k=1: frozen {'before' if number == 0 else f'after load {number}'}", found.words))
    return found


def judged(share: float, load: Observed, log: Log, frozen: Frozen, due: int) -> list[Line]:
    """What one load came to."""
    what = f"sleep, k=1, Poisson at {share:.0%}"
    seen, simulated = measured(load.rows), foreseen(load.rows, log, frozen.batcher, frozen.overheads)
    if seen is None or simulated is None or len(load.rows) < due:
        raise Lost(f"{what}: {len(load.rows)} of {due} requests were sent, or one of them did not end well")
    if share in IN_LATENCY:
        return [mean_line(what, seen, simulated), within(f"{what}: p99", seen.p99, simulated.p99, P99, " ms")]

    def at(factor: float) -> Latencies:
        found = foreseen(load.rows, log, frozen.batcher, frozen.overheads, faster=factor)
        assert found is not None  # it is the same log
        return found

    both = f"{seen.mean:.1f}, {seen.p99:.1f} ms; simulated {simulated.mean:.1f}, {simulated.p99:.1f}"
    return [
        told(f"{what}: mean, p99", both),
        rate_line(f"{what}: rate by which the mean is explained", rate_error(seen.mean, lambda f: at(f).mean)),
        rate_line(f"{what}: rate by which the p99 is explained", rate_error(seen.p99, lambda f: at(f).p99)),
    ]  # fmt: skip


def mean_line(what: str, seen: Latencies, simulated: Latencies) -> Line:
    """A mean is held in milliseconds."""
    off = seen.mean - simulated.mean
    return Line(
        what=f"{what}: mean", bound=f"within {MEAN_MS} ms of {simulated.mean:.2f} ms",
        measured=f"{seen.mean:.2f} ms ({off:+.2f})", held=abs(off) <= MEAN_MS,
    )  # fmt: skip


def rate_line(what: str, error: float | None) -> Line:
    """None = more than was looked for."""
    told_error = f"beyond {FURTHEST:.0%}" if error is None else f"{error:+.2%}"
    return Line(
        what=what, bound=f"within {RATE_ERROR:.0%}", measured=told_error,
        held=error is not None and abs(error) <= RATE_ERROR,
    )  # fmt: skip


def rate_error(seen: float, simulated: Callable[[float], float]) -> float | None:
    """f - 1 of the factor f of the rate at which the simulated figure is the one that was seen; None if none is near.

    `simulated` rises with its factor.
    """
    low, high = 1 - FURTHEST, 1 + FURTHEST
    if not simulated(low) <= seen <= simulated(high):
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if simulated(middle) < seen else (low, middle)
    return (low + high) / 2 - 1


def lag_p99_ms(rows: Rows) -> float:
    """How late the requests were sent."""
    return float(np.percentile((rows["sent_ns"] - rows["intended_ns"]) / 1e6, 99, method="inverted_cdf"))


def lag_line(lags: Sequence[tuple[float, float]]) -> Line:
    """Brim's p99 over the bare sender's: the median of the loads."""
    ratios = [ours / bare for ours, bare in lags]
    each = ", ".join(f"{ours:.2f} and {bare:.2f} ms" for ours, bare in lags)
    line = at_most("send lag p99 over a bare asyncio sender's, median", statistics.median(ratios), LAG_RATIO)
    return replace(line, measured=f"{line.measured} ({each})")


def _bare(on: Served, offsets_ns: Offsets, rate: float, seconds: float) -> float:
    """Its p99."""
    spec = at_rate(load_spec(on, 1, seconds=seconds), rate, offsets_ns)
    file = disk.save(Path(spec.folder) / "spec.json", spec)
    with exclusive():
        late_ms = bare_sender.lag_ms(spec, file, limit_s=seconds + MARGIN_S)
    return float(np.percentile(late_ms, 99, method="inverted_cdf"))
