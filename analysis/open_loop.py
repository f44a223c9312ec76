"""What an open-loop load shows: offered against answered, latency from the intended time and from the actual send.

Reads the rows of one load and its schedule; writes nothing. Every percentile is one of raw rows, an observed latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from brim.records import Load, Slo, StatsRead, Status
from judging.backlog import open_steady
from judging.edges import Nanoseconds
from judging.rows import Rows
from judging.tolerances import FAILING

#: A silence of so many median latencies, with at least this share of the requests due in it, is told as a stall:
#: shorter ones are batches, and rarer ones no percentile would show.
STALL_MEDIANS, STALL_SHARE = 4.0, 0.002
#: Parts of the time axis, and the requests that each should hold.
_MOST_BINS, _BIN_REQUESTS = 120, 5
#: Late and lost requests that are kept to be drawn, each the worst.
_MOST_MARKS = 300
#: Without an SLO, the slowest hundredth counts as late.
_LATE = 99.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Milliseconds over the answered requests; timed-out ones are censored at their limit."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p99_5: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """The longest time in which requests waited and none was answered."""

    at_s: float  # from the start of the load
    seconds: float
    due: int  # requests that were to be sent in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of the load by intended time, for the chart; milliseconds."""

    at_s: float
    p50: float
    most: float
    most_from_sent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedLoop:
    """One open-loop load, summed up; rates in items a second."""

    load: Load
    due: int  # requests, the unsent among them
    seconds: float  # from the first instant to the last arrival
    offered: float
    answered: float  # well, while it was offered
    from_intended: Percentiles | None
    from_sent: Percentiles | None
    lag_p50_ms: float  # sent - intended
    lag_p99_ms: float
    lag_most_ms: float
    stall: Stall | None
    keeps_up: bool
    reasons: tuple[str, ...]  # why it does not
    over_share: float | None  # of all that was due: over the limit, or not answered well; None without a limit
    limit_ms: float | None
    slices: tuple[Slice, ...]
    late: tuple[tuple[float, float], ...]  # s and ms from intended, of what took longer than the limit or the p99
    late_over_ms: float
    lost: tuple[float, ...]  # s, of what was not answered well


def observe(
    load: Load,
    rows: Rows,
    offsets_ns: Nanoseconds | None,
    slo: Slo | None = None,
    reads: Sequence[StatsRead] = (),
) -> ObservedLoop | None:
    """What came of the load; `rows` are by completion, `reads` of the statistics. None where there are no rows."""
    rows = rows[rows["status"] != Status.CANCELLED]
    if not rows.size:
        return None
    if load.ended != "finished" and offsets_ns is not None:  # what was to come later was never due
        offsets_ns = offsets_ns[: np.searchsorted(offsets_ns, load.end_ns - load.start_ns, side="right")]
    due_s = (rows["intended_ns"] - load.start_ns) / 1e9
    last_s = float(due_s.max() if offsets_ns is None or not offsets_ns.size else offsets_ns[-1] / 1e9)
    seconds = last_s or float(rows["done_ns"][-1] - load.start_ns) / 1e9  # all due at once: until the last answer
    due = max(len(rows) + load.unsent, 0 if offsets_ns is None else len(offsets_ns))
    timed = (rows["status"] == Status.OK) | (rows["status"] == Status.TIMED_OUT)
    intended_ms, sent_ms = _ms(rows[timed], "intended_ns"), _ms(rows[timed], "sent_ns")
    lag_ms = (rows["sent_ns"] - rows["intended_ns"]) / 1e6
    lag_p50, lag_p99 = np.percentile(lag_ms, (50, 99), method="inverted_cdf")
    ok_items = rows["items"][(rows["status"] == Status.OK) & (rows["done_ns"] <= load.start_ns + last_s * 1e9)]
    limit_ms = slo.limit_ms if slo else None
    first_ns, last_ns = int(rows["sent_ns"].min()), int(rows["sent_ns"].max())
    steady = open_steady(
        rows, reads, start_ns=first_ns, end_ns=max(last_ns, first_ns + 1), slots=load.point.slots, unsent=load.unsent
    )
    badly = _badly(load)
    threshold = limit_ms if limit_ms is not None else _percentile(intended_ms, _LATE)
    return ObservedLoop(
        load=load,
        due=due,
        seconds=seconds,
        offered=due * load.point.items_per_request / seconds,
        answered=float(ok_items.sum()) / seconds,
        from_intended=percentiles(intended_ms),
        from_sent=percentiles(sent_ms),
        lag_p50_ms=float(lag_p50),
        lag_p99_ms=float(lag_p99),
        lag_most_ms=float(lag_ms.max()),
        stall=_stall(load, rows, intended_ms, due),
        keeps_up=not steady.unstable and not badly,
        reasons=(*badly, *steady.reasons),
        over_share=None if limit_ms is None else _over(rows, limit_ms, due),
        limit_ms=limit_ms,
        slices=_slices(due_s[timed], intended_ms, sent_ms, seconds),
        late=_late(due_s[timed], intended_ms, threshold),
        late_over_ms=threshold,
        lost=_lost(due_s[rows["status"] != Status.OK]),
    )


