"""MSER-5 and the test of the halves: arithmetic by hand, and seeded servers whose rate is known at every moment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from judging.steady import Steady, bins, mser, steady
from tests.unit.simulated import SECOND

MS = 1_000_000
REPEATS = 60


def batches(
    *, seconds: float, period_ms: float, seed: int, cv: float, shape: Callable[[float], float] = lambda _: 1.0
) -> npt.NDArray[np.int64]:
    """Instants at which batches end; `shape` of the share of the record that has passed stretches the period."""
    noise = np.random.default_rng(seed).standard_normal(round(3e3 * seconds / period_ms)).tolist()
    ends: list[int] = []
    now = 0.0
    while now < seconds:
        now += period_ms / 1e3 * shape(now / seconds) * max(0.01, 1 + cv * noise[len(ends)])
        ends.append(round(now * SECOND))
    return np.array(ends, dtype=np.int64)


def judged(ends: npt.NDArray[np.int64], *, seconds: float, period_ms: float, batch: int = 4) -> Steady:
    """Each batch's answers arrive a millisecond apart."""
    done = (ends[:, None] + np.arange(batch) * MS).ravel()
    return steady(
        done,
        np.ones(done.size, dtype=np.int64),
        start_ns=0,
        end_ns=round(seconds * SECOND),
        period_ns=round(period_ms * MS),
    )


def share_unstable(seconds: float, cv: float, shape: Callable[[float], float] = lambda _: 1.0) -> float:
    found = [
        judged(
            batches(seconds=seconds, period_ms=130, seed=seed, cv=cv, shape=shape),
            seconds=seconds,
            period_ms=130,
        )
        for seed in range(REPEATS)
    ]
    return sum(one.unstable for one in found) / REPEATS


def step(at: float, gain: float) -> Callable[[float], float]:
    return lambda passed: 1.0 if passed < at else 1 / (1 + gain)


def drift(total: float) -> Callable[[float], float]:
    return lambda passed: 1 + total * passed


# ---------------------------------------------------------------------------- the statistic


def test_the_statistic_is_the_sum_of_squares_of_what_is_left_over_its_squared_number() -> None:
    z = np.array([9.0, 1.0, 2.0, 3.0, 2.0, 2.0, 1.0])
    assert mser(z) == pytest.approx([sum((z[d:] - z[d:].mean()) ** 2) / (7 - d) ** 2 for d in (0, 1, 2)])


def test_the_last_five_groups_are_never_cut_into() -> None:
    assert mser(np.arange(20.0)).size == 16  # d = 0 … 15 = k - 5
    assert np.argmin(mser(np.arange(20.0))) == 15  # a straight line is best cut as far as may be


def test_a_transient_is_cut_off_where_it_ends() -> None:
    z = np.concatenate(([0.0, 40.0, 80.0], 100 + np.tile([1.0, -1.0], 20)))
    assert np.argmin(mser(z)) == 3


# ---------------------------------------------------------------------------- bins


def test_bins_of_a_steady_server_are_equal_although_batches_beat_against_them() -> None:
    """Counted where they end, batches of 4 every 130 ms would fill bins of 150 ms with 4 or 8."""
    done = np.repeat(np.arange(1, 301) * 130 * MS, 4)
    items = np.ones(done.size, dtype=np.int64)
    end_ns = 300 * 130 * MS
    smooth = bins(done, items, start_ns=0, end_ns=end_ns, count=260, period_ns=130 * MS)
    plain, _ = np.histogram(done, bins=260, range=(0, end_ns))
    assert set(plain.tolist()) == {4, 8}
    assert smooth == pytest.approx(np.full(260, 4 * 150 / 130))


def test_bins_lose_and_invent_no_item() -> None:
    ends = batches(seconds=30, period_ms=130, seed=3, cv=0.2)
    done = np.repeat(ends, 4)
    whole = bins(done, np.full(done.size, 2), start_ns=0, end_ns=int(ends[-1]), count=100, period_ns=130 * MS)
    assert whole.sum() == pytest.approx(2 * done.size)


# ---------------------------------------------------------------------------- stable and not


@pytest.mark.parametrize("period_ms", [20.0, 99.0, 101.0, 130.0, 260.0])
def test_a_periodic_server_is_steady_from_its_start(period_ms: float) -> None:
    seconds = 120 * max(0.1, period_ms / 1e3)
    found = judged(batches(seconds=seconds, period_ms=period_ms, seed=0, cv=0.0), seconds=seconds, period_ms=period_ms)
    assert not found.unstable
    assert found.from_ns <= 0.1 * seconds * SECOND
    assert found.reasons == ()


