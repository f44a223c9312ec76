"""Open loops of a calibration, held against the simulator on the server's own log. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from brim.records import CalibrationRow, Overheads, Variant
from experiments.calibrate.held import Measured, cut
from experiments.calibrate.plan import described, telling
from judging import open_truth, truth
from judging.open_truth import Latencies, Stretch
from judging.windows import Generator
from queueing.batcher import Batcher

#: Of its capacity. Higher, a tenth of a millisecond a batch moves the tail by more than any clock is worth.
SHARES = (0.5, 0.75)
#: What a batch costs in an open loop is measured at a share between them.
BETWEEN = 0.6
#: |error| of a mean that holds: in loads of some seconds it is not as sure as the benchmark's in a minute.
MEAN = 0.02
#: Requests in flight at most, in full loads: far beyond what waits at these shares.
OUTSTANDING = 4
#: Who tells when a request was meant to be sent. perf_analyzer does not: its latencies count from when it sent.
GENERATORS: tuple[Generator, ...] = ("locust", "loadgen")


def frozen(variant: Variant, closed: Mapping[int, Measured]) -> Overheads | None:
    """What a batch costs beyond its logged time, from these closed loops by concurrency; None if they do not say."""
    stretches = [_stretch(closed.get(n), n) for n in telling(variant)]
    alone, pairs, full = stretches
    if alone is None or pairs is None or full is None:
        return None
    return open_truth.overheads(alone, pairs, full)


def frozen_open(variant: Variant, load: Measured | None) -> Overheads | None:
    """The same from an open loop, which is not judged; None if it came to nothing."""
    return None if load is None else open_truth.overheads_open(load.log, load.rows, Batcher.of(variant.config))


def capacity(variant: Variant, closed: Mapping[int, Measured]) -> float | None:
    """Items a second at full batches, by the log."""
    full = _stretch(closed.get(variant.config.full), variant.config.full)
    if full is None:
        return None
    return truth.full_rate(full.log, full.start_ns, full.end_ns, variant.config.max_batch)


def rows_of(
    variant: Variant, generator: Generator, share: float, frozen: Overheads, measured: Measured | None
) -> list[CalibrationRow]:
    """Mean and 99th percentile from the intended time, against the simulator fed with what was sent and logged."""
    found, true = None, None
    if measured is not None:
        found = open_truth.measured(measured.rows)
        true = open_truth.foreseen(measured.rows, measured.log, Batcher.of(variant.config), frozen)
    bounds = Latencies(mean=MEAN, p99=open_truth.P99)
    return [
        CalibrationRow(
            server=described(variant), quantity=f"{name} latency at {share:.0%} of capacity, ms", generator=generator,
            truth=getattr(true, name, None), measured=getattr(found, name, None), bound=getattr(bounds, name),
        )
        for name in ("mean", "p99")
    ]  # fmt: skip


def _stretch(measured: Measured | None, concurrency: int) -> Stretch | None:
    window = cut(measured, concurrency) if measured is not None else None
    if measured is None or window is None or window.latency_ms is None:
        return None
    return Stretch(
        log=measured.log, start_ns=window.start_ns, end_ns=window.end_ns, latency_ms=window.latency_ms.mean
    )  # fmt: skip