def _badly(load: Load) -> tuple[str, ...]:
    """Why nobody keeps up with the load, however short its queue was."""
    ends = [] if load.ended == "finished" else [f"the load ended early: {load.ended.replace('_', ' ')}"]
    lost = load.rejected + load.timed_out + load.failed
    share = lost / max(1, load.ok + lost)
    return (*ends, *([f"{share:.1%} of the requests were not answered well"] if share > FAILING else []))


def percentiles(ms: Floats) -> Percentiles | None:
    """Rank ceil(n p), nothing interpolated; None of nothing."""
    if not ms.size:
        return None
    p50, p90, p95, p99, p99_5 = np.percentile(ms, (50, 90, 95, 99, 99.5), method="inverted_cdf")
    return Percentiles(
        mean=float(ms.mean()), p50=float(p50), p90=float(p90), p95=float(p95), p99=float(p99), p99_5=float(p99_5),
        most=float(ms.max()),
    )  # fmt: skip


def _ms(rows: Rows, begin: Literal["intended_ns", "sent_ns"]) -> Floats:
    return (rows["done_ns"] - rows[begin]) / 1e6


def _percentile(ms: Floats, at: float) -> float:
    return float(np.percentile(ms, at, method="inverted_cdf")) if ms.size else 0.0


def _over(rows: Rows, limit_ms: float, due: int) -> float:
    good = (rows["status"] == Status.OK) & (rows["done_ns"] - rows["intended_ns"] <= limit_ms * 1e6)
    return 1 - float(good.sum()) / due


def _stall(load: Load, rows: Rows, intended_ms: Floats, due: int) -> Stall | None:
    """The longest silence while requests waited, if it is long enough to be one; `rows` are by completion."""
    done_ns, intended_ns = rows["done_ns"], rows["intended_ns"]
    # What waits before the answer number i was due at the earliest when the first of it and its successors was.
    waits_from_ns = np.minimum.accumulate(intended_ns[::-1])[::-1]
    begins_ns = np.maximum(waits_from_ns, np.concatenate((done_ns[:1] * 0, done_ns[:-1])))
    longest = int(np.argmax(done_ns - begins_ns))
    begin_ns, end_ns = int(begins_ns[longest]), int(done_ns[longest])
    in_it = int(((intended_ns >= begin_ns) & (intended_ns < end_ns)).sum())
    if (end_ns - begin_ns) / 1e6 <= STALL_MEDIANS * _percentile(intended_ms, 50) or in_it < STALL_SHARE * due:
        return None
    return Stall(at_s=(begin_ns - load.start_ns) / 1e9, seconds=(end_ns - begin_ns) / 1e9, due=in_it)


def _slices(due_s: Floats, intended_ms: Floats, sent_ms: Floats, seconds: float) -> tuple[Slice, ...]:
    """Equal parts of the time; those in which nothing was answered are left out."""
    count = max(1, min(_MOST_BINS, due_s.size // _BIN_REQUESTS))
    which = np.clip((due_s / seconds * count).astype(np.int64), 0, count - 1)
    return tuple(
        Slice(
            at_s=(number + 0.5) * seconds / count,
            p50=_percentile(intended_ms[which == number], 50),
            most=float(intended_ms[which == number].max()),
            most_from_sent=float(sent_ms[which == number].max()),
        )
        for number in np.unique(which).tolist()
    )


def _late(due_s: Floats, intended_ms: Floats, over_ms: float) -> tuple[tuple[float, float], ...]:
    late = np.flatnonzero(intended_ms > over_ms)
    worst = late[np.argsort(intended_ms[late], kind="stable")[::-1][:_MOST_MARKS]]
    return tuple((float(due_s[i]), float(intended_ms[i])) for i in sorted(worst, key=lambda i: float(due_s[i])))


def _lost(due_s: Floats) -> tuple[float, ...]:
    every = max(1, -(-due_s.size // _MOST_MARKS))
    return tuple(float(at) for at in np.sort(due_s)[::every])
