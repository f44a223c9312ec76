"""Intervals: one by hand, and how often they cover the truth of seeded servers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from brim.records import LoadPoint
from judging.interval import Stretch, between_starts, segment_rates, stretch, within_run
from judging.steady import Steady
from judging.windows import cut_windows
from tests.unit.simulated import SECOND, closed_loop, constant

MS = 1_000_000
BATCH, PERIOD_S = 4, 0.1


def seeded(random: np.random.Generator, *, batches: int, correlation: float, cv: float = 0.05) -> Stretch:
    """Batches of 4 whose service times are an AR(1) process of mean 100 ms; capacity 40/s."""
    noise = (1 - correlation**2) ** 0.5 * random.standard_normal(batches + 100)
    series = lfilter([1.0], [1.0, -correlation], noise)
    ends = np.cumsum(PERIOD_S * SECOND * (1 + cv * series[-batches - 1 :])).astype(np.int64)
    done = np.repeat(ends, BATCH)
    return Stretch(
        done_ns=done,
        items=np.ones(done.size, dtype=np.int64),
        start_ns=int(ends[0]),
        end_ns=int(ends[-1]),
        batches=batches,
    )


def coverage(*, batches: int, correlation: float, stretches: int = 1, repeats: int = 250) -> float:
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(repeats):
        found = within_run([seeded(random, batches=batches, correlation=correlation) for _ in range(stretches)])
        assert found is not None
        covered += found.low <= BATCH / PERIOD_S <= found.high
    return covered / repeats


def test_the_interval_of_three_starts_by_hand() -> None:
    """Mean 100, sd 1, t(2, .975) = 4.3027: half width 4.3027 / sqrt(3) = 2.4841."""
    found = between_starts([99.0, 100.0, 101.0])
    assert found is not None
    assert found.mean == 100.0
    assert found.bounds == pytest.approx((100 - 2.4841, 100 + 2.4841), abs=1e-4)
    assert found.kind == "between_starts"


def test_two_starts_have_no_interval() -> None:
    assert between_starts([99.0, 101.0]) is None


def test_independent_batches_are_covered_as_promised() -> None:
    """Four standard errors of 250 repeats at 95% are 5.5 points."""
    assert coverage(batches=40, correlation=0.0) == pytest.approx(0.95, abs=0.055)
    assert coverage(batches=200, correlation=0.0) == pytest.approx(0.95, abs=0.055)


def test_correlated_batches_are_covered_less_in_short_stretches_and_nearly_as_promised_in_long_ones() -> None:
    """What is reached at a correlation of 0.5: some 91% with 40 batches, 94% with 400."""
    assert coverage(batches=40, correlation=0.5) == pytest.approx(0.91, abs=0.055)
    assert coverage(batches=400, correlation=0.5) == pytest.approx(0.94, abs=0.055)


def test_strongly_correlated_batches_in_a_short_stretch_are_covered_far_too_little() -> None:
    """The known limit of ten batch means: segments of 4 batches at a correlation of 0.9 are no independent draws."""
    assert 0.35 < coverage(batches=40, correlation=0.9) < 0.85


def test_two_stretches_share_the_ten_segments() -> None:
    random = np.random.default_rng(0)
    found = within_run([seeded(random, batches=100, correlation=0.0) for _ in range(2)])
    assert found is not None
    assert len(found.samples) == 10
    assert coverage(batches=50, correlation=0.0, stretches=2) == pytest.approx(0.95, abs=0.055)


def test_fewer_than_forty_batches_together_have_no_interval() -> None:
    random = np.random.default_rng(0)
    short = [seeded(random, batches=19, correlation=0.0) for _ in range(2)]
    assert within_run(short) is None
    assert within_run([*short, seeded(random, batches=2, correlation=0.0)]) is not None


def test_segments_of_a_periodic_server_are_all_at_its_capacity() -> None:
    random = np.random.default_rng(0)
    periodic = seeded(random, batches=43, correlation=0.0, cv=0.0)
    assert segment_rates(periodic, 10) == pytest.approx([40.0] * 10)


def test_the_windows_of_a_load_make_one_stretch() -> None:
    load = closed_loop(concurrency=8, max_batch=4, service=constant(100 * MS), seconds=24, spread_ns=3 * MS)
    windows = cut_windows(
        load.rows,
        load.reads,
        generator="locust",
        point=LoadPoint(concurrency=8),
        steady=Steady(from_ns=load.start_ns + SECOND, unstable=False, halves=0.0, bins=200),
        until_ns=load.until_ns,
        period_ns=100 * MS,
    )
    found = within_run([stretch(load.rows, windows[1:], 100 * MS)])
    assert found is not None
    assert (found.kind, len(found.samples)) == ("within_run", 10)
    assert (found.low, found.mean, found.high) == pytest.approx((40.0, 40.0, 40.0))
