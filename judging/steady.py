"""Where a load's record becomes steady: MSER-5 over all of it, and whether its two halves agree.

Reads completion instants and items, writes nothing. The statistic is MSER-5 (K. P. White and others); bins,
end guard and the test of the halves are this project's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from judging.edges import Counts, Nanoseconds, counted, rates, whole_batch_edge, whole_batch_edges
from judging.tolerances import (
    STEADY_BIN_S,
    STEADY_BINS,
    STEADY_BINS_LEAST,
    STEADY_END_GUARD,
    STEADY_GROUP,
    STEADY_HALVES,
    STEADY_RESOLUTION,
    STEADY_SHORT_WARMUP_SHARE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """What precedes `from_ns` is warm-up; `halves` is how much faster the second half was (0.02 = 2%)."""

    from_ns: int
    unstable: bool
    halves: float
    bins: int
    reasons: tuple[str, ...] = ()


def steady(done_ns: Nanoseconds, items: Counts, *, start_ns: int, end_ns: int, period_ns: int) -> Steady:
    """Judge the completions (sorted) between the start of a load and the moment its sending stopped.

    `end_ns` must not include the drain, whose falling rate is no steady state; `period_ns` is the time from
    batch to batch. At most the first half is taken as warm-up, so that an unstable record has windows to
    keep, too. One too short for MSER-5 counts as steady only if the halves of what follows its first fifth agree.
    """
    inside = slice(*np.searchsorted(done_ns, (start_ns, end_ns), side="right"))
    done_ns, items = done_ns[inside], items[inside]
    if done_ns.size == 0:
        return Steady(from_ns=end_ns, unstable=True, halves=0.0, bins=0, reasons=("nothing was answered",))
    stop_ns = whole_batch_edge(done_ns, int(done_ns[-1]) - period_ns, period_ns)
    bin_ns = max(round(STEADY_BIN_S * 1e9), period_ns)
    groups = (stop_ns - start_ns) // (bin_ns * STEADY_GROUP)
    n_bins = groups * STEADY_GROUP
    if n_bins < STEADY_BINS_LEAST:
        return _short(done_ns, items, start_ns, stop_ns, period_ns, n_bins)
    values = bins(done_ns, items, start_ns=start_ns, end_ns=stop_ns, count=n_bins, period_ns=period_ns)
    z = values.reshape(groups, STEADY_GROUP).mean(axis=1)
    statistic = mser(z, least_variance=float(STEADY_RESOLUTION * z.mean()) ** 2)
    late = 2 * int(np.argmin(statistic)) >= groups
    halves = second_half_gain(done_ns, items, start_ns, stop_ns, period_ns)
    unstable = late and abs(halves) > STEADY_HALVES
    # A minimum in the second half is chance where the halves agree, and no warm-up's end where they do not.
    cut = int(np.argmin(statistic[: groups // 2 + 1]))
    reasons = [f"judged on {n_bins} bins, fewer than {STEADY_BINS}"] if n_bins < STEADY_BINS else []
    if unstable:
        reasons.append(f"no steady state: the rate still changed at the end, second half {halves:+.1%}")
    from_ns = start_ns + round(cut * (stop_ns - start_ns) / groups)
    return Steady(from_ns=from_ns, unstable=unstable, halves=halves, bins=n_bins, reasons=tuple(reasons))


def first_fifth(state: Steady, start_ns: int, end_ns: int) -> Steady:
    """The same judgement with a fixed warm-up, for a record that could not go on until a window fits behind its cut."""
    from_ns = start_ns + round(STEADY_SHORT_WARMUP_SHARE * (end_ns - start_ns))
    return replace(state, from_ns=from_ns, reasons=(*state.reasons, "its first fifth was taken as warm-up"))


def bins(
    done_ns: Nanoseconds, items: Counts, *, start_ns: int, end_ns: int, count: int, period_ns: int
) -> npt.NDArray[np.float64]:
    """Items in each of `count` equal bins from `start_ns` to `end_ns`, which is a whole-batch edge.

    A batch that straddles a bin's edge is shared out by time between whole-batch edges: counted where it
    ends, a steady server's bins of one batch period would hold 0, 1 or 2 batches by chance.
    """
    edges_ns = np.linspace(start_ns, end_ns, count + 1).astype(np.int64)
    inner = whole_batch_edges(done_ns, edges_ns[1:-1], period_ns)
    knots = np.concatenate(([start_ns], inner[(inner > start_ns) & (inner < end_ns)], [end_ns]))
    total = np.concatenate(([0], np.cumsum(counted(done_ns, items, knots))))
    shared: npt.NDArray[np.float64] = np.diff(np.interp(edges_ns - start_ns, knots - start_ns, total))
    return shared


def mser(z: npt.NDArray[np.float64], *, least_variance: float = 0.0) -> npt.NDArray[np.float64]:
    """MSER's statistic for d = 0 … k - 5: the squared standard error of the mean of what follows the first d.

    sum over j > d of ((Z_j - mean of Z_j, j > d)^2 + least_variance) / (k - d)^2, by sums from the end. The
    statistic has no scale: without a least variance the least ripple of a steady server decides where to cut.
    """
    k = z.size
    centred = z - z.mean()  # the sums of squares then lose no digits
    left = k - np.arange(k)
    tail = np.cumsum(centred[::-1])[::-1]
    squares = np.cumsum(centred[::-1] ** 2)[::-1]
    statistic: npt.NDArray[np.float64] = ((squares - tail**2 / left) + least_variance * left) / left**2
    return statistic[: max(1, k - STEADY_END_GUARD + 1)]


def second_half_gain(done_ns: Nanoseconds, items: Counts, start_ns: int, end_ns: int, period_ns: int) -> float:
    """Rate of the second half over that of the first, less one; both begin and end between two batches."""
    first = whole_batch_edge(done_ns, start_ns, period_ns)
    middle = whole_batch_edge(done_ns, first + (end_ns - first) // 2, period_ns)
    if not first < middle < end_ns:
        return 0.0
    before, after = rates(done_ns, items, (first, middle, end_ns))
    return float(after / before - 1) if before else float("inf")


def _short(done_ns: Nanoseconds, items: Counts, start_ns: int, end_ns: int, period_ns: int, n_bins: int) -> Steady:
    from_ns = start_ns + round(STEADY_SHORT_WARMUP_SHARE * (end_ns - start_ns))
    halves = second_half_gain(done_ns, items, from_ns, end_ns, period_ns)
    unstable = abs(halves) > STEADY_HALVES
    reasons = [f"{n_bins} bins of a batch each are too few for MSER-5: the first fifth was taken as warm-up"]
    if unstable:
        reasons.append(f"no steady state shown: second half {halves:+.1%}")
    return Steady(from_ns=from_ns, unstable=unstable, halves=halves, bins=n_bins, reasons=tuple(reasons))
