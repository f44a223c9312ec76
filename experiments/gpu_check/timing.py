"""When a stretch of repeats counts as steady, and what is kept of the repeats that follow. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.gpu_check.cells import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long one cell soaks and measures; the defaults are those of a real device."""

    warmup_steps: int = 3  # autotuning, lazy loading; a batch fits only after several runs in a row
    repeat_s: float = 0.02  # shorter steps are repeated to this length, so that launch and event cost vanish
    soak_s: float = 2.0  # at least: clocks settle within a second or two of load
    soak_limit_s: float = 8.0
    repeats: int = 25
    measure_limit_s: float = 8.0  # wins over `repeats`, but never below `fewest_repeats`
    fewest_repeats: int = 5
    loaded_s: float = 0.6  # of further steps behind the last repeat, under which the clocks are read


FLAT_REPEATS = 10
FLAT_SHARE = 0.01


def steps_for(seconds: float, step_s: float) -> int:
    """Whole steps that fill `seconds`: at least one, at most 1000, so that no queue of launches grows."""
    return max(1, min(1000, math.ceil(seconds / step_s))) if step_s > 0 else 1000


def is_flat(repeats_ms: Sequence[float]) -> bool:
    """Whether the medians of the last ten repeats and of the ten before lie within 1% of each other."""
    if len(repeats_ms) < 2 * FLAT_REPEATS:
        return False
    late = statistics.median(repeats_ms[-FLAT_REPEATS:])
    early = statistics.median(repeats_ms[-2 * FLAT_REPEATS : -FLAT_REPEATS])
    return abs(late - early) <= FLAT_SHARE * early


def soaked(repeats_ms: Sequence[float], elapsed_s: float, effort: Effort) -> bool:
    """Whether the soak is over: long enough and flat, or out of its time."""
    return elapsed_s >= effort.soak_limit_s or (elapsed_s >= effort.soak_s and is_flat(repeats_ms))


def measured(repeats: int, elapsed_s: float, effort: Effort) -> bool:
    """Whether enough repeats are in: all of them, or as many as the time allowed."""
    wanted = effort.fewest_repeats if elapsed_s >= effort.measure_limit_s else effort.repeats
    return repeats >= wanted


def summary(repeats_ms: Sequence[float], *, steps: int, soak_s: float, flat: bool) -> Timing:
    """Median, quartiles (inclusive: of these repeats, not of a population) and extremes."""
    q1, median, q3 = statistics.quantiles(repeats_ms, n=4, method="inclusive")
    return Timing(
        median_ms=median,
        min_ms=min(repeats_ms),
        q1_ms=q1,
        q3_ms=q3,
        max_ms=max(repeats_ms),
        repeats=len(repeats_ms),
        steps_per_repeat=steps,
        soak_s=soak_s,
        flat=flat,
    )
