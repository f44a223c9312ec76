"""What a generator measured, held against what the server logged in the same time. Pure.

The generator's side is what Brim tells its users: rates between whole-batch edges, latencies of the rows, batch sizes
by Triton's statistics. The truth is judging.truth's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brim.records import CalibrationRow, LoadPoint, StatsRead, Window
from experiments.calibrate.plan import Cell, Quantity
from judging import truth
from judging.edges import whole_batch_edge
from judging.rows import Rows
from judging.truth import Log
from judging.windows import Generator, answered, batch_period_ns, server_delta, window

#: |error| that holds. A capacity is what servers are bought by; the rest is within what a busy machine's clocks allow.
CAPACITY, LADDER = 0.01, 0.02
#: Between an answer and the next request a client takes some tenths of a millisecond, more on a busy machine; the log
#: cannot tell them from latency, and where a batch takes 5 ms they are no small part of it.
BETWEEN_MS = 0.3
#: The first quarter of a load is warm-up: connections open in its first half second.
WARM_UP = 0.25

UNITS: dict[str, str] = {"capacity": "items/s", "throughput": "items/s", "latency": "ms", "batch": "items"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A generator's own figure, and the time that it speaks of."""

    items_per_s: float
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One load by one generator: its rows (by completion), the statistics beside it, and the server's log."""

    generator: Generator
    rows: Rows
    reads: tuple[StatsRead, ...]
    log: Log
    own: Own | None = None


def rows_of(cell: Cell, measured: Measured) -> list[CalibrationRow]:
    """A row for each quantity of the cell, and one for the generator's own figure if it gives one."""
    judged = cut(measured, cell.concurrency)
    rows = [_row(cell, quantity, measured, judged) for quantity in cell.quantities]
    if measured.own is not None:
        own = measured.own
        ended = measured.log.ended(own.start_ns, own.end_ns)
        true = float(ended[:, 2].sum()) / ((own.end_ns - own.start_ns) / 1e9)
        rows.append(_made(cell, "throughput", measured, true, own.items_per_s, LADDER, "by its own account, "))
    return rows


def nothing(cell: Cell, generator: Generator) -> list[CalibrationRow]:
    """The rows of a load that came to nothing."""
    return [
        CalibrationRow(
            server=cell.server, quantity=words(cell, quantity), generator=generator, truth=None, measured=None,
            bound=_bound(quantity, None),
        )
        for quantity in cell.quantities
    ]  # fmt: skip


def batches(measured: Measured, concurrency: int) -> int:
    """How many executions the judged stretch holds."""
    judged = cut(measured, concurrency)
    return 0 if judged is None else len(measured.log.ended(judged.start_ns, judged.end_ns))


def cut(measured: Measured, concurrency: int) -> Window | None:
    """The stretch behind the warm-up, between two completions that each ended a batch; None if there is none."""
    done_ns, _ = answered(measured.rows)
    if not done_ns.size:
        return None
    first_ns, last_ns = int(measured.rows["sent_ns"].min()), int(measured.rows["sent_ns"].max())
    from_ns = first_ns + round(WARM_UP * (last_ns - first_ns))
    period_ns = batch_period_ns(measured.reads, measured.rows, from_ns=from_ns, until_ns=last_ns)
    start_ns = whole_batch_edge(done_ns, from_ns, period_ns)
    end_ns = whole_batch_edge(done_ns, last_ns - period_ns, period_ns)
    if end_ns <= start_ns:
        return None
    return window(
        measured.rows, start_ns=start_ns, end_ns=end_ns, generator=measured.generator,
        point=LoadPoint(concurrency=concurrency),
    )  # fmt: skip


def _row(cell: Cell, quantity: Quantity, measured: Measured, judged: Window | None) -> CalibrationRow:
    if quantity == "batch":
        true, found = _batch(measured, judged)
    elif judged is None:
        true, found = None, None
    elif quantity == "latency":
        true = truth.latency_ms(
            measured.log, judged.start_ns, judged.end_ns, requests=cell.concurrency, items_per_request=1
        )
        whole = judged.latency_ms is not None and judged.not_ok == 0
        found = judged.latency_ms.mean if judged.latency_ms and whole else None
    elif quantity == "capacity":
        true = truth.full_rate(measured.log, judged.start_ns, judged.end_ns, cell.variant.config.max_batch)
        found = judged.items_per_s
    else:
        true, found = truth.rate(measured.log, judged.start_ns, judged.end_ns), judged.items_per_s
    return _made(cell, quantity, measured, true, found, _bound(quantity, true))


def _batch(measured: Measured, judged: Window | None) -> tuple[float | None, float | None]:
    """Between the first read behind the warm-up and the last one of all: the server is idle by then."""
    inside = [read for read in measured.reads if judged is not None and read.middle_ns >= judged.start_ns]
    if len(inside) < 2:
        return None, None
    told = server_delta(inside[0], inside[-1])
    return truth.mean_batch(measured.log, inside[0].middle_ns, inside[-1].middle_ns), told.effective_batch


def _made(
    cell: Cell, quantity: Quantity, measured: Measured, true: float | None, found: float | None, bound: float,
    how: str = "",
) -> CalibrationRow:  # fmt: skip
    return CalibrationRow(
        server=cell.server, quantity=words(cell, quantity, how), generator=measured.generator, truth=true,
        measured=found, bound=bound,
    )  # fmt: skip


def words(cell: Cell, quantity: Quantity, how: str = "") -> str:
    """`capacity at 16 in flight, items/s`."""
    return f"{quantity} {how}at {cell.concurrency} in flight, {UNITS[quantity]}"


def _bound(quantity: Quantity, true: float | None) -> float:
    if quantity == "latency" and true:
        return max(LADDER, BETWEEN_MS / true)
    return CAPACITY if quantity == "capacity" else LADDER


def known_rate(cell: Cell, rows: Sequence[CalibrationRow]) -> float | None:
    """Items a second there, as a generator has measured them before; None if none has."""
    rate = words(cell, cell.quantities[0])
    known = [row.measured for row in rows if (row.server, row.quantity) == (cell.server, rate) and row.measured]
    return known[-1] if known else None


def all_hold(rows: Sequence[CalibrationRow]) -> bool:
    """Whether every figure was right; nothing measured is not right."""
    return bool(rows) and all(row.holds for row in rows)