@pytest.mark.parametrize(("seconds", "cv"), [(14.5, 0.03), (14.5, 0.05), (30.0, 0.05)])
def test_independent_noise_is_hardly_ever_called_unstable(seconds: float, cv: float) -> None:
    assert share_unstable(seconds, cv) <= 0.02


@pytest.mark.parametrize("gain", [0.05, -0.05])
def test_a_step_of_five_percent_after_the_middle_is_found(gain: float) -> None:
    assert share_unstable(14.5, 0.01, step(0.6, gain)) >= 0.98
    assert share_unstable(30.0, 0.03, step(0.6, gain)) >= 0.85


def test_a_drift_of_ten_percent_is_found() -> None:
    """The halves differ by 5% then; at a noise of 3% a batch the minimum is late in two of three."""
    assert share_unstable(14.5, 0.01, drift(0.1)) >= 0.95
    assert share_unstable(30.0, 0.03, drift(0.1)) >= 0.6


def test_a_drift_within_the_plateau_is_no_instability() -> None:
    assert share_unstable(14.5, 0.005, drift(0.04)) == 0.0


def test_a_slow_start_is_cut_off_as_warmup() -> None:
    def slow_start(passed: float) -> float:
        return 2.0 if passed < 0.2 else 1.0

    found = [
        judged(
            batches(seconds=30, period_ms=130, seed=seed, cv=0.02, shape=slow_start),
            seconds=30,
            period_ms=130,
        )
        for seed in range(REPEATS)
    ]
    near = [0.19 * 30 <= one.from_ns / SECOND <= 0.26 * 30 for one in found]
    assert sum(near) / REPEATS >= 0.8
    assert sum(one.unstable for one in found) / REPEATS <= 0.1


def test_a_quiet_server_loses_hardly_anything_to_the_warmup() -> None:
    """Pure MSER-5 would take more than a fifth of 105 bins of independent noise in one record of five."""
    found = [
        judged(batches(seconds=14.5, period_ms=130, seed=seed, cv=0.01), seconds=14.5, period_ms=130)
        for seed in range(REPEATS)
    ]
    assert sum(one.from_ns > 0.2 * 14.5 * SECOND for one in found) / REPEATS <= 0.02


def test_at_most_the_first_half_is_warmup_whatever_chance_does() -> None:
    for seed in range(REPEATS):
        ends = batches(seconds=14.5, period_ms=130, seed=seed, cv=0.05)
        assert judged(ends, seconds=14.5, period_ms=130).from_ns <= 7.3 * SECOND


def test_the_drain_is_not_part_of_the_record() -> None:
    ends = batches(seconds=40, period_ms=100, seed=0, cv=0.0)
    ends = ends[(ends < 30 * SECOND) | (np.arange(ends.size) % 3 == 0)]
    assert not judged(ends, seconds=30, period_ms=100).unstable


# ---------------------------------------------------------------------------- records too short


def test_fewer_than_a_hundred_bins_are_judged_and_said() -> None:
    found = judged(batches(seconds=35, period_ms=500, seed=0, cv=0.01), seconds=35, period_ms=500)
    assert (found.bins, found.unstable) == (65, False)
    assert found.reasons == ("judged on 65 bins, fewer than 100",)


def test_a_record_too_short_for_mser_gives_its_first_fifth_to_the_warmup() -> None:
    found = judged(batches(seconds=20, period_ms=1000, seed=0, cv=0.0), seconds=20, period_ms=1000)
    assert not found.unstable
    assert found.from_ns == pytest.approx(0.2 * 18 * SECOND, rel=0.1)
    assert "too few for MSER-5" in found.reasons[0]


def test_a_short_record_whose_halves_differ_is_unstable() -> None:
    ends = batches(seconds=20, period_ms=1000, seed=0, cv=0.0, shape=step(0.6, 0.3))
    assert judged(ends, seconds=20, period_ms=1000).unstable


def test_a_record_without_answers_is_unstable() -> None:
    nothing = np.array([], dtype=np.int64)
    found = steady(nothing, nothing, start_ns=0, end_ns=SECOND, period_ns=MS)
    assert (found.unstable, found.reasons) == (True, ("nothing was answered",))
