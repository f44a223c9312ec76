"""Whether a server keeps up with an open loop: what is due and not yet done must not grow.

Reads the rows of a load and the statistics beside it, writes nothing. Samples of a queue are correlated, so the
slope's standard error is widened by the residuals' first autocorrelation, (1 + r) / (1 - r) of the variance (AR(1)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr  # Student's t; scipy.stats takes a second to import

from brim.records import StatsRead, Status
from judging.edges import Nanoseconds
from judging.rows import Rows
from judging.steady import Steady
from judging.tolerances import (
    BACKLOG_P,
    BACKLOG_RATE,
    BACKLOG_SAMPLES,
    INSIDE,
    PLACES_FULL,
    STEADY_SHORT_WARMUP_SHARE,
    UNSENT_SHARE,
)

#: How a reason begins that is none of the server's.
CLIENT_LATE = "the client does not keep up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How fast the backlog grows, in requests a second, and how likely that is by chance."""

    per_s: float
    p_value: float


def growth(intended_ns: Nanoseconds, done_ns: Nanoseconds, *, start_ns: int, end_ns: int) -> Growth:
    """The slope of the number of requests that are due and not done, by least squares; one-sided."""
    at = np.linspace(start_ns, end_ns, BACKLOG_SAMPLES)
    waiting = np.searchsorted(np.sort(intended_ns), at, "right") - np.searchsorted(np.sort(done_ns), at, "right")
    seconds = (at - at.mean()) / 1e9
    squares = float(seconds @ seconds)
    slope = float(seconds @ waiting) / squares
    left = waiting - waiting.mean() - slope * seconds
    variance = float(left @ left)
    if variance == 0.0:
        return Growth(per_s=slope, p_value=0.0 if slope > 0 else 1.0)
    r = min(max(float(left[1:] @ left[:-1]) / variance, 0.0), 0.95)
    error = (variance / (BACKLOG_SAMPLES - 2) / squares * (1 + r) / (1 - r)) ** 0.5
    return Growth(per_s=slope, p_value=float(1 - stdtr(BACKLOG_SAMPLES - 2, slope / error)))


def open_steady(
    rows: Rows, reads: Sequence[StatsRead], *, start_ns: int, end_ns: int, slots: int, unsent: int
) -> Steady:
    """An open loop's first fifth is warm-up; it is unstable if its backlog grows, or requests were never sent.

    MSER-5 judges a rate, and here that is the sender's. `slots`: requests in flight at most.
    """
    from_ns = start_ns + round(STEADY_SHORT_WARMUP_SHARE * (end_ns - start_ns))
    if end_ns <= start_ns:
        return Steady(from_ns=from_ns, unstable=True, halves=0.0, bins=0, reasons=("one request tells of no rate",))
    grown = _grown(rows["intended_ns"], rows["done_ns"], start_ns, from_ns, end_ns)
    due = len(rows) + unsent
    left = f"{unsent} of {due} requests were due and never sent" if unsent > UNSENT_SHARE * due else ""
    if not grown and not left:
        return Steady(from_ns=from_ns, unstable=False, halves=0.0, bins=0)
    late = _client_late(rows, reads, start_ns=start_ns, from_ns=from_ns, end_ns=end_ns, slots=slots)
    if late:
        reasons = [late, left]
    else:
        waits = f"the server does not keep up: {grown:.3g} more requests wait each second" if grown else ""
        reasons = [waits, f"{left}: too many were in flight already" if left else ""]
    told = tuple(filter(None, reasons))
    return Steady(from_ns=from_ns, unstable=True, halves=0.0, bins=0, reasons=told)


def _grown(begun_ns: Nanoseconds, ended_ns: Nanoseconds, start_ns: int, from_ns: int, end_ns: int) -> float:
    """By how many a second the number of those begun and not ended grows; 0 where that may be chance, or is little."""
    found = growth(begun_ns, ended_ns, start_ns=from_ns, end_ns=end_ns)
    arriving_per_s = len(begun_ns) / ((end_ns - start_ns) / 1e9)
    return found.per_s if found.p_value < BACKLOG_P and found.per_s > BACKLOG_RATE * arriving_per_s else 0.0


def _client_late(
    rows: Rows, reads: Sequence[StatsRead], *, start_ns: int, from_ns: int, end_ns: int, slots: int
) -> str:
    """Why it is the sending that lags, and by how much; nothing where the server may be what keeps it.

    The server is to blame if requests pile up behind the sending, or hold all places and spend their time in it.
    """
    sent_ns, done_ns = rows["sent_ns"], rows["done_ns"]
    lag_ns = (sent_ns - rows["intended_ns"])[sent_ns >= from_ns]
    lag_p99_ns = float(np.percentile(lag_ns, 99, method="inverted_cdf")) if lag_ns.size else 0.0
    if lag_p99_ns < UNSENT_SHARE * (end_ns - start_ns) or _grown(sent_ns, done_ns, start_ns, from_ns, end_ns):
        return ""
    told = f"{CLIENT_LATE}: it sent {lag_p99_ns / 1e6:,.0f} ms late (p99)"
    advice = "add --senders, or lower the rate"
    at_ns = sent_ns[(sent_ns >= from_ns) & (sent_ns - rows["intended_ns"] >= lag_p99_ns / 2)]  # of the late ones
    taken = np.searchsorted(np.sort(sent_ns), at_ns, "right") - np.searchsorted(np.sort(done_ns), at_ns, "right")
    in_flight = float(np.median(taken))
    if in_flight < PLACES_FULL * slots:
        return f"{told}, with {in_flight:.0f} of {slots} places in flight taken; {advice}"
    server_ms, whole_ms = _inside(rows, reads, from_ns, end_ns) or (0.0, 0.0)
    if server_ms < INSIDE * whole_ms:
        return f"{told}; the server had a request for {server_ms:.3g} of its {whole_ms:.3g} ms in flight; {advice}"
    return ""


def _inside(rows: Rows, reads: Sequence[StatsRead], from_ns: int, end_ns: int) -> tuple[float, float] | None:
    """Milliseconds of a request by the server's own clock, and by the client's; None where either says nothing."""
    within = [read for read in reads if from_ns <= read.middle_ns <= end_ns]
    served = within[-1].success_count - within[0].success_count if within else 0
    if served <= 0:
        return None
    at_ns = rows["done_ns"]
    answered = rows[(rows["status"] == Status.OK) & (at_ns > within[0].middle_ns) & (at_ns <= within[-1].middle_ns)]
    if not len(answered):
        return None
    server_ms = (within[-1].request_ns - within[0].request_ns) / served / 1e6
    return server_ms, float((answered["done_ns"] - answered["sent_ns"]).mean()) / 1e6
