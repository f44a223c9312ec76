"""How far a rate may be off: t intervals over the batch means of a stretch, or over server starts.

Reads completion instants or rates, writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit  # Student's t quantile; scipy.stats takes a second to import

from brim.records import Window
from judging.edges import Counts, Nanoseconds, rates, whole_batch_edges
from judging.rows import Rows
from judging.tolerances import CONFIDENCE, INTERVAL_MIN_BATCHES, SEGMENTS, STARTS_LEAST
from judging.windows import answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A fresh stretch of one load: sorted completions with their items, between two edges of its windows."""

    done_ns: Nanoseconds
    items: Counts
    start_ns: int
    end_ns: int
    batches: float

    @property
    def period_ns(self) -> int:
        """From batch to batch."""
        return max(1, round((self.end_ns - self.start_ns) / self.batches))


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Items a second with their 95% interval, and what it generalises to."""

    mean: float
    low: float
    high: float
    kind: Literal["within_run", "between_starts"]
    samples: tuple[float, ...]  # the batch means, or the starts' means

    @property
    def bounds(self) -> tuple[float, float]:
        return (self.low, self.high)


def stretch(rows: Rows, windows: Sequence[Window], period_ns: int) -> Stretch:
    """The stretch that neighbouring windows of one load cover; `rows` are those of the load, by completion.

    Without statistics the batches are taken to be `period_ns` apart.
    """
    done_ns, items = answered(rows)
    start_ns, end_ns = windows[0].start_ns, windows[-1].end_ns
    known = [w.batches for w in windows if w.batches]
    batches = sum(known) if len(known) == len(windows) else (end_ns - start_ns) / period_ns
    return Stretch(done_ns=done_ns, items=items, start_ns=start_ns, end_ns=end_ns, batches=batches)


def within_run(stretches: Sequence[Stretch]) -> Interval | None:
    """t over ten batch means, or None where the stretches hold fewer than 40 batches together.

    Several stretches of the same point share the ten among them by length (each at least two), so that the
    segments stay long; segments begin and end between two batches. The interval covers noise within these
    loads, not what changes from one server start to the next.
    """
    if sum(stretch.batches for stretch in stretches) < INTERVAL_MIN_BATCHES:
        return None
    length = sum(stretch.end_ns - stretch.start_ns for stretch in stretches)
    samples: list[float] = []
    for stretch in stretches:
        share = (stretch.end_ns - stretch.start_ns) / length
        samples += segment_rates(stretch, max(2, round(SEGMENTS * share)))
    return _t_interval(samples, "within_run") if len(samples) > 1 else None


def between_starts(means: Sequence[float]) -> Interval | None:
    """t over the means of at least three server starts, or None with fewer."""
    return _t_interval(means, "between_starts") if len(means) >= STARTS_LEAST else None


def segment_rates(stretch: Stretch, segments: int) -> list[float]:
    """Items a second in `segments` nearly equal parts of a stretch, cut between batches."""
    near = np.linspace(stretch.start_ns, stretch.end_ns, segments + 1).astype(np.int64)
    inner = whole_batch_edges(stretch.done_ns, near[1:-1], stretch.period_ns)
    inner = inner[(inner > stretch.start_ns) & (inner < stretch.end_ns)]
    edges = np.concatenate(([stretch.start_ns], inner, [stretch.end_ns]))
    return [float(rate) for rate in rates(stretch.done_ns, stretch.items, edges)]


def _t_interval(samples: Sequence[float], kind: Literal["within_run", "between_starts"]) -> Interval:
    mean = float(np.mean(samples))
    half = float(stdtrit(len(samples) - 1, (1 + CONFIDENCE) / 2) * np.std(samples, ddof=1) / len(samples) ** 0.5)
    return Interval(mean=mean, low=mean - half, high=mean + half, kind=kind, samples=tuple(samples))
