"""Whether a server keeps up with an open loop: what is due and not yet done must not grow.

Reads intended and completion instants, writes nothing. Samples of a queue are correlated, so the slope's standard
error is widened by the residuals' first autocorrelation, (1 + r) / (1 - r) of the variance (an AR(1) process).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr  # Student's t; scipy.stats takes a second to import

from judging.edges import Nanoseconds
from judging.steady import Steady
from judging.tolerances import BACKLOG_P, BACKLOG_RATE, BACKLOG_SAMPLES, STEADY_SHORT_WARMUP_SHARE, UNSENT_SHARE


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


def open_steady(intended_ns: Nanoseconds, done_ns: Nanoseconds, *, start_ns: int, end_ns: int, unsent: int) -> Steady:
    """An open loop's first fifth is warm-up; it is unstable if its backlog grows, or requests were never sent.

    MSER-5 judges a rate, and here that is the sender's.
    """
    from_ns = start_ns + round(STEADY_SHORT_WARMUP_SHARE * (end_ns - start_ns))
    if end_ns <= start_ns:
        return Steady(from_ns=from_ns, unstable=True, halves=0.0, bins=0, reasons=("one request tells of no rate",))
    found = growth(intended_ns, done_ns, start_ns=from_ns, end_ns=end_ns)
    reasons = []
    arriving_per_s = len(intended_ns) / ((end_ns - start_ns) / 1e9)
    if found.p_value < BACKLOG_P and found.per_s > BACKLOG_RATE * arriving_per_s:
        reasons.append(f"the server does not keep up: {found.per_s:.3g} more requests wait each second")
    due = len(intended_ns) + unsent
    if unsent > UNSENT_SHARE * due:
        reasons.append(f"{unsent} of {due} requests were due and never sent: too many were in flight already")
    return Steady(from_ns=from_ns, unstable=bool(reasons), halves=0.0, bins=0, reasons=tuple(reasons))
