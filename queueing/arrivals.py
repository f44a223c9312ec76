"""When requests arrive: the laws of an open loop and recorded traces, as int64 ns from the start, sorted.

Reads traces, writes nothing. The same seed gives the same arrivals, a longer run or another rate the same pattern.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brim.errors import UsageError
from brim.records import Arrivals, LoadPoint

Offsets = NDArray[np.int64]

MOST_ARRIVALS = 100_000_000  # 800 MB of offsets: beyond it somebody mistyped a rate or a duration
LEAST_CV, MOST_CV = 0.01, 100.0  # of the gaps; below it is constant
LONGEST_NS = 2**62  # 146 years; twice that is the last nanosecond that an int64 can tell
LEAST_GAPS, SPARE = 64, 1.1  # drawn at a time: a tenth more than expected, so that one draw nearly always does


def constant(rate_per_s: float, seconds: float) -> Offsets:
    """Equally spaced, the first at the start."""
    _check(rate_per_s, seconds)
    return _within(np.arange(int(rate_per_s * seconds) + 1) / rate_per_s, seconds)


def poisson(rate_per_s: float, seconds: float, seed: int) -> Offsets:
    """Memoryless: exponential gaps."""
    random = np.random.default_rng(seed)
    return _by_gaps(random.standard_exponential, rate_per_s, seconds)


def gamma(rate_per_s: float, cv: float, seconds: float, seed: int) -> Offsets:
    """Gamma-distributed gaps of coefficient of variation `cv`: 1 is Poisson, above it bursts."""
    if not LEAST_CV <= cv <= MOST_CV:
        raise UsageError(f"cv is {cv}, must lie between {LEAST_CV:g} and {MOST_CV:g}")
    random = np.random.default_rng(seed)
    return _by_gaps(lambda size: cv**2 * random.standard_gamma(cv**-2, size), rate_per_s, seconds)


def highest_random_rate(most_per_s: float) -> float:
    """The highest rate of Poisson arrivals of which hardly any second has more than `most_per_s`, >= 20 a second.

    Three standard deviations below: seconds that overlap all count, and with two every third load of 40 s has 1% of its
    requests in seconds that are too full. Below 20 a second nothing but much lower rates would do.
    """
    return max(most_per_s / 4, most_per_s - 3 * math.sqrt(most_per_s))


def by_law(law: Arrivals | None, rate_per_s: float, seconds: float, *, cv: float | None, seed: int | None) -> Offsets:
    """The arrivals of a law that has a name: constant, poisson or gamma."""
    if law == "constant":
        return constant(rate_per_s, seconds)
    if law == "poisson":
        return poisson(rate_per_s, seconds, seed or 0)
    if law == "gamma":
        return gamma(rate_per_s, cv or 0.0, seconds, seed or 0)
    raise UsageError(f"no law gives the arrivals of {law!r}: a trace is read from its file")


def offsets_of(point: LoadPoint, seconds: float) -> Offsets:
    """The arrivals of an open-loop point."""
    return by_law(point.arrivals, point.rate_per_s or 0.0, seconds, cv=point.cv, seed=point.seed)


def read_trace(file: Path) -> Offsets:
    """Recorded arrivals, counted from the first: a text file with one timestamp in seconds a line, or .npy.

    A .npy of integers holds ns, one of floats seconds.
    """
    stamps = _read_npy(file) if file.suffix == ".npy" else _read_text(file)
    if stamps.size == 0:
        raise UsageError(f"trace {file} is empty: it needs one timestamp in seconds a line")
    wrong = np.flatnonzero(~np.isfinite(stamps) | (stamps < 0))
    if wrong.size:
        raise UsageError(f"trace {file}: timestamp {wrong[0] + 1} is {stamps[wrong[0]]}, must be a number >= 0")
    back = np.flatnonzero(np.diff(stamps) < 0)
    if back.size:
        raise UsageError(f"trace {file}: timestamp {back[0] + 2} is earlier than the one before it; sort the trace")
    since = stamps - stamps[0]
    if since[-1] >= (LONGEST_NS if stamps.dtype.kind == "i" else LONGEST_NS / 1e9):
        raise UsageError(f"trace {file}: its last timestamp lies over a century behind its first; are they seconds?")
    return since if stamps.dtype.kind == "i" else _nanoseconds(since)


def speed_up(offsets: Offsets, factor: float) -> Offsets:
    """The same pattern `factor` times as fast."""
    if not 0 < factor < float("inf"):
        raise UsageError(f"speed-up is {factor}, must be > 0")
    return (offsets / factor).astype(np.int64)


def _by_gaps(draw: Callable[[int], NDArray[np.float64]], rate_per_s: float, seconds: float) -> Offsets:
    """Sums of gaps of mean 1, scaled to the rate, until the end is passed."""
    _check(rate_per_s, seconds)
    size = int(SPARE * rate_per_s * seconds) + LEAST_GAPS
    gaps = draw(size)
    while gaps.sum() < rate_per_s * seconds:
        if gaps.size > MOST_ARRIVALS:
            raise UsageError(f"more than {MOST_ARRIVALS} arrivals: lower the rate, the duration or the cv")
        gaps = np.concatenate([gaps, draw(size)])
    return _within(np.cumsum(gaps) / rate_per_s, seconds)


def _within(at_s: NDArray[np.float64], seconds: float) -> Offsets:
    offsets = _nanoseconds(at_s)
    return offsets[: np.searchsorted(offsets, seconds * 1e9)]


def _nanoseconds(at_s: NDArray[np.float64]) -> Offsets:
    return np.rint(at_s * 1e9).astype(np.int64)


def _check(rate_per_s: float, seconds: float) -> None:
    for name, value in (("rate", rate_per_s), ("duration", seconds)):
        if not 0 < value < float("inf"):
            raise UsageError(f"{name} is {value}, must be > 0")
    if rate_per_s * seconds > MOST_ARRIVALS:
        raise UsageError(
            f"{rate_per_s:g}/s for {seconds:g} s are more than {MOST_ARRIVALS} arrivals: lower one of them"
        )


def _read_npy(file: Path) -> NDArray[np.float64] | Offsets:
    try:
        with file.open("rb") as stream:  # numpy.load would take archives, too
            stamps = np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"trace {file} cannot be read: {error}") from error
    if stamps.ndim != 1 or stamps.dtype.kind not in "iuf":
        raise UsageError(f"trace {file} holds {stamps.dtype} in {stamps.ndim} dimensions, must be a list of numbers")
    return stamps.astype(np.int64) if stamps.dtype.kind in "iu" else stamps.astype(np.float64)


def _read_text(file: Path) -> NDArray[np.float64]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"trace {file} cannot be read: {error}") from error
    stamps = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            stamps.append(float(line))
        except ValueError:
            raise UsageError(f"trace {file}, line {number}: {line[:40]!r} is not a timestamp in seconds") from None
    return np.array(stamps, dtype=np.float64)
