"""By how much a rate must move to explain what was seen, and how far that may be off: for the model and for the data.

Reads the over-shares of segments; writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import ndtri, stdtrit

from judging.slo_observed import Floats

#: Shifts of ln(rate) are tried in steps finer than the half per cent that a search can resolve, this far to each side.
STEP = 0.0025
FURTHEST = 140

#: Over-shares of the segments, were the rate at the SLO exp(step * STEP) times what is assumed.
Expected = Callable[[int], Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """ln of how much higher than assumed the rate at the SLO is."""

    value: float
    error: float  # its standard error, from segment to segment; inf = nothing was over, or in a single segment
    segments: int

    def half_width(self, alpha: float, *further: float) -> float:
        """Of the interval at 1 - alpha, with independent standard errors that come on top."""
        spread = float(stdtrit(self.segments - 1, 1 - alpha / 2)) * self.error
        return math.hypot(spread, *(float(ndtri(1 - alpha / 2)) * error for error in further))


def explain(expected: Expected, seen: Floats) -> Shift | None:
    """The shift at which the expected over-shares add up to those seen; None if none within range does.

    No share is divided by a slope, so it may be 0 or far from what was allowed. The standard error is the jackknife's,
    leaving out one segment at a time (Tukey 1958), on the scale of ln(rate) where bursts do not make it lopsided.
    """
    whole = _root(lambda step: float((seen - expected(step)).sum()))
    if whole is None:
        return None
    rest = [_root(partial(_without, expected, seen, left_out)) for left_out in range(seen.size)]
    found = np.array([shift for shift in rest if shift is not None])
    if found.size < seen.size or np.count_nonzero(seen) < 2:
        return Shift(value=whole, error=math.inf, segments=seen.size)
    error = math.sqrt((seen.size - 1) * float(found.var()))
    return Shift(value=whole, error=error, segments=seen.size)


def _without(expected: Expected, seen: Floats, left_out: int, step: int) -> float:
    return float(np.delete(seen - expected(step), left_out).sum())


def _root(rising: Callable[[int], float]) -> float | None:
    """The shift where it passes zero, nearest to none; the middle of where it is zero; None if nowhere in range."""
    outwards = sorted(range(-FURTHEST, FURTHEST), key=lambda step: abs(step + 0.5))
    first = next((step for step in outwards if rising(step) <= 0 <= rising(step + 1)), None)
    if first is None:
        return None
    low, high = rising(first), rising(first + 1)
    return (first + (-low / (high - low) if high > low else 0.5)) * STEP


def correlation(seen: Floats, foreseen: Floats) -> float:
    """Pearson's; 0 where either does not vary."""
    if np.ptp(seen) == 0 or np.ptp(foreseen) == 0:
        return 0.0
    return float(np.corrcoef(seen, foreseen)[0, 1])
