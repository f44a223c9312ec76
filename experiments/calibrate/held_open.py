"""Open loops of a calibration, held against the simulator on the server's own log. Pure."""

from __future__ import annotations

from brim.records import CalibrationRow, Overheads, Variant
from experiments.calibrate.held import Measured, cut
from experiments.calibrate.plan import described
from judging import open_truth, truth
from judging.open_truth import Latencies
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


def frozen_open(variant: Variant, load: Measured | None) -> Overheads | None:
    """What a batch costs beyond its logged time, from an open loop that is not judged.

    None if that came to nothing, a request of it did not end well, or none waited behind a batch.
    """
    return None if load is None else open_truth.overheads_open(load.log, load.rows, Batcher.of(variant.config))


def capacity(variant: Variant, full: Measured | None) -> float | None:
    """Items a second by the log of the closed loop with two full batches an instance; None if they were not full."""
    judged = None if full is None else cut(full, variant.config.full)
    if full is None or judged is None:
        return None
    return truth.full_rate(full.log, judged.start_ns, judged.end_ns, variant.config.max_batch)


def rows_of(
    variant: Variant, generator: Generator, share: float, frozen: Overheads | None, measured: Measured | None
) -> list[CalibrationRow]:
    """Mean and 99th percentile from the intended time, against the simulator fed with what was sent and logged.

    Without overheads or without a load: rows of no figure, which do not hold.
    """
    found, true = None, None
    if frozen is not None and measured is not None:
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
